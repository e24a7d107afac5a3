"""The work of a run: `Units` cuts cells into groups, and each group under each arm into units that a backend computes.

    cell -> groups of `Spec.group` samples -> one `Group` per arm -> one `Unit` of requests (two for two-step samples)

Each group is computed under every arm before the next group starts, so the records on disk are always paired over
arms. If a run is killed inside a group, only the rest of that group is computed later. That rest runs in smaller
batches, so its answers may differ from those of an unbroken run in their last bits, as the answers of a placebo arm do.
Units can be computed in this process (`work_here`) or by workers (workers/).

A two-step sample has a second prompt that is made from the first answer, and the answer to the second prompt is scored.
One record holds both steps: prompt, key and hash of the first; output, finish and reference log-probability of the
second; the sum of the seconds. Its facts hold the first answer, so the second prompt can be made again. Arms answer the
first prompt differently, so their second prompts, and the reference log-probabilities behind these, belong to different
texts. First answers are kept beside the records until the second step is done, so a run that was killed between the
steps does not ask the first prompt again.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from queue import SimpleQueue
from threading import Thread
from typing import TypeVar, cast

from anchoreval.arms.arm import Arm
from anchoreval.backends import Backend
from anchoreval.cards import Task
from anchoreval.errors import OverlongPrompt, RunError
from anchoreval.records.folder import RunFolder
from anchoreval.records.lines import keys_of, to_record
from anchoreval.runs.prompts import Cell, Pair, Prompts, Spec
from anchoreval.schema import (
    PROMPT_READ,
    SCORED,
    SECOND_PROMPT_READ,
    Json,
    Output,
    Progress,
    Record,
    Request,
    Sample,
    Score,
    lost_output,
)
from anchoreval.suites import scorer_of, with_choices

FIRST = "reasoning"  # the fact that holds the first answer
FIRST_FACTS = (FIRST, f"{FIRST}_tokens", f"{FIRST}_finish")
#: The fields of a first answer that are kept, with their types.
_KEPT: Mapping[str, type | tuple[type, ...]] = {
    "text": str,
    "token_ids": (list, tuple),
    "finish": str,
    "seconds": (int, float),
    "facts": dict,
}


@dataclass(slots=True)
class Unit:
    """Requests that a backend computes together under one arm; the smallest piece of work that is handed out.

    An executor calls `take` with each output, in any order, and then `done`, which returns the units that follow.
    `sink` is the group that stores the outputs, `taken` holds the sample ids that have an output, `deaths` counts the
    workers that died while they computed the unit.
    """

    arm: Arm
    requests: Sequence[Request]
    sink: Group
    deaths: int = 0
    taken: set[str] = field(default_factory=set)

    @property
    def left(self) -> list[Request]:
        """The requests that have no output yet."""
        return [request for request in self.requests if request.sample_id not in self.taken]

    def take(self, output: Output, environment: Mapping[str, Json] | None = None) -> None:
        """Pass one output on to the group. `environment` describes the worker that computed it; None: this process."""
        self.taken.add(output.sample_id)
        self.sink.take(output, environment)

    def done(self) -> list[Unit]:
        """Return the unit of the second steps, if there are any; raise RunError if a request has no output."""
        if left := self.left:
            raise RunError(f"{left[0].sample_id} under {self.arm.name} was left out: run the same command again")
        return self.sink.done()


@dataclass(slots=True)
class Group:
    """One group of samples under one arm: scores each output of its units and writes the record.

    When `take` returns, the output is scored and its record is on disk. The exception is the first answer of a two-step
    sample: it is kept until the unit is done, and `done` then returns one unit with all second prompts.

    `asked`     sample id -> sample and request
    `keys`      sample id -> key of the record
    `written`   sample id -> a record of it, under any arm
    `folder`    the run folder that takes the records
    `firsts`    sample id -> first answer of a two-step sample
    `seconds`   sample id -> second prompt of a two-step sample
    """

    prompts: Prompts
    task: Task
    arm: Arm
    asked: Mapping[str, Pair]
    keys: Mapping[str, str]
    written: dict[str, Record]
    folder: RunFolder
    progress: Progress
    firsts: dict[str, Output] = field(default_factory=dict)
    seconds: dict[str, Pair] = field(default_factory=dict)

    def take(self, output: Output, environment: Mapping[str, Json] | None = None) -> None:
        """Store one output, or keep it if it is the first answer of a two-step sample."""
        name = output.sample_id
        if name not in self.seconds and self.asked[name][0].then and output.outcome in SCORED:
            self.firsts[name] = output
            kept = {part: getattr(output, part) for part in _KEPT}
            self.folder.firsts.add(self.keys[name], kept)
        else:
            self.store(output, environment)

    def done(self) -> list[Unit]:
        """Return the unit of the second prompts that can be made now; an empty list if there are none."""
        prompts: dict[str, Pair] = {}
        for name in (name for name in self.asked if name in self.firsts and name not in self.seconds):
            try:
                prompts[name] = self.prompts.second(self.task, self.asked[name][0], self.firsts[name].text)
            except OverlongPrompt as error:
                why, seconds = f"second prompt: {error}", self.firsts.pop(name).seconds
                lost = lost_output(name, "does_not_fit", why, seconds)
                self.store(lost)
        self.seconds |= prompts
        return [Unit(self.arm, [request for _, request in prompts.values()], self)] if prompts else []

    def store(self, output: Output, environment: Mapping[str, Json] | None = None) -> None:
        """Score an output and write its record, unless the folder already has a record with an answer."""
        name = output.sample_id
        sample, request = self.asked[name]
        if name in self.seconds:
            sample, request, output = both(self.asked[name], self.firsts[name], self.seconds[name], output)
        if not self.folder.answered(self.keys[name]):
            score = Score(None, output.why or "the backend failed on this request")
            if output.outcome in SCORED:
                logprob = output.logprob_per_token if output.finish == "scored" else None
                facts = with_choices(sample.facts, output.choices, logprob)
                score = scorer_of(self.task).rule(output.text, sample.references, facts)
            here, other = self.folder.environment_of(environment), self.written.get(name)
            record = to_record(self.keys[name], sample, request, self.arm, output, score, here, other)
            self.written[name] = record
            self.folder.append(record, output.token_logprobs)
        self.progress(1)


def _is_first(kept: Json) -> bool:
    """Return True if a kept line has the shape of a first answer."""
    if not isinstance(kept, dict) or kept.keys() != _KEPT.keys():
        return False
    fits = all(isinstance(kept[name], kind) for name, kind in _KEPT.items())
    return fits and kept["finish"] in ("stop", "length") and all(type(token) is int for token in kept["token_ids"])


def both(asked: Pair, first: Output, second: Pair, output: Output) -> tuple[Sample, Request, Output]:
    """Return sample, request and output of a two-step sample as one; `output` answers the second prompt."""
    sample, request = asked
    first_facts = dict(zip(FIRST_FACTS, (first.text, len(first.token_ids), first.finish), strict=True))
    facts = {name: value for name, value in output.facts.items() if name != PROMPT_READ}
    pairs = ((PROMPT_READ, first), (SECOND_PROMPT_READ, output))
    facts |= {name: step.facts[PROMPT_READ] for name, step in pairs if PROMPT_READ in step.facts}
    return (
        replace(sample, facts={**sample.facts, **first_facts, **facts_of(*second)}),
        replace(request, reference_ids=second[1].reference_ids),
        replace(output, seconds=first.seconds + output.seconds, facts=facts),
    )


def facts_of(prompt: Sample, request: Request) -> dict[str, Json]:
    """Return the facts of a record about its second prompt: its hash, and its number of tokens with the anchor."""
    return {"second_prompt_sha256": prompt.prompt_sha256, "second_prompt_tokens": len(request.token_ids)}


@dataclass(frozen=True, slots=True)
class Units:
    """Makes the units of a run, lazily: of all samples, those that have no answer in `folder` yet.

    Resuming a run is therefore nothing special: the same loop over a folder with more records yields fewer units.
    `engine` is the fingerprint of the backend and goes into each record's key.
    """

    prompts: Prompts
    folder: RunFolder
    engine: str
    progress: Progress

    def of(self, cells: Iterable[Cell], alone_at_last: bool = False, in_background: bool = False) -> Iterator[Unit]:
        """Yield the units of all requests without an answer: cell by cell, group by group, arm by arm.

        With `alone_at_last`, requests that failed before come at the end, one per unit, because they may kill a worker.
        With `in_background`, a thread makes the prompts of the next group while the units of one are handed out.
        """
        last: list[Unit] | None = [] if alone_at_last else None
        made = self._made(cells)
        for cell, count, asked in ahead(made) if in_background else made:
            yield from self._of_group(cell, count, asked, last)
        yield from last or ()

    def _made(self, cells: Iterable[Cell]) -> Iterator[tuple[Cell, int, dict[str, Pair]]]:
        """Yield each group: its cell, the number of its samples, and the prompts of those that have no answer yet."""
        scored = (record for record in self.folder.done.values() if record.outcome in SCORED)
        there = Counter((record.task, record.length, record.arm) for record in scored)
        for cell in cells:
            arms = [(*cell.place, arm.name) for arm in self.prompts.spec.arms]
            if all(there[arm] >= cell.asked for arm in arms) and self._is_own(cell):
                yield cell, cell.asked, {}
                continue
            for samples in groups_of(cell, self.prompts.spec):
                yield cell, len(samples), self._asked(cell, samples)

    def of_group(self, cell: Cell, samples: Sequence[Sample]) -> Iterator[Unit]:
        """Yield the units of one group of samples, arm by arm."""
        return self._of_group(cell, len(samples), self._asked(cell, samples))

    def _asked(self, cell: Cell, samples: Sequence[Sample]) -> dict[str, Pair]:
        # The first sample is always taken, so that the key of a record on disk is compared once per group.
        left = [one for at, one in enumerate(samples) if at == 0 or not self._is_answered(one)]
        return {sample.id: (sample, self.prompts.request(cell.task, sample)) for sample in left}

    def _of_group(
        self, cell: Cell, count: int, asked: Mapping[str, Pair], last: list[Unit] | None = None
    ) -> Iterator[Unit]:
        """Yield the units of one group of `count` samples, of which `asked` have a prompt, arm by arm.

        If `last` is given, requests that failed before are appended to it as units of one, and are not yielded.
        """
        prompts, folder, task, arms = self.prompts, self.folder, cell.task, self.prompts.spec.arms
        refused = {name: output for name, (_, sent) in asked.items() if (output := prompts.does_not_fit(task, sent))}
        of_arms = {name: keys_of(request, arms, self.engine) for name, (_, request) in asked.items()}
        written: dict[str, Record] = {}
        for number, arm in enumerate(arms):
            keys = {name: of[number] for name, of in of_arms.items()}
            waiting = folder.waiting(arm.name, keys)
            self.progress.at(f"{task.address} at {cell.length:,}, {arm.name}")
            self.progress.had(count - len(waiting))
            group = Group(prompts, task, arm, asked, keys, written, folder, self.progress)
            for name in refused:
                if name in waiting:
                    group.store(refused[name])
            names = [name for name in asked if name in waiting and name not in refused]
            for name in names:  # first answers that were kept; one of another shape is asked for again
                kept = folder.firsts.lines.get(keys[name]) if asked[name][0].then else None
                if kept is not None and _is_first(kept):
                    output = Output(name, kept["text"], tuple(kept["token_ids"]), kept["finish"], None, kept["seconds"])
                    group.firsts[name] = replace(output, facts=kept["facts"])
            fresh = [asked[name][1] for name in names if name not in group.firsts]
            if last is not None:
                last += [Unit(arm, [sent], group) for sent in fresh if folder.failed(keys[sent.sample_id])]
                fresh = [sent for sent in fresh if not folder.failed(keys[sent.sample_id])]
            yield from [Unit(arm, fresh, group)] if fresh else group.done()

    def _is_answered(self, sample: Sample) -> bool:
        """Return True if the folder has an answer to the same prompt of this sample under every arm."""
        arms = self.prompts.spec.arms
        if not all(self.folder.holds(sample.id, arm.name) for arm in arms):
            return False
        records, sha256 = [self.folder.of(sample.id, arm.name) for arm in arms], sample.prompt_sha256
        return all(record.outcome in SCORED and record.prompt_sha256 == sha256 for record in records)

    def _is_own(self, cell: Cell) -> bool:
        """Return True if the records of a cell's first sample, which is already made, are answers to its prompt.

        The prompts of a whole cell are then not made again. Raise RunError as `RunFolder.waiting` does.
        """
        first = next(cell.samples, None)
        if first is None:
            return True
        cell.samples = itertools.chain([first], cell.samples)
        request = self.prompts.request(cell.task, first)
        arms = self.prompts.spec.arms
        keys = zip(arms, keys_of(request, arms, self.engine), strict=True)
        return not any(self.folder.waiting(arm.name, {first.id: key}) for arm, key in keys)


def groups_of(cell: Cell, spec: Spec) -> Iterator[list[Sample]]:
    """Yield the samples of a cell in the groups that are computed together.

    A group ends at each multiple of `spec.group`, and at each limit in `spec.grown`. A run that was resumed with more
    samples therefore has the same groups as before.
    """
    at = 0
    while True:
        ends = [(at // spec.group + 1) * spec.group, *(end for end in spec.grown if end > at)]
        if not (samples := list(itertools.islice(cell.samples, min(ends) - at))):
            return
        yield samples
        at += len(samples)


T = TypeVar("T")
AHEAD = "makes prompts ahead"  # name of the thread


def ahead(items: Iterator[T]) -> Iterator[T]:
    """Yield the items in order; a thread makes the next one meanwhile. What it raises is raised here in its turn."""
    made, wanted = SimpleQueue[tuple[T | None, BaseException | None]](), SimpleQueue[bool]()

    def make() -> None:
        try:
            while wanted.get():
                made.put((next(items), None))
        except BaseException as error:
            made.put((None, error))

    wanted.put(True)
    Thread(target=make, name=AHEAD, daemon=True).start()  # Ctrl-C does not wait for prompts
    try:
        while True:
            item, error = made.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            wanted.put(True)
            yield cast(T, item)
    finally:
        wanted.put(False)


def work_here(backend: Backend, units: Iterable[Unit]) -> None:
    """Compute all units in this process; each record is on disk before the next output is computed."""
    for first in units:
        with backend.under(first.arm):
            steps = [first]
            for unit in steps:
                for output in backend.answer(unit.requests):
                    unit.take(output)
                steps += unit.done()


def in_order(records: Iterable[Record], cells: Iterable[Cell], spec: Spec) -> list[Record]:
    """Return the records in the order in which one process would write them: by cell, group, arm and index."""
    places = {cell.place: place for place, cell in enumerate(cells)}
    arms = {arm.name: place for place, arm in enumerate(spec.arms)}

    def place(record: Record) -> tuple[int, ...]:
        return places[record.task, record.length], record.index // spec.group, arms[record.arm], record.index

    return sorted(records, key=place)
