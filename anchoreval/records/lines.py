"""Records: made with their keys, as one JSON line in ASCII of records.jsonl each, and read back line after line.

Runs and verification both make them here, and nothing else makes a record. A line with a missing field, or with a field
of another shape, is refused.

The log-probabilities of the references' tokens stand in a second file of the run, with a line for each record that has
any: the key of its record, and natural log-probabilities as base64 of little-endian float32. It is written before its
record, so a kill may leave an extra line but never lose one. If several lines have one key, the last counts. Runs of
older versions have no such file.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import hashlib
import json
import math
import os
import sys
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from anchoreval.arms.arm import Arm
from anchoreval.errors import RunError
from anchoreval.files import MOST_BYTES, opened, there, write_errors, write_whole
from anchoreval.files.strict_json import (
    FLAG,
    OBJECT,
    TEXT,
    Shape,
    brief,
    either,
    list_of,
    number,
    object_of,
    or_null,
    parse,
    row_of,
    whole,
    whole_characters,
    word,
)
from anchoreval.prompt import document_tokens
from anchoreval.schema import (
    OUTCOMES,
    SCORED,
    ChoiceScore,
    Finish,
    Output,
    Record,
    Request,
    Sample,
    Score,
    outcome_of,
)  # fmt: skip
from anchoreval.suites import likeliest

RECORDS = "records.jsonl"
LOGPROBS = "logprobs.jsonl"
_LOGPROB_KINDS = {"key": str, "logprobs": str}
_BIG = sys.byteorder == "big"
Values = array  # typecode "f": float32
LONGEST = 2**27  # largest length in tokens
_TALLY, _LOGPROB = whole(), or_null(number())
_NAMES = ("key", "sample_id", "task", "arm", "prompt_sha256")  # these texts must have no unpaired surrogate
#: Every field that each line has.
_FIELDS: dict[str, Shape] = {
    **dict.fromkeys((*_NAMES, "output"), TEXT), "length": whole(0, LONGEST),
    **dict.fromkeys(("index", "prompt_tokens", "output_tokens", "reference_tokens"), _TALLY),
    "references": list_of(TEXT), "facts": OBJECT, "finish": word(*get_args(Finish)), "score": or_null(number(0, 1)),
    "why": or_null(TEXT), "reference_logprob": _LOGPROB, "seconds": number(0),
}  # fmt: skip
#: Fields that a line may lack: `choices` in a sample without choices, the others in format 1.
_OPTIONAL: dict[str, Shape] = {
    "choices": list_of(row_of(number(), FLAG)), "outcome": word(*OUTCOMES), "environment": whole(0, 10**6),
}  # fmt: skip
_RECORD, _KNOWN = object_of(_FIELDS, _OPTIONAL), frozenset(_FIELDS) | frozenset(_OPTIONAL)
#: Facts that scorers read; a sample has the facts of its own scorer.
_FACTS: dict[str, Shape] = {
    "question": either("a whole number or text", whole(), TEXT),
    "labels": either("a whole number or a list of texts", whole(), list_of(TEXT)),
    "all_classes": list_of(TEXT), "doc": OBJECT, "shots": whole(0, 10**6),
    "lm_eval": object_of({"task": TEXT, "metric": TEXT, "filter": TEXT}, {"folder": TEXT}),
}  # fmt: skip
_ORDER = tuple(part.name for part in dataclasses.fields(Record))
_KNOWN_FACTS = object_of({"facts": object_of({}, _FACTS)})


def keys_of(request: Request, arms: Iterable[Arm], engine: str) -> list[str]:
    """Return for each arm the SHA-256 over prompt tokens, reference, decoding, arm and engine.

    The engine's fingerprint has the weights. Document boundaries count only under arms that act on documents.
    """
    tokens = hashlib.sha256()
    for ids in (request.token_ids, request.reference_ids):
        packed = array("i", [len(ids), *ids])  # hashed as little-endian integers of 32 bits
        if sys.byteorder == "big":
            packed.byteswap()
        tokens.update(packed.tobytes())
    decoding = {"max_new_tokens": request.max_new_tokens, "stop": request.stop, "greedy": True}
    if request.choices:
        decoding |= {"choices": [(choice.token_ids, choice.counted) for choice in request.choices]}
    if request.end_ids:
        decoding |= {"end_ids": request.end_ids, "min_new_tokens": request.min_new_tokens}
    keys, parted = [], None
    for arm in arms:
        if not arm.stock and parted is None:
            parted = tokens.copy()
            parted.update(json.dumps([request.segment_ids, request.roles]).encode())
        digest = (tokens if arm.stock or parted is None else parted).copy()
        digest.update(json.dumps([request.sample_id, arm.fingerprint(), engine, decoding]).encode())
        keys.append(digest.hexdigest())
    return keys


def to_record(
    key: str, sample: Sample, request: Request, arm: Arm, output: Output, score: Score, environment: int | None = None,
    other: Record | None = None,
) -> Record:  # fmt: skip
    """Return the record of one answered request.

    `other` is a record of the same prompt under another arm: what the two share is then not computed again, as a prompt
    may be long.
    """
    reference, text = output.reference_logprob, output.text
    if output.choices:
        reference = output.choices[request.gold].logprob if request.gold is not None else None
        text = sample.choices[likeliest(output.choices)].text
    documents = other.facts["document_tokens"] if other else document_tokens(request)
    return Record(
        key=key,
        sample_id=sample.id,
        task=sample.task,
        length=sample.length,
        index=sample.index,
        arm=arm.name,
        prompt_sha256=other.prompt_sha256 if other else sample.prompt_sha256,
        prompt_tokens=len(request.token_ids),
        references=sample.references,
        facts={**sample.facts, "document_tokens": documents, **output.facts},
        output=text,
        output_tokens=len(output.token_ids),
        finish=output.finish,
        score=score.value,
        why=score.why,
        reference_logprob=reference,
        reference_tokens=request.reference_tokens,
        seconds=round(output.seconds, 4),
        choices=output.choices,
        outcome=output.outcome,
        environment=environment,
    )


def to_line(record: Record) -> bytes:
    """Return the record as one JSON line in ASCII; all other characters are escaped, so any text survives.

    A record without environment (format 1) has no outcome on its line if the outcome follows from the other fields.
    """
    values = {name: getattr(record, name) for name in _ORDER}  # not `asdict`, which copies deeply
    if not record.choices:
        del values["choices"]
    if record.environment is None:
        del values["environment"]
        if record.outcome == outcome_of(record.finish, record.output, bool(record.choices)):
            del values["outcome"]
    return (json.dumps(values, ensure_ascii=True, allow_nan=False) + "\n").encode("ascii")


def from_line(line: bytes) -> Record:
    """Return the record of one line; raise ValueError if the line is torn or has other fields."""
    return record_of(checked(line))


def record_of(values: Mapping[str, Any]) -> Record:
    """Return the record of checked fields."""
    lists = {"references": tuple(values["references"])}
    if "choices" in values:
        lists["choices"] = tuple(ChoiceScore(*score) for score in values["choices"])
    return Record(**{**values, **lists})


def checked(line: bytes) -> dict[str, Any]:
    """Return the fields of one line; raise ValueError with the first field that is missing or has the wrong shape."""
    values: Any = parse(line)
    if not isinstance(values, dict):
        raise ValueError("not a record")
    if foreign := values.keys() - _KNOWN:
        raise ValueError(f"not a record: it has a field {brief(min(foreign))}")
    wrong = _RECORD(values)
    if wrong is None and _FACTS.keys() & values["facts"].keys():
        wrong = _KNOWN_FACTS(values)
    if wrong is not None:
        name, *inside = wrong.place
        if name not in values:
            raise ValueError(f"not a record: {name} is not there")
        at = f" at {' > '.join(inside)!a}" if inside else ""
        raise ValueError(f"not a record: {name} is {brief(values[name])}, expected {wrong.expected}{at}")
    if b"\\u" in line:
        for name in _NAMES:
            if not whole_characters(values[name]):
                raise ValueError(f"not a record: {name} is {brief(values[name])}, expected whole characters")
    return values


def unanswered(values: Mapping[str, Any]) -> bool:
    """Return True if checked fields have an outcome that is not scored, so that the sample is asked again."""
    outcome = values.get("outcome") or ("failed" if values["finish"] == "error" else "answered")
    return outcome not in SCORED


@dataclass
class Lines:
    """Iterator over the lines of a records file with their numbers from 1; a torn last line is skipped unless `torn`.

    After the iteration `sha256` is the hash of the whole file and `count` the number of its lines. Raise RunError if
    the path is no file in its folder, or a line is too long.
    """

    path: Path
    torn: bool = False
    count: int = 0
    sha256: str = hashlib.sha256().hexdigest()

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        digest = hashlib.sha256()
        try:
            with opened(self.path) as file:
                while line := file.readline(MOST_BYTES + 1):
                    digest.update(line)
                    self.count += 1
                    if len(line) > MOST_BYTES:
                        raise RunError(f"{self.path}:{self.count}: longer than {MOST_BYTES >> 20} MiB: not a record")
                    if self.torn or line.endswith(b"\n"):
                        yield self.count, line
        except OSError as error:
            raise RunError(f"{self.path}: cannot be read ({error.strerror or error})") from error
        self.sha256 = digest.hexdigest()


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
    for at, line in lines:
        try:
            values = checked(line)
        except ValueError as error:
            raise RunError(f"{path}:{at}: {error}: delete this line and run the command again") from error
        if unanswered(values) and values["key"] not in first:
            last = _last_lines(path) if last is None else last
            if last.get(values["key"], at) > at:
                continue
        if (earlier := first.setdefault(values["key"], at)) != at:
            raise RunError(
                f"{path}:{at}: the same record as line {earlier}: delete this line and run the command again"
            )
        yield at, values


def _last_lines(path: Path) -> dict[str, int]:
    """Return key -> number of its last line; broken lines are skipped."""
    last: dict[str, int] = {}
    for at, line in Lines(path):
        with contextlib.suppress(ValueError):
            last[checked(line)["key"]] = at
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
                    key, _ = _of_logprobs_line(line)
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
            return _of_logprobs_line(file.readline(MOST_BYTES))[1]

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
                write_line(file, _logprobs_line(key, logprobs))
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
        write_whole(self.path, (_logprobs_line(key, self[key]) for key in wanted))
        self.__dict__ |= vars(TokenLogprobs(self.path.parent))


def logprobs_sha256(folder: Path) -> str | None:
    """Return the SHA-256 of the file in a run folder; None if there is no file."""
    if not there(folder / LOGPROBS):
        return None
    with opened(folder / LOGPROBS) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]


def _logprobs_line(key: str, logprobs: Sequence[float]) -> bytes:
    values = array("f", logprobs)
    if _BIG:
        values.byteswap()
    packed = base64.b64encode(values.tobytes()).decode()
    return json.dumps({"key": key, "logprobs": packed}, separators=(",", ":")).encode() + b"\n"


def _of_logprobs_line(line: bytes) -> tuple[str, Values[float]]:
    """Return key and values of a line; raise ValueError for a line of another shape."""
    if len(line) > MOST_BYTES:
        raise ValueError(f"longer than {MOST_BYTES >> 20} MiB")
    content = parse(line)
    if not isinstance(content, dict) or {name: type(value) for name, value in content.items()} != _LOGPROB_KINDS:
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
