"""Position plans: the position of each token of a prompt, as runs that fit in a request.

    SamplingParams(extra_args={"anchoreval_plan": [position, tokens, document, position, tokens, document, ...]})
    {"vllm_xargs": {"anchoreval_plan": [...]}}  over HTTP

A run is `tokens` tokens at consecutive positions from `position` on. `document` is ANCHOR for the anchor token, QUERY
for tokens that see everything before them, else the number of a document. Tokens of the prompt beyond the plan, and
generated ones, continue the last run as part of the query.

In the engine a plan is three rows: the positions, the codes below, and zeros. vLLM hands the model a slice of them for
each chunk that it computes. vLLM fills all rows with positions for generated tokens, so any code that is not negative
means the query.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from anchoreval.errors import AnchorEvalError

PLAN = "anchoreval_plan"
ANCHOR, QUERY = -2, -1
ROWS = 3
_ANCHOR_CODE, _QUERY_CODE, _FIRST_DOCUMENT = -1, 0, -2
Run = tuple[int, int, int]


def runs_of(extra_args: Mapping[str, Any] | None) -> tuple[Run, ...]:
    """Return the runs of a request, none if it has no plan; raise AnchorEvalError for a malformed plan."""
    if not extra_args or PLAN not in extra_args:
        return ()
    flat = extra_args[PLAN]
    whole = isinstance(flat, list | tuple) and all(isinstance(n, int) and not isinstance(n, bool) for n in flat)
    if not whole or not flat or len(flat) % 3:
        raise AnchorEvalError(f"{PLAN}: whole numbers in threes (position, tokens, document), at least one three")
    runs = tuple((flat[i], flat[i + 1], flat[i + 2]) for i in range(0, len(flat), 3))
    _check(runs)
    return runs


def _check(runs: Sequence[Run]) -> None:
    """Raise AnchorEvalError unless each document is one stretch, and the anchor is the first token alone."""
    before: list[int] = []
    for index, (position, tokens, document) in enumerate(runs):
        where = f"{PLAN}: run {index} ({position}, {tokens}, {document})"
        if position < 0 or tokens < 1 or document < ANCHOR:
            raise AnchorEvalError(f"{where}: positions are from 0 on, tokens from 1 on, documents from {ANCHOR} on")
        if document == ANCHOR and (index or tokens > 1):
            raise AnchorEvalError(f"{where}: the anchor is the first token, and one token")
        if document != QUERY and document in before[:-1] and document != before[-1]:
            raise AnchorEvalError(f"{where}: a document is one stretch, and this one has ended before")
        before.append(document)


def tokens_of(runs: Sequence[Run]) -> int:
    """Return how many tokens the runs cover."""
    return sum(tokens for _, tokens, _ in runs)


def rows_of(runs: Sequence[Run], tokens: int) -> Tensor:
    """Return positions, codes and zeros [3, tokens] of a prompt of `tokens` tokens; without runs, contiguous ones.

    Raise AnchorEvalError if the runs cover more than the prompt.
    """
    covered = tokens_of(runs)
    if covered > tokens:
        raise AnchorEvalError(f"{PLAN}: the plan covers {covered} tokens, and the prompt has {tokens}")
    following = runs[-1][0] + runs[-1][1] if runs else 0
    parts = [*runs, (following, tokens - covered, QUERY)]
    rows = torch.zeros((ROWS, tokens), dtype=torch.long)
    rows[0] = torch.cat([torch.arange(position, position + count) for position, count, _ in parts])
    rows[1] = torch.cat([torch.full((count,), _code(document)) for _, count, document in parts])
    return rows


def _code(document: int) -> int:
    return {ANCHOR: _ANCHOR_CODE, QUERY: _QUERY_CODE}.get(document, _FIRST_DOCUMENT - document)


def is_query(codes: Tensor) -> Tensor:
    """Return which codes, of any shape, are the query's."""
    return codes >= 0
