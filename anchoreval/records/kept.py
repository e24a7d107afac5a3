"""`Kept`: intermediate results of a long measurement as named JSON lines, so that a killed measurement can go on."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from anchoreval.errors import RunError
from anchoreval.files import MOST_BYTES, opened, there
from anchoreval.files.strict_json import parse
from anchoreval.schema import Json

Content = TypeVar("Content")


@dataclass
class Kept:
    """The lines of a file by name; new lines are appended. Without a file, lines are kept in memory only.

    A line that was torn by a kill is ignored, so its result is computed again.
    """

    file: Path | None = None
    lines: dict[str, Json] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Read the file; raise RunError if it cannot be read, or is a link or no file."""
        if self.file and self.file.is_symlink():
            raise RunError(f"{self.file} is a link: delete it")
        if self.file and there(self.file):
            self.lines.update(_read(self.file))

    def read(self, name: str, content: Callable[[Json], Content]) -> Content | None:
        """Return `content` of the line of this name; None if there is no such line or `content` raises ValueError."""
        try:
            return content(self.lines[name])
        except (LookupError, ValueError):
            return None

    def add(self, name: str, content: Json) -> None:
        """Append a line; it is on disk when this returns. Raise RunError if it cannot be written."""
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
    """Return True if the file is empty or ends with a newline."""
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
