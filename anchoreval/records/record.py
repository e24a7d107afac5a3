"""Make records and their keys. Runs and verification both use these functions, and nothing else makes a record."""

from __future__ import annotations

import hashlib
import json
import struct

from anchoreval.arms.arm import Arm
from anchoreval.prompt import document_tokens
from anchoreval.schema import Output, Record, Request, Sample, Score
from anchoreval.suites.scorers import likeliest


def key_of(request: Request, arm: Arm, engine: str) -> str:
    """Return the SHA-256 over prompt tokens, reference, decoding, arm and engine (whose fingerprint has the weights).

    Document boundaries are part of it only under arms that act on documents.
    """
    digest = hashlib.sha256()
    for ids in (request.token_ids, request.reference_ids):
        digest.update(struct.pack(f"<{len(ids) + 1}i", len(ids), *ids))
    decoding = {"max_new_tokens": request.max_new_tokens, "stop": request.stop, "greedy": True}
    if request.choices:
        decoding |= {"choices": [(choice.token_ids, choice.counted) for choice in request.choices]}
    if request.end_ids:
        decoding |= {"end_ids": request.end_ids, "min_new_tokens": request.min_new_tokens}
    if not arm.stock:
        digest.update(json.dumps([request.segment_ids, request.roles]).encode())
    digest.update(json.dumps([request.sample_id, arm.fingerprint(), engine, decoding]).encode())
    return digest.hexdigest()


def to_record(
    key: str, sample: Sample, request: Request, arm: Arm, output: Output, score: Score, environment: int | None = None
) -> Record:
    """Return the record of one answered request."""
    reference, text = output.reference_logprob, output.text
    if output.choices:
        reference = output.choices[request.gold].logprob if request.gold is not None else None
        text = sample.choices[likeliest(output.choices)].text
    return Record(
        key=key,
        sample_id=sample.id,
        task=sample.task,
        length=sample.length,
        index=sample.index,
        arm=arm.name,
        prompt_sha256=sample.prompt_sha256,
        prompt_tokens=len(request.token_ids),
        references=sample.references,
        facts={**sample.facts, "document_tokens": document_tokens(request), **output.facts},
        output=text,
        output_tokens=len(output.token_ids),
        finish=output.finish,
        score=score.value,
        why=score.why,
        reference_logprob=reference,
        reference_tokens=request.reference_tokens,
        seconds=round(output.seconds, 4),
        choices=output.choices,
        outcome=output.outcome,
        environment=environment,
    )
