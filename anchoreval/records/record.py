"""Make records and their keys. Runs and verification both use these functions, and nothing else makes a record."""

from __future__ import annotations

import hashlib
import json
import sys
from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from anchoreval.arms.arm import Arm
from anchoreval.prompt import document_tokens
from anchoreval.schema import Json, Output, Record, Request, Sample, Score
from anchoreval.suites.choices import likeliest


@dataclass(frozen=True, slots=True)
class Shared:
    """What the records of a prompt have in common under all arms; a prompt may be long, so it is computed once."""

    prompt_sha256: str
    document_tokens: Mapping[str, Json]

    @classmethod
    def of(cls, sample: Sample, request: Request) -> Shared:
        """Return what the records of a sample share."""
        return cls(sample.prompt_sha256, document_tokens(request))


def keys_of(request: Request, arms: Iterable[Arm], engine: str) -> list[str]:
    """Return for each arm the SHA-256 over prompt tokens, reference, decoding, arm and engine.

    The engine's fingerprint has the weights. Document boundaries count only under arms that act on documents.
    """
    tokens = hashlib.sha256()
    for ids in (request.token_ids, request.reference_ids):
        tokens.update(_int32([len(ids)]) + _int32(ids))
    decoding = {"max_new_tokens": request.max_new_tokens, "stop": request.stop, "greedy": True}
    if request.choices:
        decoding |= {"choices": [(choice.token_ids, choice.counted) for choice in request.choices]}
    if request.end_ids:
        decoding |= {"end_ids": request.end_ids, "min_new_tokens": request.min_new_tokens}
    keys, parted = [], None
    for arm in arms:
        if not arm.stock and parted is None:
            parted = tokens.copy()
            parted.update(json.dumps([request.segment_ids, request.roles]).encode())
        digest = (tokens if arm.stock or parted is None else parted).copy()
        digest.update(json.dumps([request.sample_id, arm.fingerprint(), engine, decoding]).encode())
        keys.append(digest.hexdigest())
    return keys


def _int32(values: Iterable[int]) -> bytes:
    """Return whole numbers as little-endian integers of 32 bits."""
    packed = array("i", values)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


def to_record(
    key: str, sample: Sample, request: Request, arm: Arm, output: Output, score: Score, environment: int | None = None,
    shared: Shared | None = None,
) -> Record:  # fmt: skip
    """Return the record of one answered request; `shared` is computed if it is not given."""
    shared = shared or Shared.of(sample, request)
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
        prompt_sha256=shared.prompt_sha256,
        prompt_tokens=len(request.token_ids),
        references=sample.references,
        facts={**sample.facts, "document_tokens": shared.document_tokens, **output.facts},
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
