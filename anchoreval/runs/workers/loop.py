"""The loop of a run over many workers: the same groups as one process takes, each group under every arm a unit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from anchoreval.arms.arm import Arm
from anchoreval.cards import Task
from anchoreval.records.folder import RunFolder
from anchoreval.records.record import key_of
from anchoreval.runs.groups import answered_of, groups_of, whole
from anchoreval.runs.lengths import fitting
from anchoreval.runs.loop import Cell, Plan, Progress, requests_of, second_of, store, to_look_at
from anchoreval.runs.two_steps import Answered, Second, both, first_answers, keep, seconds
from anchoreval.runs.workers.actors import Fleet, Unit
from anchoreval.schema import Json, Output, Request, Sample
from anchoreval.tokenizer import TextTokenizer


def run_cells_on(
    fleet: Fleet,
    cells: Sequence[Cell],
    plan: Plan,
    tokenizer: TextTokenizer,
    window: int | None,
    folder: RunFolder,
    progress: Progress,
) -> None:
    """Answer every sample of every cell under every arm; each record is on disk as soon as its output came back."""
    fleet.work(_units(fleet.fingerprint, cells, plan, tokenizer, window, folder, progress))


def _units(
    engine: str,
    cells: Sequence[Cell],
    plan: Plan,
    tokenizer: TextTokenizer,
    window: int | None,
    folder: RunFolder,
    progress: Progress,
) -> Iterator[Unit]:
    """What has no answer yet of every group under every arm; then, one by one, what failed before."""
    there, last = answered_of(folder), list[Unit]()
    for cell in cells:
        if whole(cell, plan, there, engine, tokenizer, folder):
            progress.had(cell.asked * len(plan.arms))
            continue
        second = second_of(cell.task, plan, tokenizer, window)
        for samples in groups_of(cell, plan):
            looked_at = to_look_at(samples, plan, folder)
            requests = requests_of(cell, looked_at, plan, tokenizer)
            asked = {sample.id: (sample, request) for sample, request in zip(looked_at, requests, strict=True)}
            short, refused = fitting(cell.task, asked, window, plan.rule(tokenizer))
            for arm in plan.arms:
                keys = {request.sample_id: key_of(request, arm, engine) for request in requests}
                waiting = folder.waiting(arm.name, keys)
                for one in refused:
                    store(cell.task, one, arm, keys, folder, folder.environment)
                left = {name: pair for name, pair in short.items() if name in waiting}
                progress.had(len(samples) - len(left))
                group = _Group(cell.task, arm, asked, keys, second, folder, progress)
                group.waiting = first_answers(left, keys, folder.firsts)
                sent = [request for name, (_, request) in left.items() if name not in group.waiting]
                for request in [request for request in sent if folder.failed(keys[request.sample_id])]:
                    sent.remove(request)
                    last.append(Unit(arm, [request], group))
                progress.at(f"{cell.task.address} at {cell.length:,}, {arm.name}")
                if unit := Unit(arm, sent, group) if sent else group.done():
                    yield unit
    yield from last


@dataclass(slots=True)
class _Group:
    """What becomes of the outputs of one group under one arm; a sample of two steps waits for the end of its unit."""

    task: Task
    arm: Arm
    asked: Mapping[str, tuple[Sample, Request]]
    keys: Mapping[str, str]
    second: Second
    folder: RunFolder
    progress: Progress
    waiting: dict[str, Answered] = field(default_factory=dict)
    made: dict[str, tuple[Sample, Request]] = field(default_factory=dict)

    def take(self, output: Output, environment: Mapping[str, Json]) -> None:
        """One output: on disk, unless a second step follows."""
        name = output.sample_id
        one = Answered(*self.asked[name], output)
        if name in self.made:
            one = both(self.waiting[name], self.made[name], output)
        elif one.goes_on:
            self.waiting[name] = one
            keep(self.folder.firsts, self.keys[name], output)
            return
        self._store(one, self.folder.environment_of(environment))

    def done(self) -> Unit | None:
        """The unit of the second steps that wait now, None where there is none."""
        waiting = {name: one for name, one in self.waiting.items() if name not in self.made}
        made, lost = seconds(waiting, self.second)
        for one in lost:
            self._store(one, self.folder.environment)
            del self.waiting[one.sample.id]
        self.made |= made
        return Unit(self.arm, [request for _, request in made.values()], self) if made else None

    def _store(self, one: Answered, environment: int | None) -> None:
        store(self.task, one, self.arm, self.keys, self.folder, environment)
        self.progress(1)
