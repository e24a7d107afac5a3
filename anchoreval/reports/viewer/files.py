"""A viewer's data as script files: a page opened from a disk may load a script, but may not read a file.

Every file is one call, `anchorevalData(name, text)`, in ASCII; `text` is JSON or JSON lines.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path

from anchoreval.files import write_whole
from anchoreval.schema import Json

FILE_CHARACTERS = 1_000_000  # a new file begins beyond this size


def to_json(value: Json) -> str:
    """Return compact JSON in ASCII: lone surrogates, NUL and line separators are escaped; NaN is an error."""
    return json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))


def script(name: str, text: str) -> str:
    """Return the file's content, with `text` as a string literal.

    A browser thus runs none of the text, and `__proto__` is a mere key.
    """
    quoted = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n").replace("\r", "\\r")
    return f"anchorevalData('{name}','{quoted}');\n"


_BEGINS, _ENDS = b"anchorevalData('", b"');\n"
_NAME = re.compile(r"(index|[0-9]+)\.js(\.[0-9]+\.part)?", re.ASCII)  # .part: left by a killed process
_NAMES = re.compile(r"[0-9a-f]{12}|new\.[0-9.]+\.part", re.ASCII)


def is_data(folder: Path) -> bool:
    """Return whether a folder, by its name and all of its content, is a data folder that we wrote for a viewer."""
    if not _NAMES.fullmatch(folder.name) or folder.is_symlink() or not folder.is_dir():
        return False
    return all(_begins(path) for path in folder.iterdir())


def _begins(path: Path) -> bool:
    """Return whether a file begins as data files do.

    A partly written file need only hold the start of that beginning.
    """
    name = _NAME.fullmatch(path.name)
    if name is None or path.is_symlink() or not path.is_file():
        return False
    with path.open("rb") as file:
        start = file.read(len(_BEGINS))
    return start == _BEGINS or (name[2] is not None and _BEGINS.startswith(start))


def remove_data(folder: Path) -> bool:
    """Delete a folder of data files; return False, and delete nothing, if the folder is not one."""
    try:
        if not is_data(folder):
            return False
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
    except OSError:
        return False
    return True


def is_inert(path: Path) -> bool:
    """Return whether a data file is exactly one call with string literals, so that a browser runs nothing else."""
    try:
        if path.is_symlink() or not path.is_file():
            return False
        content = path.read_bytes()
    except OSError:
        return False
    start = _BEGINS + path.stem.encode("utf-8", "replace") + b"','"
    body = content[len(start) : -len(_ENDS)]
    left = body.replace(b"\\\\", b"").replace(b"\\'", b"")
    closed = b"'" not in left and not left.endswith(b"\\") and b"\n" not in left and b"\r" not in left
    whole = len(content) >= len(start) + len(_ENDS) and content.startswith(start) and content.endswith(_ENDS)
    return whole and closed and content.isascii()


class DataFiles:
    """The files of a viewer in `folder`, numbered from 000, and the SHA-256 of all that was written."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._digest, self._count = folder, hashlib.sha256(), 0
        self._held: list[str] = []
        self._size = 0

    @property
    def sha256(self) -> str:
        """Return the SHA-256 over names and contents so far."""
        return self._digest.hexdigest()

    def add(self, lines: Iterable[str]) -> int:
        """Add lines, which stay together, and return the number of the file that holds them."""
        added = list(lines)
        size = sum(map(len, added))
        if self._held and self._size + size > FILE_CHARACTERS:
            self.close()
        self._held += added
        self._size += size
        return self._count

    def close(self) -> None:
        """Write the file that is being filled, if it holds anything."""
        if self._held:
            self.write(f"{self._count:03}", "\n".join(self._held))
            self._held, self._size, self._count = [], 0, self._count + 1

    def write(self, name: str, text: str) -> None:
        """Write one whole file."""
        content = script(name, text)
        self._digest.update(content.encode("ascii"))
        write_whole(self._folder / f"{name}.js", [content])
