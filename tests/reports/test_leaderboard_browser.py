"""A declared board in Chromium: accessible, usable by keyboard, readable without scripts, inert to hostile names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_board import make_run
from test_leaderboard import BOARDS, declared, saved

from anchoreval.records.header import Header
from anchoreval.reports.board.declared import write_leaderboard, write_summary

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("board")
    run = saved(make_run(folder / "run", hostile=True))
    (run / "view").mkdir()
    (run / "view" / "index.html").write_text("<title>viewer</title>")
    reported = str(BOARDS / "reported" / "wang2024-longbench-general.csv")
    return write_leaderboard([run], declared(folder, reported=[reported]), folder / "out")[1]


@pytest.mark.parametrize("size", ["desktop", "phone", "narrow"])
def test_axe_finds_nothing_serious_and_nothing_leaves_the_page(
    open_page: Callable[..., Any], board: Path, size: str
) -> None:
    with open_page(board, size=size) as tab:
        tab.page.select_option("#map-base", label="native")
        assert tab.axe_in_both_themes() == [] and not tab.problems and not tab.overflows
        assert tab.page.title() == "t · anchoreval board"


def test_rows_filter_and_sort_and_maps_turn_to_another_baseline(open_page: Callable[..., Any], board: Path) -> None:
    with open_page(board) as tab:
        page = tab.page
        page.select_option("#find-arm", label="bf16-angle")
        assert page.locator("#board tbody tr:visible").count() == 1
        page.select_option("#find-arm", label="all")
        page.click("#board thead th:nth-child(2) button")
        arms = page.locator("#board tbody th").all_inner_texts()
        assert arms == sorted(arms) and len(arms) == 3
        page.select_option("#map-base", label="bf16-angle")
        assert page.locator("#gaps caption").all_inner_texts() == ["native minus bf16-angle", "fp32 minus bf16-angle"]
        page.select_option("#map-kind", label="depth x length")
        assert page.locator("#gaps tbody tr").count() == 20
        page.focus("#gaps td a >> nth=0")
        page.keyboard.press("ArrowDown")
        assert "too few pairs" in page.inner_text("#tip") and "10-20%" in page.inner_text("#tip")
        page.keyboard.press("Enter")
        page.wait_for_url("**/run/view/index.html#length=*")


def test_without_scripts_it_is_a_readable_table(open_page: Callable[..., Any], board: Path) -> None:
    with open_page(board, scripts=False) as tab:
        assert tab.page.locator("#board tbody tr:visible").count() == 3
        assert tab.page.locator("noscript p:visible").count() == 1 and not tab.page.locator("#controls:visible").count()


@pytest.fixture(scope="module")
def summary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("many")
    runs = [saved(make_run(folder / name, samples=count)) for name, count in (("one", 4), ("two", 8), ("three", 12))]
    return write_summary(runs, folder)[1]


def test_many_models_are_ranked_folded_chosen_and_the_address_keeps_the_view(
    open_page: Callable[..., Any], summary: Path
) -> None:
    with open_page(summary) as tab:
        page, rows = tab.page, tab.page.locator("#board tbody tr:visible")
        page.fill("#find-model", "run one; run three")
        assert rows.count() == 6
        page.check("#fold")
        assert rows.count() == 2 and page.locator("button.fold").all_inner_texts() == ["+2", "+2"]
        page.click("button.fold >> nth=0")
        assert rows.count() == 4
        assert not page.locator("[data-rank]").count()  # what nothing sorts has no rank
        head = page.locator("#board thead th:nth-child(5)")
        head.locator("button").click()
        assert head.get_attribute("aria-sort") == "descending"  # a score: the best first
        page.click(".columns summary")
        page.uncheck(".columns label >> nth=-1")
        assert not page.locator("#board thead th").last.is_visible()
        assert tab.axe() == [] and not tab.problems
        address = page.url
        assert address.endswith("#rows?model=run+one%3B+run+three&fold=1&without=10&sort=4down"), address
        page.goto("about:blank")
        page.goto(address)
        assert rows.count() == 2 and page.input_value("#find-model") == "run one; run three"
        assert not page.locator("#board thead th").last.is_visible() and page.is_checked("#fold")
        assert page.locator("#board thead th:nth-child(5)").get_attribute("aria-sort") == "descending"


def test_a_rank_is_by_the_sorted_column_among_the_rows_shown_and_says_ties(
    open_page: Callable[..., Any], summary: Path
) -> None:
    with open_page(summary) as tab:
        page, rows, column = tab.page, tab.page.locator("#board tbody tr:visible"), 4

        def ranks() -> list[str]:
            shown = rows.evaluate_all(
                "(rows, column) => rows.map((row) => [row.cells[0].dataset.rank ?? '', row.cells[column].dataset.key])",
                column,
            )
            values = [float(key) for _, key in shown]
            ties = ["=" if values.count(value) > 1 else "" for value in values]
            firsts = [1 + sum(other > value for other in values) for value in values]
            best = [f"{first}{tie}" for first, tie in zip(firsts, ties, strict=True)]
            assert [rank for rank, _ in shown] == best
            return best

        head = page.locator(f"#board thead th:nth-child({column + 1}) button")
        head.click()
        down = ranks()
        assert down[0].rstrip("=") == "1" and len(down) == 9
        head.click()
        assert ranks() == down[::-1]  # upwards the best is the last, and still the first by rank
        page.fill("#find-model", "run two")
        assert len(ranks()) == 3
        page.click("#board thead th:nth-child(2) button")
        assert not page.locator("[data-rank]").count()  # names have none


def test_a_board_with_an_order_is_ranked_by_it_from_the_start(open_page: Callable[..., Any], tmp_path: Path) -> None:
    runs = []
    for name, count in (("one", 4), ("two", 12)):
        run = make_run(tmp_path / name, samples=count)
        runs.append(saved(replace(run, header=Header(run.header | {"model": {"name": name, "sha256": name}}))))
    made = write_leaderboard(
        runs, declared(tmp_path, columns=["by_length", "samples"], order=["-samples"]), tmp_path / "out"
    )
    with open_page(made[1]) as tab:
        ways = tab.page.locator("#board thead th").evaluate_all("heads => heads.map((head) => head.ariaSort)")
        assert ways == [*["none"] * (len(ways) - 1), "descending"]
        ranks = tab.page.locator("#board tbody tr td:first-child").evaluate_all(
            "cells => cells.map((cell) => cell.dataset.rank)"
        )
        assert ranks == [*["1="] * 3, *["4="] * 3]  # the arms of a model have as many samples
        assert tab.axe() == [] and not tab.problems
