"""LongBench v2's prompts, from prompts.yaml, and how they are filled in.

`choices` is no prompt of LongBench v2: it ends with the cue "Answer:" where upstream describes the form of an answer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from anchoreval.schema import Role, Segment

MARKER = re.compile(r"\$(DOC|Q|C_[A-D]|COT)\$")


@cache
def prompts() -> dict[str, str]:
    """Return the prompts by name."""
    from anchoreval.cards.strict_yaml import read_yaml

    texts: dict[str, str] = read_yaml(Path(__file__).with_suffix(".yaml"))
    return texts


def filled(prompt: str, texts: Mapping[str, str]) -> list[Segment]:
    """Return the prompt with `texts` in place of its markers; the document and the cue are segments of their own.

    All markers are replaced in one pass. Upstream replaces one marker after the other, which changes a document that
    holds "$Q$".
    """
    segments: list[Segment] = []
    role: Role = "preamble" if "$DOC$" in prompt else "query"
    for at, part in enumerate(MARKER.split(prompt)):
        document = at % 2 == 1 and part == "DOC"
        segments.append(Segment("document" if document else role, texts[part] if at % 2 else part))
        role = "query" if document else role
    if prompt.endswith(":"):
        rest, line, cue = segments.pop().text.rpartition("\n")
        segments += [Segment("query", rest + line), Segment("answer_prefix", cue)]
    return segments
