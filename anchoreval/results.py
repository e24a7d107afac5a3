"""A run folder: header.json first, then records.jsonl, one flushed line per record.

Locked while written; a torn last line is dropped and redone; a failed write is a failed run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from operator import itemgetter
from pathlib import Path
from types import TracebackType
from typing import Any

from anchoreval.errors import RunError
from anchoreval.schema import OUTCOMES, ChoiceScore, Json, Record

SCHEMA = 1
HEADER, RECORDS, LOCK = "header.json", "records.jsonl", "lock"
_NUMBER = (int, float, type(None))
_KINDS: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("key", "sample_id", "task", "arm", "prompt_sha256", "output", "finish"), str),
    **dict.fromkeys(("length", "index", "prompt_tokens", "output_tokens", "reference_tokens"), int),
    **dict.fromkeys(("score", "reference_logprob"), _NUMBER),
    "references": list, "facts": dict, "why": (str, type(None)), "seconds": (int, float),
}  # fmt: skip
_FIELDS = itemgetter(*_KINDS)
_SINCE_FORMAT_2 = frozenset({"outcome", "environment"})  # fields that lines of format 1 lack
_OPTIONAL = _SINCE_FORMAT_2 | {"choices"}


@dataclass(frozen=True, slots=True)
class Run:
    """A run read from disk."""

    path: Path
    header: Mapping[str, Json]
    records: tuple[Record, ...]


def fingerprint(identity: Mapping[str, Json]) -> str:
    """Sixteen hexadecimal digits over a canonical JSON of everything that changes a record."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def to_line(record: Record) -> bytes:
    """The record as one JSON line in UTF-8; unpaired surrogates are escaped, so any text survives."""
    values = dataclasses.asdict(record)
    for name in ("choices", "environment"):
        if not values[name] and values[name] != 0:
            del values[name]
    return (json.dumps(values, ensure_ascii=True, allow_nan=False) + "\n").encode("ascii")


def from_line(line: bytes) -> Record:
    """The record of one line; ValueError when it is torn or has other fields."""
    return _record(_checked(line))


def _record(values: Mapping[str, Any]) -> Record:
    lists = {"references": tuple(values["references"])}
    if "choices" in values:
        lists["choices"] = tuple(ChoiceScore(*each) for each in values["choices"])
    return Record(**{**values, **lists})


def _checked(line: bytes) -> dict[str, Any]:
    """The fields of one line, all there and of the right kind; ValueError otherwise."""
    try:
        values: Any = _PLAIN.decode(line.decode("ascii")) if line.isascii() else _decoded(line)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(values, dict) or values.keys() - _OPTIONAL != _KINDS.keys():
        raise ValueError("not a record")
    if name := _first_wrong(tuple(map(type, _FIELDS(values)))):
        raise ValueError(f"not a record: {name} is {json.dumps(values[name])[:40]}")
    for text in values["references"]:
        if not isinstance(text, str):
            raise ValueError("not a record: references are not all text")
    if not _are_choices(values.get("choices", [])):
        raise ValueError("not a record: choices are no pairs of a log-probability and a yes or no")
    if values.get("outcome", OUTCOMES[0]) not in OUTCOMES:
        raise ValueError(f"not a record: outcome is {json.dumps(values['outcome'])[:40]}")
    if type(environment := values.get("environment", 0)) is not int or environment < 0:
        raise ValueError(f"not a record: environment is {json.dumps(environment)[:40]}")
    return values


def _are_choices(values: Json) -> bool:
    return isinstance(values, list) and all(
        isinstance(each, list) and len(each) == 2 and type(each[0]) in (int, float) and type(each[1]) is bool
        for each in values
    )


@cache
def _first_wrong(kinds: tuple[type, ...]) -> str | None:
    """The first field, in the order of `_KINDS`, of another kind; None where all are right. JSON has seven types."""
    for (name, kind), found in zip(_KINDS.items(), kinds, strict=True):
        if not issubclass(found, kind) or found is bool:
            return name
    return None


def _decoded(line: bytes) -> Json:
    return json.loads(line, parse_constant=_refuse)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


_PLAIN = json.JSONDecoder(parse_constant=_refuse)


def _complete_lines(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield line


def each_record(path: Path) -> Iterator[Record]:
    """Every whole record of a records file, one at a time, a torn last line left out.

    RunError names a line that is broken inside, and one that repeats an earlier one.
    """
    for values in each_fields(path):
        yield _record(values)


def each_fields(path: Path) -> Iterator[dict[str, Any]]:
    """The fields of every record by name, checked and refused as in `each_record`, no record made."""
    first: dict[str, int] = {}
    for number, line in enumerate(_complete_lines(path), 1):
        try:
            values = _checked(line)
        except ValueError as error:
            raise RunError(f"{path}:{number}: {error}: delete this line and run the command again") from error
        if (earlier := first.setdefault(values["key"], number)) != number:
            raise RunError(
                f"{path}:{number}: the same record as line {earlier}: delete this line and run the command again"
            )
        yield values


def read_records(path: Path) -> list[Record]:
    """All whole records of a records file; RunError as for `each_record`."""
    return list(each_record(path))


def load_run(path: Path) -> Run:
    """Header and records of one run folder."""
    run = header_alone(path)
    return dataclasses.replace(run, records=tuple(read_records(path / RECORDS) if (path / RECORDS).exists() else []))


def header_alone(path: Path) -> Run:
    """A run folder without its records; RunError where there is no header."""
    try:
        header = json.loads((path / HEADER).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: no run here: {HEADER} cannot be read ({error})") from error
    if not isinstance(header, dict):
        raise RunError(f"{path / HEADER}: not a header: expected an object")
    return Run(path, header, ())


def seal_of(header: Mapping[str, Json], records_sha256: str, records: int) -> dict[str, Json]:
    """What a finished header says of itself and its records, so that a later change of either shows."""
    rest = {key: value for key, value in header.items() if key != "seal"}
    said = hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
    return {"header_sha256": said, "records_sha256": records_sha256, "records": records}


def find_runs(paths: Iterable[Path]) -> list[Path]:
    """The run folders at or under each path, sorted; RunError for a path that holds none."""
    found: list[Path] = []
    for path in paths:
        here = [path] if (path / HEADER).is_file() else sorted(item.parent for item in path.glob(f"**/{HEADER}"))
        if not here:
            raise RunError(f"{path}: no run here: no {HEADER} in it or under it")
        found += here
    return list(dict.fromkeys(found))


class RunFolder:
    """A run folder open for writing, as a context manager; only one process can hold it."""

    def __init__(self, path: Path, header: Mapping[str, Json]) -> None:
        self.path, self._header = path, dict(header)
        self.done: dict[str, Record] = {}

    def __enter__(self) -> RunFolder:
        with _named(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.path / LOCK, os.O_CREAT | os.O_RDWR, 0o644)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock)
            raise RunError(
                f"{self.path}: another process is writing this run; wait for it or use another --output"
            ) from error
        try:
            self._resume()
            with _named(self.path):
                self._file = os.open(self.path / RECORDS, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)
        except BaseException:
            os.close(self._lock)
            raise
        return self

    def _resume(self) -> None:
        """Check the header that lies there, drop a torn last line, write the header of this run."""
        header = self.path / HEADER
        if header.exists():
            old = load_run_header(header)
            if fingerprint(old.get("identity", {})) != fingerprint(self._header.get("identity", {})):
                raise RunError(f"{header}: made with other settings; use another --output")
            self._header = {**self._header, "created": old["created"], "resumed": int(old.get("resumed", 0)) + 1}
        records = self.path / RECORDS
        if records.exists():
            with _named(self.path):
                _drop_torn_line(records)
            self.done = {record.key: record for record in read_records(records)}
        write_whole(header, [json.dumps(self._header, indent=1, sort_keys=True), "\n"])

    def append(self, record: Record) -> None:
        """One more line, on disk when this returns."""
        line = to_line(record)
        with _named(self.path):
            if os.write(self._file, line) != len(line):
                raise OSError("only a part of the line could be written")
            os.fsync(self._file)
        self.done[record.key] = record

    def sort(self, keys: Sequence[str]) -> None:
        """The records in the order of their keys, whole or as they were."""
        if list(self.done) == list(keys):
            return
        self.done = {key: self.done[key] for key in keys}
        os.close(self._file)
        write_whole(self.path / RECORDS, map(to_line, self.done.values()))
        with _named(self.path):
            self._file = os.open(self.path / RECORDS, os.O_WRONLY | os.O_APPEND)

    def update_header(self, **changes: Json) -> None:
        """Replace keys of the header, whole or not at all."""
        self._header |= changes
        write_whole(self.path / HEADER, [json.dumps(self._header, indent=1, sort_keys=True), "\n"])

    def finish(self, **changes: Json) -> None:
        """The last header of a run: `changes`, and a seal over it and the records."""
        with (self.path / RECORDS).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        self._header |= changes
        self.update_header(seal=seal_of(self._header, digest, len(self.done)))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._file)
        os.close(self._lock)


def load_run_header(path: Path) -> dict[str, Json]:
    """A header file as JSON; RunError when it is not."""
    try:
        header: dict[str, Json] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: cannot be read ({error}); delete the folder or use another --output") from error
    return header


def _drop_torn_line(path: Path) -> None:
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


def write_whole(path: Path, pieces: Iterable[str | bytes]) -> Path:
    """`path`, which holds all pieces, or what it held before: written beside, synced, renamed.

    Text becomes UTF-8. Folders are made as needed. RunError when it cannot be written; nothing half written stays.
    """
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with _named(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as file:
                file.writelines(piece.encode("utf-8") if isinstance(piece, str) else piece for piece in pieces)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
    return path


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """A failed write as RunError that names the file or folder."""
    try:
        yield
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror or error}") from error
