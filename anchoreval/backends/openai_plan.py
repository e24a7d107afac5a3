"""A request's positions and documents as our plugin in a vLLM server takes them, and the salt of its prefix cache."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator

from anchoreval.attention.blocks import Block, blocks_of
from anchoreval.attention.positions import PositionScheme
from anchoreval.schema import Json, Request

ANCHOR, QUERY = -2, -1  # documents are numbered from 0


def plan_fields(request: Request, scheme: PositionScheme, pattern: str) -> dict[str, Json]:
    """What goes into the body of a request under a position scheme and an attention pattern.

    The salt keeps keys and values apart that were rotated or masked in another way: it holds all of the plan but the
    length of its last run, so that prompts with the same documents still share what is before their questions.
    """
    plan = [number for run in _runs(request, scheme, pattern) for number in run]
    salted = [str(scheme), pattern, *plan[:-2], *plan[-1:]]
    salt = hashlib.sha256(json.dumps(salted).encode()).hexdigest()
    return {"vllm_xargs": {"anchoreval_plan": plan}, "cache_salt": salt}


def _runs(request: Request, scheme: PositionScheme, pattern: str) -> Iterator[tuple[int, int, int]]:
    """(position, tokens, document) of the longest runs of consecutive positions within one document."""
    blocks = blocks_of(request.segment_ids, request.roles)
    documents = _documents(blocks, pattern)
    placed = zip(scheme.of(blocks), documents, itertools.count(), strict=False)
    for (_, document), run in itertools.groupby(placed, key=lambda at: (at[0] - at[2], at[1])):
        tokens = list(run)
        yield tokens[0][0], len(tokens), document


def _documents(blocks: tuple[Block, ...], pattern: str) -> list[int]:
    """The document of every token; without a mask all are of the query, which sees everything before it."""
    number = itertools.count()
    documents: list[int] = []
    for block in blocks:
        own = {"anchor": ANCHOR, "query": QUERY}.get(block.kind)
        document = QUERY if pattern == "full" else next(number) if own is None else own
        documents += [document] * len(block)
    return documents
