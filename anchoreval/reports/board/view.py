"""What a board shows of one run: its cells, paired differences, RULER averages and their provenance."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import permutations
from pathlib import Path
from statistics import fmean

from anchoreval.records.header import Header
from anchoreval.records.run import Run
from anchoreval.reports.links import has_viewer, relative
from anchoreval.reports.outcomes import OutcomeLine, outcome_lines, run_notes
from anchoreval.reports.words import plain
from anchoreval.schema import Record
from anchoreval.stats import Cell, Cells, Compared, Contrast, Place, Row, Subject, average_ends, figures
from anchoreval.suites.ruler.averages import TASKS, effective_length, weighted_decreasing, weighted_increasing

RULER_TASKS = TASKS


@dataclass(frozen=True, slots=True)
class RulerMeans:
    """RULER's averages for one arm; scores 0..100. `tasks[length]` counts the tasks in `by_length[length]`.

    A mean over fewer than 13 tasks is marked as such, and so is a mean from which samples without a score are left out:
    `lost[length]` counts those, and `as_wrong[length]` is the mean if they count as wrong. `ends[length]` is the 95%
    interval of the mean. The weighted means and the effective length ("<4K", "8K", ">128K") are RULER's own: they need
    six lengths of 13 tasks each, and are None if a length that matters is missing.
    """

    arm: str
    by_length: Mapping[int, float]
    tasks: Mapping[int, int]
    increasing: float | None
    decreasing: float | None
    effective: str | None
    lost: Mapping[int, int]
    as_wrong: Mapping[int, float]
    ends: Mapping[int, tuple[float, float]] = field(default_factory=dict)

    @property
    def summary(self) -> str:
        """Return RULER's weighted means and effective length in words, or why there are none."""
        parts = []
        if self.increasing is not None and self.decreasing is not None:
            parts += [f"wAvg(inc) {self.increasing:.1f}", f"wAvg(dec) {self.decreasing:.1f}"]
        if self.effective is not None:
            parts.append(f"effective length {self.effective}")
        if len(parts) < 3:
            parts.append(f"wAvg needs RULER's six lengths, 4K to 128K, with all {RULER_TASKS} tasks")
        left = (
            f"{sum(self.lost.values()):,} samples have no score and are left out; " if any(self.lost.values()) else ""
        )
        return f"means over {self.coverage} tasks; {left}" + ", ".join(parts)

    @property
    def coverage(self) -> str:
        """Return `13 of 13`, or `11-12 of 13` if lengths differ."""
        counts = sorted(set(self.tasks.values()))
        span = str(counts[0]) if len(counts) == 1 else f"{counts[0]}-{counts[-1]}" if counts else "0"
        return f"{span} of {RULER_TASKS}"


@dataclass(frozen=True)
class RunView:
    """One run, ready to be rendered. `path` is the run's folder relative to the board's folder, with `/`.

    `viewer` is True if the folder holds a page of all its samples. `changed` says what changed since the run finished.
    """

    path: str
    header: Header
    records: tuple[Record, ...]
    tasks: tuple[str, ...]
    lengths: tuple[int, ...]
    arms: tuple[str, ...]
    subjects: Mapping[Subject, Cells]
    cells: Mapping[tuple[str, int, str], Cell]
    unmakeable: Mapping[Place, str]
    viewer: bool = False
    changed: str = ""

    @property
    def name(self) -> str:
        """Return the run's name in its header."""
        return self.header.run or self.path

    @property
    def model(self) -> str:
        """Return the name of the model, else that of the run."""
        return str(self.header.model.get("name") or self.name)

    @property
    def notes(self) -> list[str]:
        """Return what a reader must know beside the scores."""
        return list(run_notes(self.header, self.records, self.arms, self.changed))

    def comparable(self, tasks: Sequence[str]) -> bool:
        """Return whether the scores of all these tasks are comparable with published ones."""
        return not self.header.incomparable_words(tasks, self.records)

    @cached_property
    def outcomes(self) -> Sequence[OutcomeLine]:
        """Return a line for each outcome other than a plain answer."""
        return outcome_lines(self.header, self.records)

    @cached_property
    def fingerprint(self) -> str:
        """Return the first 12 hex digits of the SHA-256 of the header as canonical JSON."""
        text = json.dumps(self.header, sort_keys=True, separators=(",", ":"), default=str)
        return hashlib.sha256(text.encode("ascii")).hexdigest()[:12]

    @cached_property
    def compared(self) -> Compared:
        """Return the paired differences of the arms, each computed once."""
        return Compared(self.subjects)

    @cached_property
    def contrasts(self) -> Mapping[tuple[str, str], Contrast]:
        """Return (arm, baseline) -> their paired differences with verdicts, for every ordered pair of arms."""
        known = {subject.arm: subject for subject in self.subjects}
        pairs = permutations(self.arms, 2)
        return {(arm, base): self.compared.contrast(known[arm], known[base]) for base, arm in pairs}

    @cached_property
    def averages(self) -> Mapping[str, RulerMeans]:
        """Return arm -> RULER averages; empty if the run holds no RULER task."""
        if not any(task.startswith("ruler/") for task in self.tasks):
            return {}
        return {arm: self._average(arm) for arm in self.arms}

    @property
    def ruler_words(self) -> list[str]:
        """Return RULER's averages in words, once if they are the same for all arms."""
        summaries = {average.summary for average in self.averages.values() if average.by_length}
        if len(summaries) == 1:
            return [f"RULER: {summaries.pop()}"]
        return [f"{plain(arm, 40)}: RULER {average.summary}" for arm, average in self.averages.items()]

    @property
    def expected(self) -> int | None:
        """Return the number of records of the finished run by its header, or None if the header does not tell."""
        if (samples := self.header.samples) is not None:
            return samples * len(self.arms)
        if self.header.get("until") or self.header.limit is None:
            return None
        places = [(task, length) for task in self.tasks for length in self.lengths]
        return self.header.limit * len(self.arms) * sum(place not in self.unmakeable for place in places)

    def differences(self, arm: str, baseline: str) -> Mapping[Place, Row]:
        """Return (task, length) -> the difference in that cell."""
        rows = self.contrasts[arm, baseline].cells
        return {(str(row.difference.task), int(row.difference.length or 0)): row for row in rows}

    def _average(self, arm: str) -> RulerMeans:
        by_length: dict[int, list[Cell]] = {}
        for cell in self.cells.values():
            if cell.arm == arm and cell.task.startswith("ruler/"):
                by_length.setdefault(cell.length, []).append(cell)
        scored = {
            n: length_cells
            for n in sorted(by_length)
            if (length_cells := [cell for cell in by_length[n] if cell.scored])
        }
        means = {n: fmean(_rounded(cell.mean) for cell in length_cells) for n, length_cells in scored.items()}
        whole = {n: mean for n, mean in means.items() if len(scored[n]) == RULER_TASKS}
        return RulerMeans(
            arm,
            means,
            {n: len(length_cells) for n, length_cells in scored.items()},
            weighted_increasing(whole),
            weighted_decreasing(whole),
            effective_length(whole),
            {n: sum(cell.lost for cell in length_cells) for n, length_cells in by_length.items()},
            {n: fmean(_rounded(cell.as_wrong) for cell in length_cells) for n, length_cells in by_length.items()},
            {n: average_ends([(1.0, cell) for cell in length_cells]) for n, length_cells in scored.items()},
        )


def _rounded(mean: float | None) -> float:
    """Return points with two decimals, as upstream averages them."""
    return round(100 * (mean or 0.0), 2)


def view(run: Run, folder: Path) -> RunView:
    """Return the run as a board in `folder` shows it; tasks and arms in the header's order, lengths ascending."""
    known = {run_subject.arm: (run_subject, cells) for run_subject, cells in run.subjects().items()}
    subjects = dict(known.get(arm) or (run.header.subject(arm, run.name), {}) for arm in run.arms)
    all_cells = {
        (*place, run_subject.arm): Cell(*place, run_subject.arm, **figures([scores]))
        for run_subject, cells in subjects.items()
        for place, scores in cells.items()
    }
    return RunView(
        relative(run.path, folder),
        run.header,
        run.records,
        run.tasks,
        tuple(sorted({*run.header.lengths, *(length for _, length, _ in all_cells)})),
        run.arms,
        subjects,
        all_cells,
        run.header.unmakeable,
        has_viewer(run.path),
        run.changed,
    )
