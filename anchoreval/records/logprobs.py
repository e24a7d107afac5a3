"""Log-probabilities of the references' tokens: one file per run, with a line for each record that has any.

A line is JSON: the key of its record, and natural log-probabilities as base64 of little-endian float32. It is written
before its record, so a kill may leave an extra line but never lose one. If several lines have one key, the last counts.
Runs of older versions have no such file.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
import sys
from array import array
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from anchoreval.errors import RunError
from anchoreval.files import MOST_BYTES, opened, there, write_errors, write_whole
from anchoreval.files.strict_json import parse
from anchoreval.records.lines import write_line
from anchoreval.schema import Record

LOGPROBS = "logprobs.jsonl"
_KINDS = {"key": str, "logprobs": str}
_BIG = sys.byteorder == "big"
Values = array  # typecode "f": float32


class TokenLogprobs(Mapping[str, "Values[float]"]):
    """Mapping of record keys to log-probabilities in a run folder; only positions in the file are kept in memory.

    `sha256` is the hash of the file when it was opened, or None without a file. A torn last line is skipped. Raise
    RunError for a link, for something that is no file, and for a broken line.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / LOGPROBS
        self.sha256: str | None = None
        self._places: dict[str, int] = {}
        self._lines = start = 0
        if not there(self.path):
            return
        digest = hashlib.sha256()
        try:
            with opened(self.path) as file:
                while (line := file.readline(MOST_BYTES + 1)).endswith(b"\n") or len(line) > MOST_BYTES:
                    self._lines += 1
                    key, _ = _of_line(line)
                    self._places.pop(key, None)  # the last line of a key counts, and gives its place in the order
                    self._places[key] = start
                    start += len(line)
                    digest.update(line)
        except OSError as error:
            raise RunError(f"{self.path}: cannot be read ({error.strerror or error})") from error
        except ValueError as error:
            what = f"{self.path}:{self._lines}: {error}: delete this line and run the command again"
            raise RunError(what) from error
        digest.update(line)
        self.sha256 = digest.hexdigest()

    def __getitem__(self, key: str) -> Values[float]:
        with opened(self.path) as file:
            file.seek(self._places[key])
            return _of_line(file.readline(MOST_BYTES))[1]

    def __contains__(self, key: object) -> bool:
        return key in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def append(self, key: str, logprobs: Sequence[float]) -> None:
        """Append a line; it is on disk when this returns."""
        with write_errors(self.path):
            file = os.open(self.path, os.O_CREAT | os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW, 0o644)
            try:
                start = os.fstat(file).st_size
                write_line(file, _to_line(key, logprobs))
            finally:
                os.close(file)
        self._places.pop(key, None)
        self._places[key] = start
        self._lines += 1

    def settle(self, keys: Sequence[str]) -> None:
        """Keep only the lines of `keys`, in that order; the file is written anew if it has others."""
        wanted = [key for key in keys if key in self._places]
        if self._lines == len(self._places) and wanted == list(self._places):
            return
        write_whole(self.path, (_to_line(key, self[key]) for key in wanted))
        self.__dict__ |= vars(TokenLogprobs(self.path.parent))

    def contradiction(self, record: Record) -> str | None:
        """Return a sentence if the line of a record contradicts the record; None if not, or without a line."""
        if record.key not in self._places:
            return None
        values, logprob = self[record.key], record.reference_logprob
        if len(values) != record.reference_tokens:
            return f"{len(values)} log-probabilities in {LOGPROBS}, reference_tokens is {record.reference_tokens}"
        total = math.fsum(values)
        if logprob is None or abs(total - logprob) > 2**-22 * math.fsum(map(abs, values)):
            return f"the log-probabilities in {LOGPROBS} add up to {total:.9g}, reference_logprob is {logprob}"
        return None


def logprobs_sha256(folder: Path) -> str | None:
    """Return the SHA-256 of the file in a run folder; None if there is no file."""
    if not there(folder / LOGPROBS):
        return None
    with opened(folder / LOGPROBS) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]


def _to_line(key: str, logprobs: Sequence[float]) -> bytes:
    values = array("f", logprobs)
    if _BIG:
        values.byteswap()
    packed = base64.b64encode(values.tobytes()).decode()
    return json.dumps({"key": key, "logprobs": packed}, separators=(",", ":")).encode() + b"\n"


def _of_line(line: bytes) -> tuple[str, Values[float]]:
    """Return key and values of a line; raise ValueError for a line of another shape."""
    if len(line) > MOST_BYTES:
        raise ValueError(f"longer than {MOST_BYTES >> 20} MiB")
    content = parse(line)
    if not isinstance(content, dict) or {name: type(value) for name, value in content.items()} != _KINDS:
        raise ValueError("not the log-probabilities of a record")
    packed = base64.b64decode(content["logprobs"], validate=True)
    if not packed or len(packed) % 4:
        raise ValueError("logprobs is no list of float32")
    values = array("f")
    values.frombytes(packed)
    if _BIG:
        values.byteswap()
    if not all(map(math.isfinite, values)):
        raise ValueError("logprobs holds a number that is not finite")
    return content["key"], values
