"""The loop of a run over many workers: the same groups as one process takes, each group under every arm a unit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from anchoreval.arms import Arm
from anchoreval.cards import Task
from anchoreval.errors import RunError
from anchoreval.fleet.fleet import Fleet, Unit
from anchoreval.groups import groups_of
from anchoreval.lengths import fitting
from anchoreval.results import RunFolder
from anchoreval.run import Cell, Plan, Progress, key_of, requests_of, second_of, store
from anchoreval.schema import SCORED, Json, Output, Request, Sample
from anchoreval.steps import Answered, Second, both, seconds
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
    """Every group under every arm that is not wholly on disk with its answers."""
    for cell in cells:
        second = second_of(cell.task, plan, tokenizer, window)
        for samples in groups_of(cell, plan):
            requests = requests_of(cell, samples, plan, tokenizer)
            asked = {sample.id: (sample, request) for sample, request in zip(samples, requests, strict=True)}
            short, refused = fitting(cell.task, asked, window, plan.rule(tokenizer))
            for arm in plan.arms:
                keys = {request.sample_id: key_of(request, arm, engine) for request in requests}
                waiting = folder.waiting(arm.name, keys)
                for one in refused:
                    store(cell.task, one, arm, keys, folder, folder.environment)
                sent = [request for name, (_, request) in short.items() if name in waiting]
                progress.had(len(samples) - len(sent))
                if sent:
                    progress.at(f"{cell.task.address} at {cell.length:,}, {arm.name}")
                    yield Unit(arm, sent, _Group(cell.task, arm, asked, keys, second, folder, progress))


@dataclass(slots=True)
class _Group:
    """What becomes of the outputs of one group under one arm; samples of two steps wait for the end of the first."""

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
        if self.made:
            one = both(self.waiting[name], self.made[name], output)
        elif one.sample.then and output.outcome in SCORED:
            self.waiting[name] = one
            return
        store(self.task, one, self.arm, self.keys, self.folder, self.folder.environment_of(environment))
        self.progress(1)

    def done(self) -> Unit | None:
        """The unit of the second step, None where there is none; RunError for a sample that was left out."""
        if self.waiting and not self.made:
            self.made, lost = seconds(self.waiting, self.second)
            for one in lost:
                store(self.task, one, self.arm, self.keys, self.folder, self.folder.environment)
            self.progress(len(lost))
            if self.made:
                return Unit(self.arm, [request for _, request in self.made.values()], self)
        missing = [name for name, key in self.keys.items() if key not in self.folder.done]
        if missing:
            raise RunError(f"a worker left out {missing[0]} under {self.arm.name}: run the same command again")
        return None
