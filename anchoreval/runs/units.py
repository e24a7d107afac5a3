"""The units of a run: requests that are computed together under one arm, and the sink of their outputs.

Samples go through in groups of fixed size, each group under every arm before the next one: what is on disk is always
paired. Of a group that was cut off only the rest is computed; beside fewer others its answers may differ from those of
an unbroken run in their last bits, as a placebo's do. This process (`work_here`) and workers elsewhere (workers/)
are two executors of the same units.

Samples may be asked in two steps: a second prompt is made of the first answer, and its answer is the one judged. Their
record has one line for both: prompt, key and hash are those of the first prompt, output, finish and the log-probability
of the reference those of the second, the seconds those of both. The first answer stands in its facts, from which the
second prompt can be made again. What an arm said first is its own, so the second prompts of two arms, and the
log-probabilities behind them, are not of the same text. Until then first answers are kept beside the records, so that a
run that is cut between the steps goes on behind them.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from anchoreval.arms.arm import Arm
from anchoreval.backends import Backend
from anchoreval.cards import Task
from anchoreval.errors import OverlongPrompt, RunError
from anchoreval.records.folder import RunFolder
from anchoreval.records.record import key_of, to_record
from anchoreval.runs.prompts import Cell, Pair, Prompts
from anchoreval.runs.spec import Spec
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
)
from anchoreval.suites.scorers import SCORERS, with_choices

FIRST = "reasoning"  # the fact that holds the first answer
FIRST_FACTS = (FIRST, f"{FIRST}_tokens", f"{FIRST}_finish")
#: What is kept of a first answer, and its kind.
_KEPT: Mapping[str, type | tuple[type, ...]] = {
    "text": str,
    "token_ids": (list, tuple),
    "finish": str,
    "seconds": (int, float),
    "facts": dict,
}


@dataclass(slots=True)
class Unit:
    """Requests that are computed together under one arm, and who takes their outputs; `deaths` is what they cost."""

    arm: Arm
    requests: Sequence[Request]
    sink: Group
    deaths: int = 0
    taken: set[str] = field(default_factory=set)

    @property
    def left(self) -> list[Request]:
        """What has not come yet."""
        return [request for request in self.requests if request.sample_id not in self.taken]

    def take(self, output: Output, environment: Mapping[str, Json] | None = None) -> None:
        """Hand on one output as it comes, and what computed it, None for this process."""
        self.taken.add(output.sample_id)
        self.sink.take(output, environment)

    def done(self) -> list[Unit]:
        """Return the unit that follows once all outputs came, if one does; RunError where an output did not come."""
        if left := self.left:
            raise RunError(f"{left[0].sample_id} under {self.arm.name} was left out: run the same command again")
        return self.sink.done()


@dataclass(slots=True)
class Group:
    """What becomes of the outputs of one group of samples under one arm.

    An output is judged and on disk when `take` returns, unless a second step follows; that waits for the end of the
    unit. `firsts` are the first answers, and `seconds` the second prompts, by sample id.
    """

    prompts: Prompts
    task: Task
    arm: Arm
    asked: Mapping[str, Pair]
    keys: Mapping[str, str]
    folder: RunFolder
    progress: Progress
    firsts: dict[str, Output] = field(default_factory=dict)
    seconds: dict[str, Pair] = field(default_factory=dict)

    def take(self, output: Output, environment: Mapping[str, Json] | None = None) -> None:
        """Store one output, or keep the first of two."""
        name = output.sample_id
        if name not in self.seconds and self.asked[name][0].then and output.outcome in SCORED:
            self.firsts[name] = output
            kept = {part: getattr(output, part) for part in _KEPT}
            self.folder.firsts.add(self.keys[name], kept)
        else:
            folder = self.folder
            self.store(output, folder.environment if environment is None else folder.environment_of(environment))

    def done(self) -> list[Unit]:
        """Return the unit of the second steps that wait now, if any do."""
        made: dict[str, Pair] = {}
        for name in (name for name in self.asked if name in self.firsts and name not in self.seconds):
            try:
                made[name] = self.prompts.second(self.task, self.asked[name][0], self.firsts[name].text)
            except OverlongPrompt as error:
                why, seconds = f"second prompt: {error}", self.firsts.pop(name).seconds
                lost = Output(name, "", (), "error", None, seconds, why, lost="does_not_fit")
                self.store(lost, self.folder.environment)
        self.seconds |= made
        return [Unit(self.arm, [request for _, request in made.values()], self)] if made else []

    def store(self, output: Output, environment: int | None) -> None:
        """Judge an output and put its record on disk, unless one with an answer is there."""
        name = output.sample_id
        sample, request = self.asked[name]
        if name in self.seconds:
            sample, request, output = both(self.asked[name], self.firsts[name], self.seconds[name], output)
        if not self.folder.answered(self.keys[name]):
            score = judge(self.task, output, sample)
            record = to_record(self.keys[name], sample, request, self.arm, output, score, environment)
            self.folder.append(record, output.token_logprobs)
        self.progress(1)

    def find_firsts(self, names: Iterable[str]) -> None:
        """Take the first answers that are kept of these samples; what has another shape counts as not kept."""
        for name in (name for name in names if self.asked[name][0].then):
            kept = self.folder.firsts.lines.get(self.keys[name])
            if isinstance(kept, dict) and kept.keys() == _KEPT.keys() and _are_kinds(kept):
                output = Output(name, kept["text"], tuple(kept["token_ids"]), kept["finish"], None, kept["seconds"])
                self.firsts[name] = replace(output, facts=kept["facts"])


def _are_kinds(kept: Mapping[str, Json]) -> bool:
    whole = all(isinstance(kept[name], kind) for name, kind in _KEPT.items())
    return whole and kept["finish"] in ("stop", "length") and all(type(token) is int for token in kept["token_ids"])


def judge(task: Task, output: Output, sample: Sample) -> Score:
    """Return the task's score of an output; None with the reason where the outcome is one that is not scored."""
    if output.outcome not in SCORED:
        return Score(None, output.why or "the backend failed on this request")
    logprob = output.logprob_per_token if output.finish == "scored" else None
    return SCORERS[task.scorer](output.text, sample.references, with_choices(sample.facts, output.choices, logprob))


def both(asked: Pair, first: Output, second: Pair, output: Output) -> tuple[Sample, Request, Output]:
    """Return the two steps of a sample as one; `output` is what was said to the second prompt."""
    sample, request = asked
    said = dict(zip(FIRST_FACTS, (first.text, len(first.token_ids), first.finish), strict=True))
    facts = {name: value for name, value in output.facts.items() if name != PROMPT_READ}
    pairs = ((PROMPT_READ, first), (SECOND_PROMPT_READ, output))
    facts |= {name: step.facts[PROMPT_READ] for name, step in pairs if PROMPT_READ in step.facts}
    return (
        replace(sample, facts={**sample.facts, **said, **facts_of(*second)}),
        replace(request, reference_ids=second[1].reference_ids),
        replace(output, seconds=first.seconds + output.seconds, facts=facts),
    )


def facts_of(prompt: Sample, request: Request) -> dict[str, Json]:
    """Return what a record says of its second prompt: its hash, and its tokens with the anchor."""
    return {"second_prompt_sha256": prompt.prompt_sha256, "second_prompt_tokens": len(request.token_ids)}


@dataclass(frozen=True, slots=True)
class Units:
    """The units of a run that goes on in `folder`, each made when it is taken; `engine` is a backend's fingerprint."""

    prompts: Prompts
    folder: RunFolder
    engine: str
    progress: Progress

    def of(self, cells: Iterable[Cell], alone_at_last: bool = False) -> Iterator[Unit]:
        """Yield what has no answer yet of every group of every cell under every arm.

        With `alone_at_last` what failed before comes one by one at the end, since it may cost a worker its life.
        """
        scored = (record for record in self.folder.done.values() if record.outcome in SCORED)
        there = Counter((record.task, record.length, record.arm) for record in scored)
        last: list[Unit] | None = [] if alone_at_last else None
        for cell in cells:
            if self._is_whole(cell, there):
                self.progress.had(cell.asked * len(self.prompts.spec.arms))
                continue
            for samples in groups_of(cell, self.prompts.spec):
                yield from self.of_group(cell, samples, last)
        yield from last or ()

    def of_group(self, cell: Cell, samples: Sequence[Sample], last: list[Unit] | None = None) -> Iterator[Unit]:
        """Yield what has no answer yet of some samples of a cell, arm by arm; what failed before is put into `last`."""
        prompts, folder, task, arms = self.prompts, self.folder, cell.task, self.prompts.spec.arms
        # The first is looked at in any case, so that the keys of what lies there are compared once a group.
        left = [one for at, one in enumerate(samples) if at == 0 or not self._is_answered(one)]
        asked = {sample.id: (sample, prompts.request(task, sample)) for sample in left}
        refused = {name: lost for name, (_, sent) in asked.items() if (lost := prompts.does_not_fit(task, sent))}
        for arm in arms:
            keys = {name: key_of(request, arm, self.engine) for name, (_, request) in asked.items()}
            waiting = folder.waiting(arm.name, keys)
            self.progress.at(f"{task.address} at {cell.length:,}, {arm.name}")
            self.progress.had(len(samples) - len(waiting))
            group = Group(prompts, task, arm, asked, keys, folder, self.progress)
            for name in refused:
                if name in waiting:
                    group.store(refused[name], folder.environment)
            names = [name for name in asked if name in waiting and name not in refused]
            group.find_firsts(names)
            fresh = [asked[name][1] for name in names if name not in group.firsts]
            if last is not None:
                last += [Unit(arm, [sent], group) for sent in fresh if folder.failed(keys[sent.sample_id])]
                fresh = [sent for sent in fresh if not folder.failed(keys[sent.sample_id])]
            yield from [Unit(arm, fresh, group)] if fresh else group.done()

    def _is_answered(self, sample: Sample) -> bool:
        """Whether a sample lies there with an answer to the same prompt under every arm."""
        for arm in self.prompts.spec.arms:
            if not self.folder.holds(sample.id, arm.name):
                return False
            record = self.folder.of(sample.id, arm.name)
            if record.outcome not in SCORED or record.prompt_sha256 != sample.prompt_sha256:
                return False
        return True

    def _is_whole(self, cell: Cell, there: Mapping[tuple[str, int, str], int]) -> bool:
        """Whether every sample of a cell has its answer under every arm, so that none of its prompts is made again.

        The first, which is made already, has to be the one that lies there: RunError as from `RunFolder.waiting`.
        """
        arms = self.prompts.spec.arms
        if any(there.get((*cell.place, arm.name), 0) < cell.asked for arm in arms):
            return False
        first = next(cell.samples, None)
        if first is None:
            return True
        cell.samples = itertools.chain([first], cell.samples)
        request = self.prompts.request(cell.task, first)
        return not any(self.folder.waiting(arm.name, {first.id: key_of(request, arm, self.engine)}) for arm in arms)


def groups_of(cell: Cell, spec: Spec) -> Iterator[list[Sample]]:
    """Yield the samples of a cell in the groups that are computed together.

    A group ends at every multiple of `spec.group`, and where the run had ended before it went on with more samples.
    """
    at = 0
    while True:
        ends = [(at // spec.group + 1) * spec.group, *(end for end in spec.grown if end > at)]
        if not (samples := list(itertools.islice(cell.samples, min(ends) - at))):
            return
        yield samples
        at += len(samples)


def work_here(backend: Backend, units: Iterable[Unit]) -> None:
    """Compute every unit in this process; each record is on disk before the next output is made."""
    for first in units:
        with backend.under(first.arm):
            steps = [first]
            for unit in steps:
                for output in backend.answer(unit.requests):
                    unit.take(output)
                steps += unit.done()


def in_order(records: Iterable[Record], cells: Iterable[Cell], spec: Spec) -> list[Record]:
    """Return the records in the order in which one process takes the groups of every cell, each under every arm."""
    places = {cell.place: place for place, cell in enumerate(cells)}
    arms = {arm.name: place for place, arm in enumerate(spec.arms)}

    def place(record: Record) -> tuple[int, ...]:
        return places[record.task, record.length], record.index // spec.group, arms[record.arm], record.index

    return sorted(records, key=place)
