"""Find where the documents of a prompt begin and end. Attention patterns and per-document positions act on documents.

The tokens of a prompt stay as they are. Without a size, documents are those of the task: each passage, each worked
example, a haystack of running text as a whole, and each line of a haystack that is made of lines. With a size of N
tokens, every run of neighbouring lines is joined, in order, and cut into blocks of N tokens; the last block may be
shorter. Any other document longer than N is cut into such blocks too, and is never joined to another.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

from anchoreval.schema import Json, Request, Role

#: The rule above, for a run's identity: records made under another rule belong to another run.
RULE = "each passage, example, running haystack, line of a haystack; with a size, lines are joined and all are cut"
_ANCHOR = -1
_LINES = -2  # stands for every `line` segment, so that neighbouring lines form one run


def cut_documents(request: Request, tokens: int | None) -> Request:
    """Return the request with its documents cut into blocks of `tokens` tokens (see above), all of role `document`.

    Other segments keep their roles. Segments without tokens are dropped. With `tokens` None the request is returned
    as it is. Raise ValueError for less than one token.
    """
    if tokens is None:
        return request
    if tokens < 1:
        raise ValueError(f"a document of {tokens} tokens")
    joined = {_ANCHOR: _ANCHOR}
    joined |= {segment: _LINES if role == "line" else segment for segment, role in enumerate(request.roles)}
    segment_ids: list[int] = []
    roles: list[Role] = []
    for segment, run in itertools.groupby(map(joined.__getitem__, request.segment_ids)):
        size = sum(1 for _ in run)
        if segment == _ANCHOR:
            segment_ids += [segment] * size
            continue
        role = "document" if segment == _LINES else request.roles[segment]
        step = tokens if role == "document" else size
        for start in range(0, size, step):
            segment_ids += [len(roles)] * min(step, size - start)
            roles.append(role)
    return replace(request, segment_ids=tuple(segment_ids), roles=tuple(roles))


def document_tokens(request: Request) -> dict[str, Json]:
    """Return the number of documents and the token counts of the smallest, the (lower) median and the largest.

    A prompt may have thousands of documents, so a record does not list them. Without documents only `count` is there.
    """
    runs = ((segment, sum(1 for _ in run)) for segment, run in itertools.groupby(request.segment_ids))
    sizes = sorted(size for segment, size in runs if segment >= 0 and request.roles[segment] in {"document", "line"})
    if not sizes:
        return {"count": 0}
    return {"count": len(sizes), "min": sizes[0], "median": sizes[(len(sizes) - 1) // 2], "max": sizes[-1]}
