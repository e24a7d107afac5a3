"""Prompts of several documents, and their plans, for tests."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from checkpoints import prompts

from anchoreval.arms.layout import parse_positions
from anchoreval.arms.patterns import Block, blocks_of

ROLES = ("preamble", "document", "document", "document", "query", "answer_prefix")


def laid_out(
    lengths: Sequence[int] = (20, 90, 130, 70, 40, 10), seed: int = 0
) -> tuple[tuple[int, ...], tuple[Block, ...]]:
    """Random tokens and their blocks: the anchor, a preamble, three documents, a query with its answer prefix."""
    segments = [-1, *itertools.chain.from_iterable([index] * length for index, length in enumerate(lengths))]
    tokens = prompts(1, len(segments), len(segments), seed)[0]
    return tokens, blocks_of(segments, ROLES)


def positions_of(blocks: Sequence[Block], scheme: str, more: int = 0) -> list[int]:
    """The position ids of a prompt and of `more` tokens behind it."""
    own = list(parse_positions(scheme).of(blocks))
    return own + [own[-1] + 1 + index for index in range(more)]


def plan_of(blocks: Sequence[Block], scheme: str) -> list[int]:
    """The plan of a prompt, flat: runs of consecutive positions, cut at blocks."""
    positions = positions_of(blocks, scheme)
    plan: list[int] = []
    for number, block in enumerate(blocks):
        document = {"anchor": -2, "query": -1}.get(block.kind, number)
        run: list[int] = []
        for position in positions[block.start : block.stop]:
            if run and position == run[0] + run[1]:
                run[1] += 1
            else:
                plan += [*run, document] if run else []
                run = [position, 1]
        plan += [*run, document]
    return plan
