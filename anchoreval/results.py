"""A run folder: header.json first, then records.jsonl, one flushed line per record.

Locked while written; a torn last line is dropped and redone; a failed write is a failed run. A sample that was asked
again has a later line of the same key, which stands for it; the earlier ones are dropped when the run finishes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from anchoreval.errors import RunError
from anchoreval.files import clear_parts, part_of
from anchoreval.header_shape import problem_of
from anchoreval.kept import Kept
from anchoreval.plain_files import MOST_BYTES, content_of, opened, there
from anchoreval.record_line import checked, record_of, unanswered
from anchoreval.record_line import from_line as from_line
from anchoreval.record_line import to_line as to_line
from anchoreval.schema import SCORED, Json, Record
from anchoreval.strict_json import parse

SCHEMA = 2  # of runs that are written
READ = (1, 2)  # of runs that are read
HEADER, RECORDS, LOCK = "header.json", "records.jsonl", "lock"
FIRSTS = "first_answers.jsonl"  # of samples of two steps, until the run finishes


@dataclass(frozen=True, slots=True)
class Run:
    """A run read from disk; `changed` says what of a finished run is not what it was when it finished."""

    path: Path
    header: Mapping[str, Json]
    records: tuple[Record, ...]
    changed: str = ""


def fingerprint(identity: Mapping[str, Json]) -> str:
    """Sixteen hexadecimal digits over a canonical JSON of everything that changes a record."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


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


def load_run(path: Path) -> Run:
    """Header and records of one run folder; RunError for what is not of their shape."""
    run, lines = header_alone(path), Lines(path / RECORDS)
    records = [record_of(values) for _, values in each_fields(lines)] if there(path / RECORDS) else []
    return dataclasses.replace(run, records=tuple(records), changed=changed_since(run.header, lines))


def header_alone(path: Path) -> Run:
    """A run folder without its records; RunError where there is no header, or none of its shape."""
    return Run(path, read_header(path / HEADER), ())


def read_header(path: Path) -> dict[str, Json]:
    """A header file as JSON, each key that is there of its kind; RunError names the first that is not."""
    try:
        header: dict[str, Json] = parse(content_of(path))
    except ValueError as error:
        raise RunError(f"{path}: cannot be read ({error}): no run here") from error
    if problem := problem_of(header):
        raise RunError(f"{path}: {problem}")
    return header


def tell_changed(run: Run, tell: Callable[[str], None]) -> None:
    """Tell of a run that is not what it was when it finished."""
    if run.changed:
        tell(f"{run.path}: {run.changed}: `anchoreval verify` says where")


def changed_since(header: Mapping[str, Json], lines: Lines) -> str:
    """What of a finished run is not as its seal has it, once all `lines` were read; empty where all is, or it has none.

    Runs of format 1 may have none.
    """
    if not header.get("finished"):
        return ""
    seal = header.get("seal")
    if seal is None:
        return "its seal is gone" if header.get("schema") == SCHEMA else ""
    said = seal_of(header, lines.sha256, lines.count)
    parts = [part for part in ("header", "records") if seal.get(f"{part}_sha256") != said[f"{part}_sha256"]]
    if not parts and seal != said:
        parts = ["seal"]
    return f"the {' and the '.join(parts)} changed since it finished (seal)" if parts else ""


def seal_of(header: Mapping[str, Json], records_sha256: str, records: int) -> dict[str, Json]:
    """What a finished header says of itself and its records, so that a later change of either shows."""
    rest = {key: value for key, value in header.items() if key != "seal"}
    said = hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
    return {"header_sha256": said, "records_sha256": records_sha256, "records": records}


def find_runs(paths: Iterable[Path]) -> list[Path]:
    """The run folders at or under each path, sorted; RunError for a path that holds none."""
    found: list[Path] = []
    for path in paths:
        here = [path] if there(path / HEADER) else sorted(item.parent for item in path.glob(f"**/{HEADER}"))
        if not here:
            raise RunError(f"{path}: no run here: no {HEADER} in it or under it")
        found += here
    return list(dict.fromkeys(found))


class RunFolder:
    """A run folder open for writing, as a context manager; only one process can hold it.

    A finished run is left as it is, byte for byte, until a record is appended. `old` is the header that lay there. With
    `same_environment` a run that was begun elsewhere, or with other versions, is refused.
    """

    def __init__(self, path: Path, header: Mapping[str, Json], same_environment: bool = False) -> None:
        self.path, self._header = path, dict(header)
        self.done: dict[str, Record] = {}
        self.old: Mapping[str, Json] | None = None
        self._here: list[Json] = header.get("environments") or []
        self._same_environment = same_environment
        self._keys: dict[tuple[str, str], str] = {}
        self._lines: dict[str, int] = {}  # of records that lay there
        self._written, self._stale = False, 0
        self.firsts = Kept()

    def __enter__(self) -> RunFolder:
        if problem := problem_of(json.loads(json.dumps(self._header))):  # nobody could read it
            raise RunError(f"{self.path}: what is asked for has no place in {HEADER}: {problem}")
        for place in (self.path, self.path.parent):  # of the run and of its model, which boards do not follow
            if place.is_symlink():
                raise RunError(f"{place} is a link: name the folder that it leads to as --output, or move it away")
        with _named(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        with _named(self.path / LOCK):
            self._lock = os.open(self.path / LOCK, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock)
            raise RunError(
                f"{self.path}: another process is writing this run; wait for it or use another --output"
            ) from error
        try:
            for name in (HEADER, RECORDS):
                clear_parts(self.path / name)
            self._resume()
            self.firsts = Kept(self.path / FIRSTS)
            with _named(self.path / RECORDS):
                self._file = os.open(self.path / RECORDS, os.O_CREAT | os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW, 0o644)
        except BaseException:
            os.close(self._lock)
            raise
        return self

    def _resume(self) -> None:
        """Check the header and the seal that lie there, drop a torn last line, go on with that header."""
        header, records = self.path / HEADER, self.path / RECORDS
        if there(header):
            self.old = old = self._old(header)
            if fingerprint(old.get("identity", {})) != fingerprint(self._header.get("identity", {})):
                raise RunError(f"{header}: made with other settings; use another --output")
            _check_seal(self.path, old)
            self._header = {**self._header, **old}
            self._require_known(self._here)
        if there(records):
            opened(records).close()
            with _named(self.path):
                _drop_torn_line(records)
            lines = Lines(records)
            numbered = [(number, record_of(values)) for number, values in each_fields(lines)]
            self.done = {record.key: record for _, record in numbered}
            self._keys = {(record.sample_id, record.arm): record.key for record in self.done.values()}
            self._lines = {record.key: number for number, record in numbered}
            self._stale = lines.count - len(self.done)
        if not (self.old or {}).get("finished"):
            self._begin()

    @staticmethod
    def _old(header: Path) -> dict[str, Json]:
        try:
            return read_header(header)
        except RunError as error:
            raise RunError(f"{error}; delete the folder or use another --output") from error

    def _begin(self) -> None:
        """Write the header of a run that is under way."""
        if self.old is not None:
            if self.old.get("finished") and self.old.get("seal") is None and self.old.get("schema") == SCHEMA:
                raise RunError(
                    f"{self.path}: its seal is gone: `anchoreval verify {self.path}` says more; use another --output"
                )
            self._header["resumed"] = int(self.old.get("resumed", 0)) + 1
        for name in ("finished", "seal"):
            self._header.pop(name, None)
        self._written = True
        self.update_header()

    @property
    def unordered(self) -> bool:
        """Whether records of a run that had finished, or that were asked again, stand behind those that followed."""
        old = self.old or {}
        return self._written and (self._stale > 0 or bool(old.get("finished") or old.get("grown")))

    @property
    def environment(self) -> int | None:
        """The index, in the header's `environments`, of what computes in this process; None where it does not say."""
        return self.environment_of(self._here[0]) if self._here else None

    def environment_of(self, environment: Mapping[str, Json]) -> int:
        """The index of an environment in the header, added where it is new; RunError where it has to be the same."""
        known: list[Json] = self._header.get("environments") or []
        if environment not in known:
            self._require_known([environment])
            known = [*known, dict(environment)]
            self.update_header(environments=known)
        return known.index(environment)

    def _require_known(self, environments: Sequence[Mapping[str, Json]]) -> None:
        known: list[Json] = self._header.get("environments") or []
        if self._same_environment and known and (other := [each for each in environments if each != known[0]]):
            raise RunError(f"{self.path}: --same-environment: where it was begun, {_apart(known[0], other[0])}")

    def line_of(self, key: str) -> int:
        """The number of the line on which a record of this key lay when the folder was opened; 0 for none."""
        return self._lines.get(key, 0)

    def answered(self, key: str) -> bool:
        """Whether the record of this key is there and is not to be asked again."""
        return key in self.done and self.done[key].outcome in SCORED

    def holds(self, sample_id: str, arm: str) -> bool:
        """Whether there is a record of this sample under this arm."""
        return (sample_id, arm) in self._keys

    def of(self, sample_id: str, arm: str) -> Record:
        """The record of a sample under an arm; RunError where there is none."""
        try:
            return self.done[self._keys[sample_id, arm]]
        except KeyError:
            raise RunError(f"{self.path}: {sample_id} under {arm} was left out: run the same command again") from None

    def waiting(self, arm: str, keys: Mapping[str, str]) -> set[str]:
        """Of samples, by id with their keys, those that have no answer under an arm.

        RunError where a record of the same sample was made of another prompt.
        """
        for name, key in keys.items():
            if self._keys.get((name, arm), key) != key:
                where = f"{self.path / RECORDS}:{self.line_of(self._keys[name, arm])}"
                raise RunError(
                    f"{where}: {name} under {arm} stands there with another prompt or engine than this version makes "
                    "of the same settings: use another --output; where the line was edited or comes from another run, "
                    "delete it and give the same command again"
                )
        return {name for name, key in keys.items() if not self.answered(key)}

    def failed(self, key: str) -> bool:
        """Whether the last line of this key says that it cost workers their life, or failed otherwise."""
        return key in self.done and self.done[key].outcome == "failed"

    def append(self, record: Record) -> None:
        """One more line, on disk when this returns; none where the sample failed again in the same way."""
        before = self.done.get(record.key)
        if before is not None and (before.outcome, before.why) == (record.outcome, record.why):
            return
        if not self._written:
            self._begin()
        line = to_line(record)
        with _named(self.path):
            _write_line(self._file, line)
        self._stale += before is not None
        self.done[record.key] = record
        self._keys[record.sample_id, record.arm] = record.key

    def drop(self, keys: Sequence[str]) -> None:
        """Leave out records that have no answer and belong to no sample that is still asked, once the run finishes."""
        if keys and not self._written:
            self._begin()
        for key in keys:
            del self.done[key]
        self._stale += len(keys)

    def sort(self, keys: Sequence[str]) -> None:
        """The records in the order of their keys, without lines that later ones replaced, whole or as they were."""
        if list(self.done) == list(keys) and not self._stale:
            return
        self.done = {key: self.done[key] for key in keys}
        os.close(self._file)
        write_whole(self.path / RECORDS, map(to_line, self.done.values()))
        self._stale = 0
        with _named(self.path):
            self._file = os.open(self.path / RECORDS, os.O_WRONLY | os.O_APPEND)

    def update_header(self, **changes: Json) -> None:
        """Replace keys of the header, whole or not at all; of a finished run once a record is appended to it."""
        self._header |= changes
        if self._written:
            write_whole(self.path / HEADER, [json.dumps(self._header, indent=1, sort_keys=True), "\n"])

    def finish(self, **changes: Json) -> None:
        """The last header of a run: `changes`, and a seal over it and the records; a finished one stays as it was."""
        if not self._written:
            return
        self.sort(list(self.done))
        with (self.path / RECORDS).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        (self.path / FIRSTS).unlink(missing_ok=True)
        self._header |= changes
        self.update_header(seal=seal_of(self._header, digest, len(self.done)))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._file)
        os.close(self._lock)


def _check_seal(path: Path, header: Mapping[str, Json]) -> None:
    """RunError where a finished run is not what it was when it finished."""
    lines = Lines(path / RECORDS)
    if header.get("finished") and there(lines.path):
        for _ in lines:
            pass
    if (changed := changed_since(header, lines)) and header.get("seal") is not None:
        raise RunError(f"{path}: {changed}: `anchoreval verify {path}` says where; use another --output")


def _write_line(file: int, line: bytes) -> None:
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


def _apart(one: Mapping[str, Json], other: Mapping[str, Json]) -> str:
    """The first thing in which two environments differ, in words."""
    name = next(name for name in sorted(one.keys() | other.keys()) if one.get(name) != other.get(name))
    return f"{name} was {one.get(name)}, here it is {other.get(name)}"


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
    clear_parts(path)
    part = part_of(path)
    try:
        with _named(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            part.unlink(missing_ok=True)  # of a killed process of the same number
            with part.open("xb") as file:  # never through a link that lies there
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
        why = "it is a link: delete it" if error.errno == errno.ELOOP and path.is_symlink() else error.strerror
        raise RunError(f"cannot write {path}: {why or error}") from error
