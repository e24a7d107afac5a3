"""`RunFolder`: a run folder open for writing. header.json is written first, then records.jsonl, one line per record.

The folder is locked while it is open. A torn last line is dropped, and its sample is asked again. A failed write fails
the run. A sample that was asked again gets another line with the same key; the last line counts, and the earlier ones
are dropped when the run finishes.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType

from anchoreval.errors import RunError
from anchoreval.files import clear_parts, opened, sha256_of, there, write_errors, write_whole
from anchoreval.records.header import HEADER, SCHEMA, Header, fingerprint, problem_of, read_header
from anchoreval.records.kept import Kept
from anchoreval.records.lines import (
    LOGPROBS,
    RECORDS,
    Lines,
    TokenLogprobs,
    drop_torn_line,
    each_fields,
    logprobs_sha256,
    record_of,
    to_line,
    write_line,
)
from anchoreval.records.run import Run, load_run, require_seal, seal_of
from anchoreval.schema import SCORED, Json, Record

LOCK = "lock"
FIRSTS = "first_answers.jsonl"  # first answers of two-step samples; deleted when the run finishes


class RunFolder:
    """A run folder open for writing, as a context manager; only one process can hold it.

    A finished run stays as it is, byte for byte, until a record is appended.

    `done`              key -> record, for all records in the folder
    `old`               the header that was in the folder when it was opened; None in a new folder
    `same_environment`  refuses a run that was begun on another machine or with other versions
    """

    def __init__(self, path: Path, header: Mapping[str, Json], same_environment: bool = False) -> None:
        self.path, self._header = path, dict(header)
        self.done: dict[str, Record] = {}
        self.old: Header | None = None
        self._here: list[Json] = header.get("environments") or []
        self._same_environment = same_environment
        self._keys: dict[tuple[str, str], str] = {}
        self._lines: dict[str, int] = {}  # key -> number of the line, for records from before the folder was opened
        self._written, self._stale = False, 0

    def __enter__(self) -> RunFolder:
        if problem := problem_of(self._header):  # no reader would accept this header
            raise RunError(f"{self.path}: what is asked for has no place in {HEADER}: {problem}")
        for place in (self.path, self.path.parent):  # folders of run and model: boards follow no links
            if place.is_symlink():
                raise RunError(f"{place} is a link: name the folder that it leads to as --output, or move it away")
        with write_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        with write_errors(self.path / LOCK):
            self._lock = os.open(self.path / LOCK, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock)
            raise RunError(
                f"{self.path}: another process is writing this run; wait for it or use another --output"
            ) from error
        try:
            for name in (HEADER, RECORDS, LOGPROBS):
                clear_parts(self.path / name)
            self._resume()
            with write_errors(self.path / RECORDS):
                self._file = os.open(self.path / RECORDS, os.O_CREAT | os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW, 0o644)
        except BaseException:
            os.close(self._lock)
            raise
        return self

    def _resume(self) -> None:
        """Check the header and seal in the folder, drop a torn last line, and continue with that header."""
        header, records = self.path / HEADER, self.path / RECORDS
        if there(header):
            try:
                self.old = old = read_header(header)
            except RunError as error:
                raise RunError(f"{error}; delete the folder or use another --output") from error
            if fingerprint(old.get("identity", {})) != fingerprint(self._header.get("identity", {})):
                raise RunError(f"{header}: made with other settings; use another --output")
            require_seal(self.path, old)
            self._header |= old
            self._require_known(self._here)
        for path in (records, self.path / LOGPROBS):
            if there(path):
                opened(path).close()
                with write_errors(self.path):
                    drop_torn_line(path)
        self._logprobs = TokenLogprobs(self.path)
        if there(records):
            lines = Lines(records)
            numbered = [(number, record_of(values)) for number, values in each_fields(lines)]
            kept = []
            for _, record in numbered:  # a text was scored, and the line of its log-probabilities is lost: asked again
                scored = record.finish == "scored" and record.outcome in SCORED
                if not scored or record.key in self._logprobs:
                    kept.append(record)
            if len(kept) < len(numbered):
                write_whole(records, map(to_line, kept))
                numbered = list(enumerate(kept, 1))
            self.done = {record.key: record for _, record in numbered}
            self._keys = {(record.sample_id, record.arm): record.key for record in self.done.values()}
            self._lines = {record.key: number for number, record in numbered}
            self._stale = lines.count - len(self.done)
        if not (self.old or Header()).get("finished"):
            self._begin()

    def _begin(self) -> None:
        """Write the header of a run in progress."""
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
        """True if new records came after the run had finished or repeat a sample, so that they have to be sorted."""
        old = self.old or Header()
        return self._written and (self._stale > 0 or bool(old.get("finished") or old.get("grown")))

    def environment_of(self, environment: Mapping[str, Json] | None) -> int | None:
        """Return the index of an environment in the header's `environments`; add a new one.

        None stands for this process's, and is returned if that is not known. Raise RunError for a new one if the run
        must stay in the same environment.
        """
        if environment is None:
            if not self._here:
                return None
            environment = self._here[0]
        known: list[Mapping[str, Json]] = self._header.get("environments") or []
        if environment not in known:
            self._require_known([environment])
            known = [*known, dict(environment)]
            self.update_header(environments=known)
        return known.index(environment)

    def _require_known(self, environments: Sequence[Mapping[str, Json]]) -> None:
        known = self._header.get("environments") or []
        if self._same_environment and known and (other := [each for each in environments if each != known[0]]):
            first, here = known[0], other[0]
            name = next(name for name in sorted(first.keys() | here.keys()) if first.get(name) != here.get(name))
            apart = f"{name} was {first.get(name)}, here it is {here.get(name)}"
            raise RunError(f"{self.path}: --same-environment: where it was begun, {apart}")

    @cached_property
    def firsts(self) -> Kept:
        """The kept first answers of two-step samples."""
        return Kept(self.path / FIRSTS)

    def line_of(self, key: str) -> int:
        """Return the line number that the record of this key had when the folder was opened; 0 if it had none."""
        return self._lines.get(key, 0)

    def answered(self, key: str) -> bool:
        """Return True if the record of this key exists and has an answer that is scored."""
        return key in self.done and self.done[key].outcome in SCORED

    def holds(self, sample_id: str, arm: str) -> bool:
        """Return True if there is a record of this sample under this arm."""
        return (sample_id, arm) in self._keys

    def of(self, sample_id: str, arm: str) -> Record:
        """Return the record of a sample under an arm; raise RunError if there is none."""
        try:
            return self.done[self._keys[sample_id, arm]]
        except KeyError:
            raise RunError(f"{self.path}: {sample_id} under {arm} was left out: run the same command again") from None

    def waiting(self, arm: str, keys: Mapping[str, str]) -> set[str]:
        """Return the ids of the samples that have no answer under an arm; `keys` maps ids to record keys.

        Raise RunError if a sample has a record with another key, that is, of another prompt or engine.
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
        """Return True if the last record of this key failed, for example because workers died on it."""
        return key in self.done and self.done[key].outcome == "failed"

    def append(self, record: Record, logprobs: Sequence[float] | None = None) -> None:
        """Append a record; it is on disk when this returns. Skip a sample that failed again in the same way.

        `logprobs` are the log-probabilities of the reference's tokens. They are written before the record.
        """
        before = self.done.get(record.key)
        if before is not None and (before.outcome, before.why) == (record.outcome, record.why):
            return
        if not self._written:
            self._begin()
        if logprobs:
            self._logprobs.append(record.key, logprobs)
        line = to_line(record)
        with write_errors(self.path):
            write_line(self._file, line)
        self._stale += before is not None
        self.done[record.key] = record
        self._keys[record.sample_id, record.arm] = record.key

    def drop(self, keys: Sequence[str]) -> None:
        """Drop these records, which have no answer and are not asked again; their lines go when the run finishes."""
        if keys and not self._written:
            self._begin()
        for key in keys:
            del self.done[key]
        self._stale += len(keys)

    def sort(self, keys: Sequence[str]) -> None:
        """Rewrite the records file in the order of `keys`, without replaced lines; an atomic write."""
        if list(self.done) == list(keys) and not self._stale:
            return
        self.done = {key: self.done[key] for key in keys}
        os.close(self._file)
        write_whole(self.path / RECORDS, map(to_line, self.done.values()))
        self._stale = 0
        with write_errors(self.path):
            self._file = os.open(self.path / RECORDS, os.O_WRONLY | os.O_APPEND)

    def update_header(self, **changes: Json) -> None:
        """Change keys of the header, in an atomic write; for a finished run, only once a record is appended."""
        self._header |= changes
        if self._written:
            write_whole(self.path / HEADER, [json.dumps(self._header, indent=1, sort_keys=True), "\n"])

    def finish(self, **changes: Json) -> Run:
        """Write the final header with `changes` and a seal over header and records; return the run on disk.

        A run that was already finished and got no new record stays as it was.
        """
        if not self._written:
            return load_run(self.path)
        if self._stale:
            self.sort(list(self.done))
        self._logprobs.settle(list(self.done))
        with write_errors(self.path / FIRSTS):
            (self.path / FIRSTS).unlink(missing_ok=True)
        self._header |= changes
        digest = sha256_of(self.path / RECORDS)
        self.update_header(seal=seal_of(self._header, digest, len(self.done), logprobs_sha256(self.path)))
        header = json.loads(json.dumps(self._header, sort_keys=True))  # in the order in which it is read
        return Run(self.path, Header(header), tuple(self.done.values()))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._file)
        os.close(self._lock)
