"""Maps of length x depth on the board: every cell against the mean that its records give, and the page in a browser."""

from __future__ import annotations

import dataclasses
import math
import random
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from browser import Tab
from test_board import make_run

from anchoreval.records.run import Run
from anchoreval.reports import colours
from anchoreval.reports.board import board_html, write_board
from anchoreval.reports.board.depths import Depths, _gaps, depth_maps, nats_scale
from anchoreval.reports.board.view import view
from anchoreval.schema import Record
from anchoreval.stats import holm

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


@pytest.fixture(scope="module")
def depths(run: Run) -> Depths:
    found = depth_maps(view(run, Path("runs/demo")), 0)
    assert found is not None
    return found


def chosen(run: Run, task: str, arm: str, length: int, depth: int) -> list[Record]:
    return [r for r in run.records if (r.task, r.arm, r.length, r.facts["depth_percent"]) == (task, arm, length, depth)]


def test_every_cell_is_the_mean_of_its_records_with_0_at_the_top_and_lengths_to_the_right(
    run: Run, depths: Depths
) -> None:
    assert [one.task for one in depths.tasks] == list(TASKS)
    for one in depths.tasks:
        assert one.lengths == LENGTHS and [drawn.title for drawn in one.scores] == list(ARMS)
        for arm, scores, logprobs in zip(ARMS, one.scores, one.logprobs, strict=True):
            assert [name for name, _ in scores.rows] == [name for name, _ in logprobs.rows] == ["0", "50", "100"]
            for depth, (_, fields), (_, others) in zip(DEPTHS, scores.rows, logprobs.rows, strict=True):
                for length, field, other in zip(LENGTHS, fields, others, strict=True):
                    records = chosen(run, one.task, arm, length, depth)
                    mean = fmean(record.score or 0.0 for record in records)
                    nats = fmean((record.reference_logprob or 0.0) / 4 for record in records)
                    assert field.text == f"{100 * mean:.0f}" and field.style == colours.score_class(mean)
                    assert other.text == f"{nats:.2f}" and other.style == colours.score_class(math.exp(nats))
                    assert f"length {length:,}, depth {depth}%, {arm}: " in field.label
                    assert "3 of 3 scored" in field.label


def test_a_difference_map_holds_the_mean_of_the_pairs_for_either_baseline(run: Run, depths: Depths) -> None:
    for one in depths.tasks:
        assert list(one.against) == list(ARMS)
        for base, arm in (ARMS, ARMS[::-1]):
            ((drawn,), (nats,)) = one.against[base].scores, one.against[base].logprobs
            assert drawn.title == nats.title == f"{arm} minus {base}"
            for depth, (_, fields), (_, others) in zip(DEPTHS, drawn.rows, nats.rows, strict=True):
                for length, field, other in zip(LENGTHS, fields, others, strict=True):
                    a, b = (chosen(run, one.task, which, length, depth) for which in (arm, base))
                    points = 100 * fmean((x.score or 0.0) - (y.score or 0.0) for x, y in zip(a, b, strict=True))
                    assert float(field.text) == pytest.approx(points, abs=0.06)
                    assert "3 pairs (" in field.label and "too few pairs" in field.label
                    lost = [
                        (x.reference_logprob or 0.0) - (y.reference_logprob or 0.0) for x, y in zip(a, b, strict=True)
                    ]
                    assert float(other.text) == pytest.approx(fmean(lost) / 4, rel=0.06, abs=0.006)
                    told = "log-probability per token: lower" in other.label or "token: higher" in other.label
                    assert other.style == colours.difference_class(fmean(lost) / 4, depths.nats, told)
    assert depths.scale in colours.SCALES


def test_a_run_without_a_grid_has_no_such_maps_and_one_with_it_shows_them(run: Run) -> None:
    plain = make_run(Path("runs/demo"))
    assert depth_maps(view(plain, Path("runs/demo")), 0) is None
    assert "By length and depth" not in board_html([plain], Path("runs/demo"))
    page = board_html([run], Path("runs/demo"))
    assert page.count('<table class="heat grid">') == 2 * len(TASKS) * (len(ARMS) + 2)
    assert "log-probability, nats per token" in page and "72 of 72" in page and "Unfinished" not in page


@pytest.mark.parametrize("wrong", ["<b>9</b>", True, float("nan"), float("inf"), [1], {}])
def test_a_depth_that_is_no_number_is_on_no_map(wrong: Any) -> None:
    run = niah_run(Path("runs/demo"), 1, wrong)
    assert depth_maps(view(run, Path("runs/demo")), 0) is None


def test_a_cell_without_score_or_pair_is_marked_and_says_so(run: Run) -> None:
    records = [
        dataclasses.replace(r, score=None, why="memory", reference_logprob=None)
        if r.facts["depth_percent"] == 50
        else r
        for r in run.records
        if not (r.length == 1024 and r.facts["depth_percent"] == 100 and r.arm == "native")
    ]
    found = depth_maps(view(dataclasses.replace(run, records=tuple(records)), Path("runs/demo")), 0)
    assert found is not None
    native, minus = found.tasks[0].scores[0], found.tasks[0].against["native"].scores[0]
    assert [field.style for field in native.rows[1][1]] == ["none", "none"] and "no score" in native.rows[1][1][0].label
    assert "no records" in native.rows[2][1][1].label and "no pairs" in minus.rows[2][1][1].label


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
        tab.page.locator("summary", has_text="log-probability").first.click()
        assert not tab.problems and not tab.overflows
        assert not tab.axe()
        titles = tab.page.locator(".grid-task").first.locator("caption:visible").all_inner_texts()
        assert titles == ["native", "bf16-angle", "bf16-angle minus native"]
        tab.page.locator("select.baseline").select_option("1")
        titles = tab.page.locator(".grid-task").first.locator("caption:visible").all_inner_texts()
        assert titles == ["native", "bf16-angle", "native minus bf16-angle"]
        cell = tab.page.locator(".heat.grid td a").first
        cell.hover()
        assert re.search(r"depth 0%, native: .*3 of 3 scored", tab.page.locator("#tip").inner_text())


def test_the_cells_of_all_maps_of_an_arm_are_corrected_together(run: Run) -> None:
    by_depth = {float(depth): [r for r in run.records if r.facts["depth_percent"] == depth] for depth in DEPTHS}
    rows = [row for (_, arm, *_), row in _gaps(ARMS, by_depth).items() if arm == "bf16-angle"]
    assert len(rows) == len(TASKS) * len(DEPTHS) * len(LENGTHS)
    assert [row.p_holm for row in rows] == holm([row.difference.p for row in rows])
