"""Maps of length x depth on the board: every cell against the mean that its records give, and the page in a browser."""

from __future__ import annotations

import dataclasses
import random
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from browser import Tab
from test_board import make_run, maps

from anchoreval.records.run import Run
from anchoreval.reports.board import board_html, write_board
from anchoreval.reports.board.cells import Map, grid_maps
from anchoreval.reports.board.view import view
from anchoreval.reports.page import nats_scale
from anchoreval.schema import Record
from anchoreval.stats import holm, labels

ARMS, LENGTHS, DEPTHS, TASKS = ("native", "bf16-angle"), (512, 1024), (0, 50, 100), ("niah/single", "niah/multi")


def niah_run(path: Path, repeats: int = 3, wrong: Any = None) -> Run:
    """A run on a grid; `wrong` is a depth that no grid has."""
    rng, plain = random.Random(3), make_run(path)
    records = []
    for task in TASKS:
        for length in LENGTHS:
            for index in range(len(DEPTHS) * repeats):
                for arm in ARMS:
                    depth = DEPTHS[index % len(DEPTHS)] if wrong is None else wrong
                    score = rng.choice((0.0, 1.0)) if task == "niah/single" else rng.choice((0.0, 1 / 3, 1.0))
                    record = Record(
                        key=f"{task}{length}{index}{arm}", sample_id=f"{task}@{length}#{index}", task=task,
                        length=length, index=index, arm=arm, prompt_sha256=f"{index:064x}", prompt_tokens=length,
                        references=("7",), facts={"depth_percent": depth, "depths": [0.1]}, output="7",
                        output_tokens=1, finish="stop", score=score, why=None, reference_logprob=-rng.random() * 8,
                        reference_tokens=4, seconds=0.1,
                    )  # fmt: skip
                    records.append(record)
    header = dict(plain.header) | {
        "arms": [{"name": arm} for arm in ARMS], "tasks": list(TASKS), "lengths": list(LENGTHS), "unmakeable": [],
        "limit": 500,
        "asked": [{"task": t, "length": n, "samples": len(DEPTHS) * repeats} for t in TASKS for n in LENGTHS],
    }  # fmt: skip
    return Run(path, header, tuple(records))


@pytest.fixture(scope="module")
def run() -> Run:
    return niah_run(Path("runs/demo"))


def grids(run: Run) -> dict[str, Map]:
    shown = view(run, Path("runs/demo"))
    pairs = [(arm, base) for base, arm in combinations(shown.subjects, 2)]
    return grid_maps(shown.records, shown.tasks, pairs, labels(shown.subjects))


def chosen(run: Run, task: str, arm: str, length: int, depth: int) -> list[Record]:
    return [r for r in run.records if (r.task, r.arm, r.length, r.facts["depth_percent"]) == (task, arm, length, depth)]


def test_every_cell_is_the_mean_of_its_records_with_depth_0_first(run: Run) -> None:
    maps = grids(run)
    assert list(maps) == list(TASKS)
    for task, drawn in maps.items():
        assert drawn.rows == ("0", "50", "100") and len(drawn.means) == len(ARMS) * len(LENGTHS) * len(DEPTHS)
        for (row, length, arm), mean in drawn.means.items():
            records = chosen(run, task, arm.arm, length, DEPTHS[row])
            assert mean.mean == pytest.approx(fmean(record.score or 0.0 for record in records))
            assert mean.logprob == pytest.approx(fmean((record.reference_logprob or 0.0) / 4 for record in records))
            assert (mean.scored, mean.asked) == (3, 3)


def test_a_difference_is_the_mean_of_the_pairs(run: Run) -> None:
    for task, drawn in grids(run).items():
        assert len(drawn.gaps) == len(LENGTHS) * len(DEPTHS)
        for (row, length, arm, base), gap in drawn.gaps.items():
            a, b = (chosen(run, task, which.arm, length, DEPTHS[row]) for which in (arm, base))
            points = fmean((x.score or 0.0) - (y.score or 0.0) for x, y in zip(a, b, strict=True))
            nats = fmean((x.reference_logprob or 0.0) - (y.reference_logprob or 0.0) for x, y in zip(a, b, strict=True))
            assert gap.row.difference.difference == pytest.approx(points)
            assert gap.row.difference.logprob == pytest.approx(nats / 4)
            assert gap.row.difference.pairs == 3 and "too few pairs" in gap.row.says


def test_a_run_without_a_grid_has_no_such_maps_and_one_with_it_has_them_on_the_page(run: Run) -> None:
    plain = make_run(Path("runs/demo"))
    assert not grids(plain) and not maps(board_html([plain], Path("runs/demo")))["grids"]
    page = board_html([run], Path("runs/demo"))
    assert [grid["task"][0] for grid in maps(page)["grids"]] == list(TASKS)
    assert "72 of 72" in page and "Unfinished" not in page


@pytest.mark.parametrize("wrong", ["<b>9</b>", True, float("nan"), float("inf"), [1], {}])
def test_a_depth_that_is_no_number_is_on_no_map(wrong: Any) -> None:
    assert not grids(niah_run(Path("runs/demo"), 1, wrong))


def test_a_cell_without_score_or_pair_has_none(run: Run) -> None:
    records = [
        dataclasses.replace(r, score=None, why="memory", reference_logprob=None)
        if r.facts["depth_percent"] == 50
        else r
        for r in run.records
        if not (r.length == 1024 and r.facts["depth_percent"] == 100 and r.arm == "native")
    ]
    drawn = grids(dataclasses.replace(run, records=tuple(records)))[TASKS[0]]
    native = {(row, n): mean.mean for (row, n, arm), mean in drawn.means.items() if arm.arm == "native"}
    assert native[1, 512] is native[1, 1024] is None and (2, 1024) not in native
    pairs = {(row, n): gap.row.difference.pairs for (row, n, *_), gap in drawn.gaps.items()}
    assert pairs[1, 512] == 0 and pairs.get((2, 1024), 0) == 0


@pytest.mark.parametrize(
    ("values", "end"),
    [([], 1e-3), ([0.0], 1e-3), ([1e-9], 1e-3), ([0.0011], 1.5e-3), ([-0.3], 0.3), ([0.71], 1), ([4], 5)],
)
def test_a_map_of_log_probabilities_ends_at_a_round_number(values: list[float], end: float) -> None:
    assert nats_scale(values) == pytest.approx(end)


@pytest.mark.browser
@pytest.mark.parametrize("size", ["desktop", "phone"])
def test_the_maps_are_read_by_everyone_and_follow_the_baseline(
    run: Run, tmp_path: Path, open_page: Callable[..., AbstractContextManager[Tab]], size: str
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    _, html = write_board([dataclasses.replace(run, path=folder)], tmp_path)
    with open_page(html, size=size) as tab:
        tab.page.select_option("#map-kind", "grids")
        titles = tab.page.locator("#maps caption").all_inner_texts()
        assert titles == ["bf16-angle minus native"] * 2 + ["native", "bf16-angle"] * 2
        cell = tab.page.locator("#scores .heat td a").first
        cell.hover()
        assert re.search(r"niah/single, length 512, depth 0%, native: .*3 of 3 scored", tab.page.inner_text("#tip"))
        score = cell.inner_text()
        tab.page.select_option("#map-measure", "logprob")
        tab.page.select_option("#map-base", label="bf16-angle")
        assert not tab.problems and not tab.overflows and not tab.axe()
        assert tab.page.locator("#gaps caption").all_inner_texts() == ["native minus bf16-angle"] * 2
        assert tab.page.locator("#scores .heat td a").first.inner_text() != score


def test_the_cells_of_all_maps_of_an_arm_are_corrected_together(run: Run) -> None:
    rows = [gap.row for drawn in grids(run).values() for gap in drawn.gaps.values()]
    assert len(rows) == len(TASKS) * len(DEPTHS) * len(LENGTHS)
    assert sorted(row.p_holm for row in rows) == sorted(holm([row.difference.p for row in rows]))
