"""Heat maps of the page: their cells, and the links of the cells."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import quote

from anchoreval.reports.board.view import RunView
from anchoreval.reports.links import listed
from anchoreval.reports.words import plain


@dataclass(frozen=True, slots=True)
class Field:
    """One cell of a heat map: its text, its colour class, its sentence, and a link to its evidence."""

    text: str
    style: str
    label: str
    href: str
    strong: bool = False


@dataclass(frozen=True, slots=True)
class HeatMap:
    """A table of named rows and a column per length."""

    title: str
    rows: tuple[tuple[str, tuple[Field, ...]], ...]
    note: str = ""


def folder_of(view: RunView) -> str:
    """Return the run's folder as a link."""
    return "." if view.path == "." else f"./{quote(plain(view.path, 1000), safe='/')}"


def samples_of(view: RunView, otherwise: str, **query: str | int) -> str:
    """Return the link to the viewer's list of the samples in `query`, or `otherwise` if the run has no viewer."""
    named = [(key, str(value)) for key, value in query.items()]
    return listed(folder_of(view), named) if view.viewer else otherwise
