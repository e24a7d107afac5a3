"""What boards keep of the runs that they read: the columns of all cells, in a file named by the SHA-256 of the records.

A board that is built again reads only records that are new or changed, and holds the columns of one model at a time.
The files lie in the user's cache folder. They are a convenience: one that is damaged or was written by other code is
written anew, one that is deleted too, and where none can be written they lie in a temporary folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
import os
import pickle
import sys
import tempfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Generic, TypeVar

from anchoreval import schema
from anchoreval.errors import AnchorEvalError, RunError
from anchoreval.files import cache_file, known_sha256_of, opened, write_whole
from anchoreval.records import lines as records_lines
from anchoreval.records.lines import Lines, each_fields
from anchoreval.stats import Scores
from anchoreval.stats.cells import ROW_BYTES

MOST_BYTES = 2 << 30  # of all files; those that were not used for the longest time go first
Key = tuple[str, str, int]  # (arm, task, length)
Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Kept:
    """What is kept of the records file at `path`: hash and number of its lines, and the number of records of each cell.

    `wrong` tells of cells that cannot be shown: the line at which that was seen, 0 for the whole file, and why.
    """

    path: Path
    sha256: str
    count: int
    cells: Mapping[Key, int]
    wrong: Mapping[Key, tuple[int, str]]

    def require(self, cells: Collection[Key]) -> None:
        """Raise RunError with the first reason why some of these cells cannot be shown."""
        wrong = [self.wrong[cell] for cell in cells if cell in self.wrong]
        if wrong:
            line, why = min(wrong, key=lambda each: each[0] or sys.maxsize)
            raise RunError(f"{self.path}:{line}: {why}" if line else f"{self.path}: {why}")


@dataclass(frozen=True, slots=True)
class Store:
    """The folder of the files."""

    folder: Path

    def of(self, path: Path) -> Kept:
        """Return what is kept of a records file, which is read if its content is not known; RunError for a bad one."""
        opened(path).close()  # a link out of the folder is refused
        sha256 = known_sha256_of(path)
        if (known := self._content(sha256)) is None:
            return self._read(path)
        with contextlib.suppress(OSError):
            os.utime(self.folder / sha256)
        rows = [((arm, task, length), *rest) for arm, task, length, *rest in known[0]["cells"]]
        wrong = {key: (line, why) for key, _, line, why in rows if why}
        return Kept(path, sha256, known[0]["count"], {key: count for key, count, *_ in rows}, wrong)

    def scores(self, kept: Kept, cells: Collection[Key]) -> Iterator[tuple[str, Scores]]:
        """Yield arm and scores of these cells, in the order of their first records."""
        known = self._content(kept.sha256)
        if known is None and self._read(kept.path).sha256 == kept.sha256:  # another process deleted the file
            known = self._content(kept.sha256)
        if known is None:
            raise RunError(f"{kept.path}: changed while the board was built: give the same command again")
        (head, columns), at = known, 0
        for arm, task, length, count, *_ in head["cells"]:
            size = count * ROW_BYTES
            if (arm, task, length) in cells:
                yield arm, Scores.unpacked(task, length, columns[at : at + size])
            at += size

    def _content(self, sha256: str) -> tuple[dict[str, Any], bytes] | None:
        """Return head and columns of a file; None if it is not there, damaged, or written by other code."""
        try:
            digest, _, rest = (self.folder / sha256).read_bytes().partition(b"\n")
        except OSError:
            return None
        if digest != _digest(rest):
            return None
        head, _, columns = rest.partition(b"\n")
        known = json.loads(head)
        return (known, columns) if known["code"] == _code() else None

    def _read(self, path: Path) -> Kept:
        """Read a records file and keep its cells."""
        lines, cells, wrong = Lines(path), dict[Key, Scores](), dict[Key, tuple[int, str]]()
        for number, record in each_fields(lines):
            key = record["arm"], record["task"], record["length"]
            own = cells.setdefault(key, Scores(*key[1:]))
            try:
                own.add(record.get)
            except (TypeError, ValueError, AttributeError, OverflowError) as error:
                wrong.setdefault(key, (number, f"a field of this record has the wrong type: {error}"))
        for key, own in cells.items():
            try:
                own.require_each_once(key[0])
            except RunError as error:
                wrong.setdefault(key, (0, str(error)))
        shown = {key: Scores(*key[1:]) if key in wrong else own for key, own in cells.items()}
        rows = [[*key, len(own.index), *wrong.get(key, (0, ""))] for key, own in shown.items()]
        head = json.dumps({"code": _code(), "count": lines.count, "cells": rows}).encode()
        content = b"\n".join([head, b"".join(own.packed() for own in shown.values())])
        try:
            write_whole(self.folder / lines.sha256, [_digest(content), b"\n", content])
        except RunError as error:  # no fault of the run, which would be left out
            raise AnchorEvalError(f"{error}: free space there, or set XDG_CACHE_HOME to another folder") from error
        return Kept(path, lines.sha256, lines.count, {key: len(own.index) for key, own in shown.items()}, wrong)

    def trim(self) -> None:
        """Delete the files that were not used for the longest time until the others have MOST_BYTES at most."""
        with contextlib.suppress(OSError):
            files = sorted(((entry.stat(), entry.path) for entry in os.scandir(self.folder)),
                           key=lambda each: each[0].st_mtime_ns)  # fmt: skip
            size = sum(status.st_size for status, _ in files)
            for status, path in files:
                if size <= MOST_BYTES:
                    return
                os.unlink(path)
                size -= status.st_size


def store_folder() -> Path:
    """Return $XDG_CACHE_HOME/anchoreval/boards, or the same below ~/.cache."""
    return cache_file().parent / "boards"


@contextlib.contextmanager
def open_store(fresh: bool = False) -> Iterator[Store]:
    """Yield the store in the user's cache folder; with `fresh`, or where that cannot be written, an empty one."""
    folder = store_folder()
    if not fresh:
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
    if fresh or not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        with tempfile.TemporaryDirectory(prefix="anchoreval-board-") as name:
            yield Store(Path(name))
        return
    store = Store(folder)
    yield store
    store.trim()


class Spool(Generic[Item]):
    """Items that lie in a file without a name; one at a time is in memory."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - it goes with the object

    def __del__(self) -> None:
        self._file.close()

    def append(self, item: Item) -> None:
        """Add an item at the end."""
        self._file.seek(0, os.SEEK_END)
        pickle.dump(item, self._file)

    def __iter__(self) -> Iterator[Item]:
        """Yield the items in their order; several may read at the same time."""
        at, end = 0, self._file.seek(0, os.SEEK_END)
        while at < end:
            self._file.seek(at)
            item: Item = pickle.load(self._file)  # what this process wrote
            at = self._file.tell()
            yield item


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).hexdigest().encode()


@cache
def _code() -> str:
    """Return a hash of the code that decides what a record becomes, so that no other version's columns are shown."""
    modules = (schema, records_lines, sys.modules[Scores.__module__], sys.modules[__name__])
    return hashlib.sha256("".join([sys.byteorder, *map(inspect.getsource, modules)]).encode()).hexdigest()
