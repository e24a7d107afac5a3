"""The lines of records.jsonl as they stand on disk, read one after the other, and how one is added."""

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
    """The lines of a records file, each with its number from 1, a torn last one left out unless `torn`.

    Once they are read `sha256` is that of the whole file and `count` the number of its lines. RunError for what is no
    file of the folder, or no file of lines.
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
        """SHA-256 of what was read so far."""
        return self._digest.hexdigest()


def each_record(path: Path) -> Iterator[Record]:
    """Every whole record of a records file, one at a time, a torn last line left out.

    Of a sample that was asked again the last line counts. RunError names a line that is broken inside, and one that
    repeats an earlier one that has an answer.
    """
    for _, values in each_fields(Lines(path)):
        yield record_of(values)


def each_fields(lines: Lines) -> Iterator[tuple[int, dict[str, Any]]]:
    """The number of the line and the fields of every record by name, checked and refused as in `each_record`."""
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
    """The number of the last line of each key; lines that are broken are left out."""
    last: dict[str, int] = {}
    for number, line in Lines(path):
        with contextlib.suppress(ValueError):
            last[checked(line)["key"]] = number
    return last


def read_records(path: Path) -> list[Record]:
    """All whole records of a records file; RunError as for `each_record`."""
    return list(each_record(path))


def write_line(file: int, line: bytes) -> None:
    """Append a line to an open file, on the disk whole or not at all; OSError says why it is not."""
    end, rest = os.fstat(file).st_size, line
    try:
        while rest:
            rest = rest[os.write(file, rest) :]
        os.fsync(file)
    except OSError:
        with contextlib.suppress(OSError):  # what cannot be taken back is a torn line, which the next call drops
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
