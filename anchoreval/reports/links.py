"""Addresses in a run's viewer: the list of the samples behind a number."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote

VIEWER, BOARD = "view/index.html", "board.html"  # paths in a run's folder
LONGEST = 200  # a longer name is left out of a link, which then opens a longer list


def has_viewer(run: Path) -> bool:
    """Return whether a run's folder holds a viewer itself, not through a symbolic link."""
    path = run / VIEWER
    return path.is_file() and not path.is_symlink() and not path.parent.is_symlink()


def has_page(run: Path) -> bool:
    """Return whether a run's folder holds a board of its own, not through a symbolic link."""
    page = run / BOARD
    return page.is_file() and not page.is_symlink()


def encoded(value: str) -> str | None:
    """Return a name as encoded in a viewer's address, or None if it is too long for one."""
    return quote(value, safe="", errors="replace") if len(value) <= LONGEST else None


def listed(folder: str, query: Iterable[tuple[str, str]]) -> str:
    """Return the link to the viewer's list of the samples in `query`; `folder` is the run's, already encoded."""
    parts = [f"{key}={name}" for key, value in query if (name := encoded(value)) is not None]
    return f"{folder}/{VIEWER}" + (f"#{'&'.join(parts)}" if parts else "")


def relative(path: Path, folder: Path) -> str:
    """Return `path` relative to `folder`, with `/`."""
    try:
        return Path(os.path.relpath(path, folder)).as_posix()
    except ValueError:  # another drive
        return path.as_posix()
