"""Documents of prompts that have none of their own: long ones cut into blocks of a fixed number of tokens.

The tokens of a prompt stay as they are; only where documents begin and end changes, which is what attention
patterns and per-document positions act on. So a haystack, one document by nature, becomes many.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

from anchoreval.schema import Request, Role


def cut_documents(request: Request, tokens: int | None) -> Request:
    """The request with each `document` segment cut into blocks of `tokens` tokens, the last one shorter.

    Documents of at most `tokens` tokens, and all other segments, are left alone; None leaves all alone.
    ValueError for less than one token.
    """
    if tokens is None:
        return request
    if tokens < 1:
        raise ValueError(f"a document of {tokens} tokens")
    segment_ids: list[int] = []
    roles: list[Role] = []
    for segment, run in itertools.groupby(request.segment_ids):
        size = sum(1 for _ in run)
        if segment < 0:
            segment_ids += [segment] * size
            continue
        role = request.roles[segment]
        step = tokens if role == "document" else size
        for start in range(0, size, step):
            segment_ids += [len(roles)] * min(step, size - start)
            roles.append(role)
    return replace(request, segment_ids=tuple(segment_ids), roles=tuple(roles))


def document_tokens(request: Request) -> list[int]:
    """Tokens of every document of a request, in order."""
    runs = ((segment, sum(1 for _ in run)) for segment, run in itertools.groupby(request.segment_ids))
    return [size for segment, size in runs if segment >= 0 and request.roles[segment] == "document"]
