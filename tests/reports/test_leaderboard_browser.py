"""A declared board in Chromium: accessible, usable by keyboard, readable without scripts, inert to hostile names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_board import make_run
from test_leaderboard import BOARDS, declared, saved

from anchoreval.reports.board.declared import write_leaderboard

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
