"""What a board shows of one run: its cells, paired differences, RULER averages and where they come from."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any, Protocol

from anchoreval.board.links import VIEWER
from anchoreval.schema import Json, Record
from anchoreval.scoring.aggregate import TASKS, effective_length, weighted_decreasing, weighted_increasing
from anchoreval.stats import Cell, Comparison, Difference, Place, cells, paired

RULER_TASKS = TASKS


class Run(Protocol):
    """A run folder that has been read."""

    @property
    def path(self) -> Path:
        """The folder."""
        ...

    @property
    def header(self) -> Mapping[str, Json]:
        """header.json."""
        ...

    @property
    def records(self) -> Sequence[Record]:
        """records.jsonl, in order."""
        ...


EXTENSION = "Attention masked by documents at inference is this project's extension, not part of arXiv 2411.13476."


@dataclass(frozen=True, slots=True)
class Average:
    """RULER's averages for one arm; scores 0..100. `tasks[length]` counts the tasks in `by_length[length]`.

    A mean over fewer than 13 tasks is shown as such. The weighted means and the effective length ("<4K",
    "8K", ">128K") are RULER's own: six lengths of 13 tasks each, None where one that matters is missing.
    """

    arm: str
    by_length: Mapping[int, float]
    tasks: Mapping[int, int]
    increasing: float | None
    decreasing: float | None
    effective: str | None

    @property
    def summary(self) -> str:
        """RULER's weighted means and effective length in words, or why there are none."""
        parts = []
        if self.increasing is not None and self.decreasing is not None:
            parts += [f"wAvg(inc) {self.increasing:.1f}", f"wAvg(dec) {self.decreasing:.1f}"]
        if self.effective is not None:
            parts.append(f"effective length {self.effective}")
        if len(parts) < 3:
            parts.append(f"wAvg needs RULER's six lengths, 4K to 128K, with all {RULER_TASKS} tasks")
        return f"means over {self.coverage} tasks; " + ", ".join(parts)

    @property
    def coverage(self) -> str:
        """`13 of 13`, or `11-12 of 13` where lengths differ."""
        counts = sorted(set(self.tasks.values()))
        span = str(counts[0]) if len(counts) == 1 else f"{counts[0]}-{counts[-1]}" if counts else "0"
        return f"{span} of {RULER_TASKS}"


@dataclass(frozen=True)
class RunView:
    """One run, ready to be rendered. `path` is the run's folder as seen from the board's folder, with `/`.

    `viewer`: whether a page of all its samples lies in the folder.
    """

    path: str
    header: Mapping[str, Json]
    records: tuple[Record, ...]
    tasks: tuple[str, ...]
    lengths: tuple[int, ...]
    arms: tuple[str, ...]
    cells: Mapping[tuple[str, int, str], Cell]
    unmakeable: Mapping[Place, str]
    viewer: bool = False

    @property
    def name(self) -> str:
        """The run's name in its header."""
        return str(self.header.get("run") or self.path)

    @property
    def extension(self) -> str:
        """A sentence where arms mask attention by documents at inference, else empty."""
        masked = [arm for arm in self.arms if arm.startswith(("anchor/", "intra-doc/"))]
        return EXTENSION if masked else ""

    @property
    def comparable(self) -> bool:
        """Whether the header says that the scores may stand beside published RULER's."""
        return self.header.get("comparable") is not False

    @cached_property
    def fingerprint(self) -> str:
        """First 12 hex digits of the SHA-256 of the header as canonical JSON."""
        text = json.dumps(self.header, sort_keys=True, separators=(",", ":"), default=str)
        return hashlib.sha256(text.encode("ascii")).hexdigest()[:12]

    @cached_property
    def comparisons(self) -> Mapping[tuple[str, str], Comparison]:
        """(arm, baseline) -> their paired differences, for every ordered pair of arms."""
        found: dict[tuple[str, str], Comparison] = {}
        for i, baseline in enumerate(self.arms):
            for arm in self.arms[i + 1 :]:
                found[arm, baseline] = comparison = paired(self.records, arm, baseline)
                found[baseline, arm] = comparison.reversed()
        return found

    @cached_property
    def averages(self) -> Mapping[str, Average]:
        """Arm -> RULER averages; empty when the run holds no RULER task."""
        if not any(task.startswith("ruler/") for task in self.tasks):
            return {}
        return {arm: self._average(arm) for arm in self.arms}

    @property
    def expected(self) -> int | None:
        """How many records the finished run has, by its header; None when the header does not tell."""
        limit, rule = self.header.get("limit"), self.header.get("until")
        if rule:  # stopped by verdicts: known when they are in
            used = [int(cell["used"]) for cell in rule.get("cells", [])]
            return sum(used) * len(self.arms) if used else None
        if asked := _list(self.header, "asked"):
            return sum(int(cell["samples"]) for cell in asked) * len(self.arms)
        if not isinstance(limit, int):
            return None
        places = [(task, length) for task in self.tasks for length in self.lengths]
        return limit * len(self.arms) * sum(place not in self.unmakeable for place in places)

    def differences(self, arm: str, baseline: str) -> Mapping[Place, Difference]:
        """(task, length) -> the difference there."""
        found = self.comparisons[arm, baseline].cells
        return {(str(cell.task), int(cell.length or 0)): cell for cell in found}

    def _average(self, arm: str) -> Average:
        by_length: dict[int, dict[str, float]] = {}
        for (task, length, of), cell in self.cells.items():
            if of == arm and cell.mean is not None and task.startswith("ruler/"):
                by_length.setdefault(length, {})[task] = round(100 * cell.mean, 2)  # as upstream
        means = {length: fmean(by_length[length].values()) for length in sorted(by_length)}
        whole = {length: mean for length, mean in means.items() if len(by_length[length]) == RULER_TASKS}
        return Average(
            arm,
            means,
            {length: len(by_length[length]) for length in means},
            weighted_increasing(whole),
            weighted_decreasing(whole),
            effective_length(whole),
        )


def view(run: Run, folder: Path) -> RunView:
    """The run as a board in `folder` shows it; tasks and arms in the header's order, lengths ascending."""
    found = {(cell.task, cell.length, cell.arm): cell for cell in cells(run.records)}
    header = run.header
    arms = [_name(arm) for arm in _list(header, "arms")]
    return RunView(
        relative(run.path, folder),
        header,
        tuple(run.records),
        _ordered([str(task) for task in _list(header, "tasks")], (task for task, _, _ in found)),
        tuple(sorted({*map(int, _list(header, "lengths")), *(length for _, length, _ in found)})),
        _ordered(arms, (arm for _, _, arm in found)),
        found,
        unmakeable(header),
        (run.path / VIEWER).is_file(),
    )


def unmakeable(header: Mapping[str, Json]) -> dict[Place, str]:
    """(task, length) -> why the header says that no such sample can be made."""
    return {(str(one["task"]), int(one["length"])): str(one["why"]) for one in _list(header, "unmakeable")}


def section(header: Mapping[str, Json], key: str) -> Mapping[str, Json]:
    """The object under `key` of a header; empty where there is none."""
    value = header.get(key)
    return value if isinstance(value, Mapping) else {}


def _name(arm: Any) -> str:
    return str(arm["name"] if isinstance(arm, Mapping) else arm)


def _list(header: Mapping[str, Json], key: str) -> list[Any]:
    return list(header.get(key) or [])


def _ordered(first: Iterable[str], then: Iterable[str]) -> tuple[str, ...]:
    """`first`, then what else is in `then`, sorted; each once."""
    known = dict.fromkeys(first)
    return (*known, *sorted(set(then) - set(known)))


def relative(path: Path, folder: Path) -> str:
    """`path` as seen from `folder`, with `/`."""
    try:
        return Path(os.path.relpath(path, folder)).as_posix()
    except ValueError:  # another drive
        return path.as_posix()
