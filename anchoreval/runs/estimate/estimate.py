"""Plan a run: make a few prompts of each cell, count every pass of the hf backend, scale, estimate hours and memory."""

from __future__ import annotations

import itertools
import math
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from anchoreval.arms.arm import Arm
from anchoreval.arms.layout import Arrangement
from anchoreval.backends.hf.batches import Limits
from anchoreval.files import write_errors
from anchoreval.records.lines import keys_of, to_line, to_record, write_line
from anchoreval.runs.estimate.cost import Machine, Shape, peak_bytes
from anchoreval.runs.estimate.dry import Counted, DryArm
from anchoreval.runs.prompts import Cell, Cells, Pair, Prompts
from anchoreval.runs.units import groups_of
from anchoreval.schema import SILENT, Progress, Request, Score, lost_output
from anchoreval.stats.intervals import standard_error, t_quantile

FEW_TOKENS = 32_768  # prompts of a cell are made until they have so many tokens, a group is full, or all are made
FEWEST = 2  # one prompt shows no spread


@dataclass(frozen=True, slots=True)
class Error:
    """The standard error of an estimate, and its degrees of freedom; 0 for a number that is exact."""

    error: float = 0.0
    df: float = 1.0


def half_width(errors: Iterable[Error]) -> float:
    """Return half the 95% interval of the sum of independent estimates (Welch 1947, Satterthwaite 1946)."""
    squares = [(each.error**2, each.df) for each in errors if each.error]
    if not squares:
        return 0.0
    variance = math.fsum(square for square, _ in squares)
    return t_quantile(variance**2 / math.fsum(square**2 / df for square, df in squares)) * math.sqrt(variance)


@dataclass(slots=True)
class CellPlan:
    """One task at one length: the number of prompts that fit, their tokens, and the answers' total budget.

    They are scaled from the first `made` prompts of `asked`, unless that is all of them. `error` is that of the tokens.
    """

    task: str
    length: int
    asked: int
    made: int = 0
    prompts: int = 0
    prompt_tokens: int = 0
    answer_tokens: int = 0
    error: Error = field(default_factory=Error)

    def take(self, requests: Sequence[Request], made: int) -> None:
        """Add a group: the requests that fit of so many prompts."""
        self.made += made
        self.prompts += len(requests)
        self.prompt_tokens += sum(len(request.token_ids) for request in requests)
        self.answer_tokens += sum(request.max_new_tokens for request in requests)

    def left_out(self, window: int | None) -> Iterator[str]:
        """Yield a line if prompts were made that do not fit."""
        if over := self.made - self.prompts:
            yield f"{self.task}: {over} of {self.made} prompts do not fit the model's {window} positions"

    def scale(self, group: Sequence[Request]) -> None:
        """Scale what was taken to all prompts of the cell, `group` being a random part of them."""
        error, df = standard_error([len(request.token_ids) for request in group])
        scale = self.asked / self.made
        if error and scale > 1:
            self.error = Error(error * scale * self.prompts * math.sqrt(1 - 1 / scale), df)
        self.prompts, self.prompt_tokens, self.answer_tokens = (
            round(scale * number) for number in (self.prompts, self.prompt_tokens, self.answer_tokens)
        )


@dataclass(frozen=True, slots=True)
class ArmPlan:
    """One arm: prompt tokens computed, prompt tokens reused from earlier prompts, seconds, peak memory in bytes.

    `errors` are those of the cells' seconds, or of their computed tokens if no time is estimated.
    """

    arm: str
    computed_tokens: float
    reused_tokens: float
    seconds: float | None
    peak_bytes: int | None
    errors: tuple[Error, ...]


@dataclass(frozen=True, slots=True)
class RunPlan:
    """What a run takes; `unmakeable` gives the reasons why cells and prompts are left out.

    Without a `shape`, as of a server's model, memory is not estimated, and without a `machine` no time.
    `prompt_seconds` and `record_seconds` are those of this program: to make all prompts, and to write all records.
    """

    cells: tuple[CellPlan, ...]
    arms: tuple[ArmPlan, ...]
    shape: Shape | None
    machine: Machine | None
    unmakeable: tuple[str, ...]
    prompt_seconds: float
    record_seconds: float


def limits_of(options: Mapping[str, Any], shape: Shape | None) -> Limits:
    """Return how much of a model is computed at once with these options of a backend."""
    names = (field.name for field in fields(Limits))
    asked = Limits(**{name: options[name] for name in names if name in options})
    chunks = "chunk_tokens" in options or options.get("kernel") not in (None, "default", "auto", "fused", "sdpa")
    return asked if chunks or shape is None else replace(asked, pass_tokens=shape.pass_tokens)


def plan_run(
    prompts: Prompts,
    made: Cells,
    shape: Shape | None,
    machine: Machine | None,
    limits: Limits,
    folder: Path,
    exact: bool = False,
    progress: Progress = SILENT,
) -> RunPlan:
    """Return the plan of a run as backend hf computes it: scaled tokens, estimated seconds and bytes (cost.py).

    Every prompt is made if `exact`, else the first few of each cell. The seconds of writing are measured in `folder`.
    """
    spec, alike = prompts.spec, dict[tuple[Limits, Arrangement], _Alike]()
    keys = {arm: (limits.placebo() if arm.placebo else limits, arm.arrangement) for arm in spec.arms}
    for key in keys.values():
        alike.setdefault(key, _Alike(DryArm(*key, shape is not None and shape.whole_prompts), shape, machine))
    notices = [line.removeprefix("left out: ") for line in made.notices]
    cells, left_out = [], [*(str(row["why"]) for row in made.unmakeable), *notices]
    making = writing = 0.0
    for cell in made:
        progress.at(f"{cell.task.address} at {cell.length:,}")
        planned, seconds, pairs = CellPlan(*cell.place, cell.asked), list[float](), list[Pair]()
        for pairs in _groups(cell, prompts, exact, seconds):
            requests = [request for _, request in pairs if not prompts.does_not_fit(cell.task, request)]
            planned.take(requests, len(pairs))
            asked = len(requests) * (1 if exact else cell.asked / len(pairs))
            for arms in alike.values():
                arms.count(requests, asked, min(spec.group, round(asked)))
        left_out += planned.left_out(prompts.model.window)
        planned.scale([request for _, request in pairs])
        for arms in alike.values():
            arms.end(planned)
        cells.append(planned)
        making += sum(seconds) + fmean(seconds[1:] or [0.0]) * (cell.asked - planned.made)
        writing += record_seconds(pairs[:FEWEST], spec.arms[0], folder) * cell.asked * len(spec.arms)
        progress(1)
    rows = tuple(alike[key].planned(arm.name) for arm, key in keys.items())
    return RunPlan(tuple(cells), rows, shape, machine, tuple(left_out), making, writing)


@dataclass(slots=True)
class _Alike:
    """Arms that compute the same passes, which are counted once; `here` is what they take in the cell at hand."""

    dry: DryArm
    shape: Shape | None
    machine: Machine | None
    here: Counted = field(default_factory=Counted)
    total: Counted = field(default_factory=Counted)
    seconds: float = 0.0
    errors: list[Error] = field(default_factory=list)

    def count(self, requests: Sequence[Request], asked: float, size: int) -> None:
        """Add `asked` requests that are computed in groups of `size`, `requests` being the first of them."""
        group = list(itertools.islice(itertools.cycle(requests), size))
        self.here.add(self.dry.count(requests, group, asked / max(1, size)))

    def end(self, cell: CellPlan) -> None:
        """Add what was counted to the total; the error of its time is in proportion that of the cell's tokens."""
        number = self.here.prefilled_tokens
        if self.shape and self.machine:
            number = self.machine.seconds(self.shape, self.here.passes)
            self.seconds += number
        self.errors.append(Error(cell.error.error * number / max(1, cell.prompt_tokens), cell.error.df))
        self.total.add(self.here)
        self.here = Counted()

    def planned(self, name: str) -> ArmPlan:
        """Return the row of one arm."""
        seconds, peak = self.seconds if self.shape and self.machine else None, None
        if self.shape:
            peak = (self.machine.libraries if self.machine else 0) + peak_bytes(self.shape, self.total)
        return ArmPlan(name, self.total.prefilled_tokens, self.total.reused_tokens, seconds, peak, tuple(self.errors))


def _groups(cell: Cell, prompts: Prompts, exact: bool, seconds: list[float]) -> Iterator[list[Pair]]:
    """Yield the prompts of a cell in the groups that the run computes; without `exact` the first few of one group.

    Append to `seconds` how long each took to make.
    """
    groups = groups_of(cell, prompts.spec) if exact else [itertools.islice(cell.samples, prompts.spec.group)]
    began = time.perf_counter()
    for samples in groups:
        pairs, tokens = list[Pair](), 0
        for sample in samples:
            pairs.append((sample, prompts.request(cell.task, sample)))
            tokens += len(pairs[-1][1].token_ids)
            now = time.perf_counter()
            seconds.append(now - began)
            began = now
            if not exact and len(pairs) >= FEWEST and tokens >= FEW_TOKENS:
                break
        yield pairs
        began = time.perf_counter()


def record_seconds(pairs: Sequence[Pair], arm: Arm, folder: Path) -> float:
    """Return how many seconds it takes to key and write a record, and its log-probabilities if it has a reference.

    Each is on disk at once. The file lies in the nearest folder at or above `folder` that is there, and is gone
    afterwards.
    """
    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())
    with write_errors(place), tempfile.TemporaryFile(dir=place) as file:
        began = time.perf_counter()
        for sample, request in pairs:
            output, score = lost_output(sample.id, "failed", ""), Score(None)
            (key,) = keys_of(request, [arm], "")
            line = to_line(to_record(key, sample, request, arm, output, score))
            for _ in range(2 if request.reference_ids else 1):
                write_line(file.fileno(), line)
        return (time.perf_counter() - began) / max(1, len(pairs))
