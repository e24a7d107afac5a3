"""Addresses in a run's viewer: the list of the samples behind a number."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote

VIEWER = "view/index.html"  # within a run's folder
LONGEST = 200  # a longer name is left out of a link, which then opens a longer list


def has_viewer(run: Path) -> bool:
    """Whether a run's folder holds a viewer, itself and not by a link."""
    place = run / VIEWER
    return place.is_file() and not place.is_symlink() and not place.parent.is_symlink()


def encoded(value: str) -> str | None:
    """A name as it stands in a viewer's address; None where it is too long for one."""
    return quote(value, safe="", errors="replace") if len(value) <= LONGEST else None


def listed(folder: str, query: Iterable[tuple[str, str]]) -> str:
    """The viewer's list of the samples that `query` names; `folder` is the run's, ready for an address."""
    parts = [f"{key}={name}" for key, value in query if (name := encoded(value)) is not None]
    return f"{folder}/{VIEWER}" + (f"#{'&'.join(parts)}" if parts else "")


def relative(path: Path, folder: Path) -> str:
    """`path` as seen from `folder`, with `/`."""
    try:
        return Path(os.path.relpath(path, folder)).as_posix()
    except ValueError:  # another drive
        return path.as_posix()
