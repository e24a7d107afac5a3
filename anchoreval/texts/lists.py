"""Read the word lists of the package: text files of `[section]` lines, each followed by its entries, one a line."""

from __future__ import annotations

from pathlib import Path


def read_lists(path: Path) -> dict[str, tuple[str, ...]]:
    """Return the entries of each section in their order; empty lines and lines that begin with `#` are left out."""
    lists: dict[str, list[str]] = {}
    entries: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            entries = lists.setdefault(line[1:-1], [])
        elif line and not line.startswith("#"):
            entries.append(line)
    return {name: tuple(entries) for name, entries in lists.items()}
