"""Verify that a run on disk is what its header says: make prompts again, score outputs again, account for every line.

Outputs, log-probabilities and seconds cannot be made again without the model. The seal of a finished run covers them;
runs from before the seal have none, and a notice says so. Records are read as a stream: a run of a million records
needs memory for keys and counts only.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from array import array
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from anchoreval.errors import AnchorEvalError, RunError
from anchoreval.files import there
from anchoreval.records.header import HEADER
from anchoreval.records.lines import LOGPROBS, RECORDS, Lines, TokenLogprobs, from_line, keys_of, to_record
from anchoreval.records.rescore import earned, same, scorers_of
from anchoreval.records.run import Run, changed_parts, header_alone, seal_of
from anchoreval.runs.identity import changed_files
from anchoreval.runs.prompts import Second
from anchoreval.runs.rebuild import Remake
from anchoreval.runs.units import FIRST, FIRST_FACTS, facts_of
from anchoreval.runs.verify.header import header_differences, unmade
from anchoreval.runs.verify.rounds import in_rounds, rounds_taken, source_bet_on, verdict_differences
from anchoreval.schema import (
    OUTPUT_FACTS,
    SCORED,
    SILENT,
    Json,
    Output,
    Progress,
    Record,
    Sample,
    Score,
    uses_generated,
)

KEY_BYTES = 32


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report: the file and line, and what is wrong. With `differs` False it is only a notice.

    `unreadable` is True for a header of another shape; nothing else of such a run can be compared.
    """

    where: str
    what: str
    differs: bool = True
    unreadable: bool = False

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


#: Fields of a record that do not follow from the prompt and are taken from the line -> what else reveals a change.
NOT_REMADE: Mapping[str, str] = {
    **dict.fromkeys(("output", "output_tokens", "finish", "choices", "outcome"), "the model's answer: the seal"),
    **dict.fromkeys(("reference_logprob", "seconds"), "what the machine gave: the seal"),
    "environment": "who computed the line: the seal",
    **dict.fromkeys(("score", "why"), "what the answer earns: it is scored again"),
}
#: The message for a field that differs. For all other fields the message has both values.
WORDS: Mapping[str, str] = {
    "key": "key is not that of this prompt, arm and engine",
    "prompt_sha256": "prompt_sha256 is not that of the prompt made again",
    "references": "references are not those of the sample made again",
}
NO_OUTPUT = Output("", "", (), "stop", None, 0.0)


@dataclass(frozen=True, slots=True)
class Made:
    """A sample made again: its record before any output, pressed, and the number `group` of its group in the plan.

    `then` is the sample without its prompt if it has a second step; `source` is what the run's stopping rule bets on.
    """

    record: Record
    group: int
    then: Sample | None = None
    source: Hashable = None


def pressed(record: Record) -> Record:
    """Return the record with digests in place of its references and facts, which may be long."""
    facts = {name: _digest(value) for name, value in record.facts.items()}
    return replace(record, references=(_digest(list(record.references)).hex(),), facts=facts)


def _digest(value: Json) -> bytes:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).digest()[:16]


@dataclass(slots=True)
class Expected:
    """Every (sample, arm) of a plan with its number, its key, and the line on which it was seen (0: not yet)."""

    arms: dict[str, int]
    numbers: dict[str, int] = field(default_factory=dict)
    made: list[Made] = field(default_factory=list)
    keys: bytearray = field(default_factory=bytearray)
    lines: array[int] = field(default_factory=lambda: array("Q"))

    def add(self, made: Made, keys: list[str]) -> None:
        """Add a sample with its key under every arm."""
        self.numbers[made.record.sample_id] = len(self.made)
        self.made.append(made)
        self.keys += b"".join(map(bytes.fromhex, keys))
        self.lines.extend([0] * len(keys))


def expected_of(remake: Remake, progress: Progress = SILENT) -> Expected:
    """Return what the run's records must hold, made from its header alone."""
    expected = Expected({arm.name: number for number, arm in enumerate(remake.spec.arms)})
    engine = remake.header.identity.engine
    for group, sample in rounds_taken(remake) if remake.header.until else groups(remake):
        request = remake.prompts.request(remake.tasks[sample.task], sample)
        keys = keys_of(request, remake.spec.arms, engine)
        bet_on = source_bet_on(remake, sample) if remake.header.until else None
        blank = pressed(to_record("", sample, request, remake.spec.arms[0], NO_OUTPUT, Score(None)))
        expected.add(Made(blank, group, replace(sample, segments=()) if sample.then else None, bet_on), keys)
        progress(1)
    return expected


def groups(remake: Remake) -> Iterator[tuple[int, Sample]]:
    """Yield (number of the group, sample) for every sample of a run without a stopping rule."""
    first, at, group = None, 0, -1
    for sample in remake.samples():
        if first != (sample.task, sample.length):
            first, at = (sample.task, sample.length), 0
        group += at % remake.spec.group == 0
        at += 1
        yield group, sample


def expected_record(record: Record, made: Made, key: str, second: Second) -> Record:
    """Return what the record of a sample must be, pressed; arm and output are taken from `record`."""
    not_remade = {name: getattr(record, name) for name in NOT_REMADE}
    whole = made.record if made.then is None else _with_first_answer(made.record, made.then, record, second)
    return replace(whole, key=key, arm=record.arm, **not_remade)


def _with_first_answer(blank: Record, sample: Sample, record: Record, second: Second) -> Record:
    """Return `blank` with the facts of the first answer of `record`; `blank` itself if there is no answer.

    The length and finish of the first answer cannot be made again and are taken from `record`.
    """
    first = record.facts.get(FIRST)
    if not isinstance(first, str):
        return blank
    first_facts = {name: record.facts.get(name) for name in FIRST_FACTS}
    try:
        prompt, request = second(sample, first)
    except (AnchorEvalError, TypeError, UnicodeError):  # no tokenizer takes the text
        return blank
    facts = {name: _digest(value) for name, value in (first_facts | facts_of(prompt, request)).items()}
    return replace(blank, facts={**blank.facts, **facts}, reference_tokens=request.reference_tokens)


def record_differences(record: Record, expected: Record) -> Iterator[str]:
    """Yield the fields of a record that differ from the expected record; only facts that the record has count."""
    actual = pressed(record)
    for name in (each.name for each in fields(Record) if each.name != "facts"):
        if getattr(actual, name) != getattr(expected, name):
            yield WORDS.get(name) or f"{name} is {getattr(record, name)}, made again {getattr(expected, name)}"
    for name, value in actual.facts.items():
        if name not in OUTPUT_FACTS and expected.facts.get(name) != value:
            yield f"fact {name!r} is not that of the sample made again"


class Reading:
    """One pass over a records file that compares it with what is expected."""

    def __init__(self, run: Run, expected: Expected, resumed: int, second: Second) -> None:
        self.run, self.expected, self.resumed, self._second = run, expected, resumed, second
        self.path, self._scorers = run.path / RECORDS, scorers_of(run.header)
        self.records, self.lines, self.sha256 = 0, 0, ""
        self._rank, self._backwards, self._bare, self._again = -1, 0, 0, 0
        self._lost: set[int] = set()
        self._behind = 0
        self.logprobs, self._referred, self._without = TokenLogprobs(run.path), set[str](), 0
        self._generated: dict[str, int] = {}  # task -> the first line that holds generated text
        self._scores = array("d", [math.nan] * len(expected.lines))

    def findings(self, progress: Progress = SILENT) -> Iterator[Finding]:
        """Yield every difference of every line, then the notices on the whole file."""
        lines = Lines(self.path, torn=True)
        if there(self.path):
            for self.lines, line in lines:
                for what in self._line(line):
                    yield Finding(f"{self.path}:{self.lines}", what)
                progress(1)
        self.sha256 = lines.sha256
        said = self.run.header.get("incomparable")
        known = said.keys() if isinstance(said, dict) else self._generated.keys()
        for task in self._generated.keys() - known:
            what = f"{task} holds generated text, and the header does not say that it is not comparable"
            yield Finding(f"{self.path}:{self._generated[task]}", what)
        if self._backwards and self._backwards <= self.resumed:
            yield Finding(
                str(self.path), f"{self._backwards} records out of order: the run was resumed or many compute it", False
            )
        if self._behind:
            said = f"{self._behind} records lie behind their cell's verdict, which came earlier once more had answers"
            yield Finding(str(self.path), said, False)
        if self._again:
            yield Finding(str(self.path), f"{self._again} records stand there again: they had no answer", False)
        if self._bare:
            yield Finding(str(self.path), f"{self._bare} records lack facts that runs of today have", False)
        if self.run.header.get("finished") and (alone := len(self.logprobs) - len(self._referred)):
            yield Finding(str(self.run.path / LOGPROBS), f"{alone} lines are of no record", False)
        if self._without and self.logprobs:
            what = f"{self._without} records have no line in {LOGPROBS}: made before such lines were kept, or lost"
            yield Finding(str(self.path), what, False)

    def _line(self, line: bytes) -> Iterator[str]:
        if not line.endswith(b"\n"):
            yield "torn last line: running the same command again drops and redoes it"
            return
        try:
            record = from_line(line)
        except ValueError as error:
            yield f"corrupt line: {error}"
            return
        self.records += 1
        if record.key in self.logprobs:
            self._referred.add(record.key)
            values, logprob = self.logprobs[record.key], record.reference_logprob
            name, total = f"{record.sample_id} {record.arm}", math.fsum(values)
            if len(values) != record.reference_tokens:
                counted = f"{len(values)} log-probabilities in {LOGPROBS}"
                yield f"{name}: {counted}, reference_tokens is {record.reference_tokens}"
            elif logprob is None or abs(total - logprob) > 2**-22 * math.fsum(map(abs, values)):
                added = f"the log-probabilities in {LOGPROBS} add up to {total:.9g}"
                yield f"{name}: {added}, reference_logprob is {logprob}"
        else:
            self._without += record.reference_logprob is not None and not record.choices
        if uses_generated(record.facts):
            self._generated.setdefault(record.task, self.lines)
        expected = self.expected
        if record.sample_id not in expected.numbers:
            if self._is_behind(record):
                self._behind += 1
            else:
                yield f"foreign: the run asks for no sample {record.sample_id}"
        elif record.arm not in expected.arms:
            yield f"foreign: the run has no arm {record.arm}"
        else:
            sample, arm = expected.numbers[record.sample_id], expected.arms[record.arm]
            yield from self._known(record, sample, arm)

    def _is_behind(self, record: Record) -> bool:
        """Return True if the run asked for the record's sample before a verdict came earlier, in a round behind it."""
        if not self.run.header.get("until"):
            return False
        known = record.sample_id == f"{record.task}@{record.length}#{record.index}" and record.arm in self.expected.arms
        return known and 0 <= record.index < self.run.header.asked.get((record.task, record.length), 0)

    def _known(self, record: Record, sample: int, arm: int) -> Iterator[str]:
        """Yield the differences of a record whose sample and arm belong to the run."""
        made, number = self.expected.made[sample], sample * len(self.expected.arms) + arm
        if self.expected.lines[number] and number not in self._lost:
            yield f"{record.sample_id} {record.arm}: a second time, first on line {self.expected.lines[number]}"
            return
        self._again += number in self._lost
        (self._lost.discard if record.outcome in SCORED else self._lost.add)(number)
        self.expected.lines[number] = self.lines
        name = f"{record.sample_id} {record.arm}"
        key = self.expected.keys[number * KEY_BYTES : (number + 1) * KEY_BYTES].hex()
        expected = expected_record(record, made, key, self._second)
        for what in record_differences(record, expected):
            yield f"{name}: {what}"
        if made.then and record.outcome in SCORED and FIRST not in expected.facts:
            yield f"{name}: fact {FIRST!r}, the first of two answers, is not there"
        self._bare += len(record.facts.keys() - OUTPUT_FACTS) < len(expected.facts)
        try:
            score = earned(record, self._scorers, self.run.path)
        except RunError as error:  # facts that no scorer takes, or that name code
            yield f"{name}: cannot be scored again: {error}"
            return
        self._scores[number] = math.nan if score.value is None else score.value
        if not same(record.score, score.value) or record.why != score.why:
            yield f"{name}: score on disk {record.score} ({record.why}), scored again {score.value} ({score.why})"
        rank = made.group * len(self.expected.arms) + arm
        if rank < self._rank:
            self._backwards += 1
            if self._backwards > self.resumed:
                yield f"{name}: out of order: its group comes before that of the line above"
        self._rank = rank

    def score(self, sample: int, arm: str) -> float | None:
        """Return the score of the output of a sample, given by number, under an arm; None if it has no score."""
        value = self._scores[sample * len(self.expected.arms) + self.expected.arms[arm]]
        return None if math.isnan(value) else value

    def missing(self) -> Iterator[str]:
        """Yield the (sample, arm) pairs of the plan that have no record."""
        arms = list(self.expected.arms)
        for sample, start in self.expected.numbers.items():
            for arm, name in enumerate(arms):
                if not self.expected.lines[start * len(arms) + arm]:
                    yield f"{sample} {name}: no record"


def findings(
    path: Path,
    data_dir: Path | None = None,
    tokenizer: Path | None = None,
    progress: Progress = SILENT,
    text: Path | None = None,
) -> Iterator[Finding]:
    """Yield every difference between a run folder and its header, and the notices, as they are found.

    If the header contradicts itself, records are not read. Raise the errors of `Remake`.
    """
    header = str(path / HEADER)
    try:
        run = header_alone(path)
        wrong = list(header_differences(run))
    except RunError as error:
        yield Finding(header, str(error).removeprefix(f"{header}: "), unreadable=True)
        return
    yield from (Finding(header, what) for what in wrong)
    if wrong:
        yield Finding(header, "the records were not compared: mend the header first", False)
        return
    yield from (Finding(header, *changed) for changed in changed_files(run))
    remake = Remake(run, data_dir, tokenizer, text)
    yield from (Finding(header, what) for what in unmade(remake))
    progress.at(f"prompts of {path}")
    parts, expected = run.parts, expected_of(remake, progress)
    progress.at(f"records of {path}")
    unordered = parts.workers and not parts.finished  # workers' records are put in order at the end
    reading = Reading(run, expected, len(expected.lines) if unordered else parts.resumed, remake.second)
    yield from reading.findings(progress)
    if parts.until:
        rounds = in_rounds((made.record.task, made.record.length, made.group) for made in expected.made)
        told = verdict_differences(remake, rounds, lambda number: expected.made[number].source, reading.score)
        yield from (Finding(header, what) for what in told)

    # what the end of the file shows: records that are missing, and a seal that does not match
    asked, seen = len(reading.expected.lines), sum(map(bool, reading.expected.lines))
    if seen < asked:
        if parts.finished:
            yield from (Finding(str(reading.path), what) for what in reading.missing())
        else:
            yield Finding(str(reading.path), f"not finished: {seen} of {asked} records", False)
    seal = parts.seal
    if parts.finished and seal is None:
        what = "no seal, the run is older: a change of an output that leaves its score does not show"
        yield Finding(str(run.path / HEADER), what, False)
    elif parts.finished and seal is not None:
        said = seal_of(run.header, reading.sha256, reading.lines, reading.logprobs.sha256)
        if changed := changed_parts(seal, said):
            yield Finding(str(run.path / HEADER), f"seal: the {changed[0]} changed since the run finished")


def steps_of(path: Path) -> int:
    """Return the number of prompts made plus records read to verify a run; 1 if its header does not tell."""
    with contextlib.suppress(AnchorEvalError, KeyError, TypeError, ValueError, AttributeError):
        header = header_alone(path).header
        return max(1, sum(header.asked.values()) * (1 + len(header.arms)))
    return 1
