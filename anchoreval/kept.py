"""What a long measurement has found so far, a named line of JSON each, so that one that was cut goes on."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from anchoreval.errors import RunError
from anchoreval.plain_files import MOST_BYTES, opened, there
from anchoreval.schema import Json
from anchoreval.strict_json import parse

Content = TypeVar("Content")


def name_of(facts: Json) -> str:
    """The name of a line, from all that decides what it holds."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


@dataclass
class Kept:
    """The lines of a file by name, to which more are added; without a file they are kept in memory alone.

    A line that was torn by a kill is left out, and so found anew.
    """

    file: Path | None = None
    lines: dict[str, Json] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Read what the file has; RunError where it cannot be read, or is a link or no file."""
        if self.file and self.file.is_symlink():
            raise RunError(f"{self.file} is a link: delete it")
        if self.file and there(self.file):
            self.lines.update(_read(self.file))

    def read(self, name: str, content: Callable[[Json], Content]) -> Content | None:
        """Return what `content` makes of a line; None where there is none, or one of which it raises ValueError."""
        try:
            return content(self.lines[name])
        except (LookupError, ValueError):
            return None

    def add(self, name: str, content: Json) -> None:
        """Keep a line, on the disk before this returns; RunError where it cannot be written."""
        self.lines[name] = content
        if self.file is None:
            return
        line = json.dumps({"name": name, "content": content}, separators=(",", ":")).encode() + b"\n"
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with self.file.open("ab") as out:
                out.write(line if _ends_whole(self.file) else b"\n" + line)
                out.flush()
                os.fsync(out.fileno())
        except OSError as error:
            raise RunError(f"{self.file}: cannot be written: {error.strerror or error}") from error


def _ends_whole(file: Path) -> bool:
    """Whether nothing, or a whole line, stands at the end."""
    with file.open("rb") as opened:
        if not opened.seek(0, os.SEEK_END):
            return True
        opened.seek(-1, os.SEEK_END)
        return opened.read() == b"\n"


def _read(file: Path) -> Iterator[tuple[str, Json]]:
    try:
        with opened(file) as lines:
            while line := lines.readline(MOST_BYTES + 1):
                try:
                    entry = parse(line)
                    yield str(entry["name"]), entry["content"]
                except (ValueError, LookupError, TypeError):
                    continue
    except OSError as error:
        raise RunError(f"{file}: cannot be read: {error.strerror or error}") from error
