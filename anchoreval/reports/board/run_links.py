"""Where the samples behind a number are: the run's viewer, opened at them, or its records where there is no viewer."""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import quote

from anchoreval.reports.board.build import Source
from anchoreval.reports.links import listed


def base(source: Source) -> str:
    """The folder of a run as a link."""
    return quote(source.path, safe="/", errors="replace")


def samples(source: Source, query: Iterable[tuple[str, str]]) -> str:
    """The viewer's list of the samples that `query` names."""
    return listed(base(source), query) if source.viewer else f"{base(source)}/records.jsonl"
