"""Read the lines of records.jsonl one after the other, and append lines."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from anchoreval.errors import RunError
from anchoreval.records.line import checked, record_of, unanswered
from anchoreval.records.plain_files import MOST_BYTES, opened
from anchoreval.schema import Record

RECORDS = "records.jsonl"


class Lines:
    """Iterator over the lines of a records file with their numbers from 1; a torn last line is skipped unless `torn`.

    After the iteration `sha256` is the hash of the whole file and `count` the number of its lines. Raise RunError if
    the path is no file in its folder, or a line is too long.
    """

    def __init__(self, path: Path, torn: bool = False) -> None:
        self.path, self.count = path, 0
        self._torn, self._digest = torn, hashlib.sha256()

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        try:
            with opened(self.path) as file:
                while line := file.readline(MOST_BYTES + 1):
                    self._digest.update(line)
                    self.count += 1
                    if len(line) > MOST_BYTES:
                        raise RunError(f"{self.path}:{self.count}: longer than {MOST_BYTES >> 20} MiB: not a record")
                    if self._torn or line.endswith(b"\n"):
                        yield self.count, line
        except OSError as error:
            raise RunError(f"{self.path}: cannot be read ({error.strerror or error})") from error

    @property
    def sha256(self) -> str:
        """The SHA-256 of what was read so far."""
        return self._digest.hexdigest()


def each_record(path: Path) -> Iterator[Record]:
    """Yield the records of a records file one at a time; a torn last line is skipped.

    For a sample that was asked again, the last line counts. Raise RunError for a broken line, and for a line that
    repeats a record with an answer.
    """
    for _, values in each_fields(Lines(path)):
        yield record_of(values)


def each_fields(lines: Lines) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield line number and fields of every record, with the checks and errors of `each_record`."""
    path, first = lines.path, dict[str, int]()
    last: dict[str, int] | None = None
    for number, line in lines:
        try:
            values = checked(line)
        except ValueError as error:
            raise RunError(f"{path}:{number}: {error}: delete this line and run the command again") from error
        if unanswered(values) and values["key"] not in first:
            last = _last_lines(path) if last is None else last
            if last.get(values["key"], number) > number:
                continue
        if (earlier := first.setdefault(values["key"], number)) != number:
            raise RunError(
                f"{path}:{number}: the same record as line {earlier}: delete this line and run the command again"
            )
        yield number, values


def _last_lines(path: Path) -> dict[str, int]:
    """Return key -> number of its last line; broken lines are skipped."""
    last: dict[str, int] = {}
    for number, line in Lines(path):
        with contextlib.suppress(ValueError):
            last[checked(line)["key"]] = number
    return last


def read_records(path: Path) -> list[Record]:
    """Return all records of a records file; raise RunError as `each_record` does."""
    return list(each_record(path))


def write_line(file: int, line: bytes) -> None:
    """Append a line to an open file so that it is on disk whole or not at all; raise OSError if it is not."""
    end, rest = os.fstat(file).st_size, line
    try:
        while rest:
            rest = rest[os.write(file, rest) :]
        os.fsync(file)
    except OSError:
        with contextlib.suppress(OSError):  # if this fails too, the next call drops the torn line
            os.ftruncate(file, end)
        raise


def drop_torn_line(path: Path) -> None:
    """Cut the file after its last newline."""
    size = path.stat().st_size
    with path.open("r+b") as file:
        end, step = size, 65536
        while end > 0:
            start = max(0, end - step)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                end = start + newline + 1
                break
            end = start
        if end < size:
            file.truncate(end)
