"""axe-core on board.html in Chromium, in both themes and at both sizes: nothing serious."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_board import make_run

from anchoreval.reports.board import write_board

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("board")
    return write_board([make_run(folder / "run")], folder)[1]


@pytest.mark.parametrize("size", ["desktop", "phone"])
def test_axe_finds_nothing_serious_on_a_board(open_page: Callable[..., Any], board: Path, size: str) -> None:
    with open_page(board, size=size) as tab:
        assert tab.axe_in_both_themes() == []
        assert not tab.overflows and not tab.problems


def test_axe_sees_what_is_wrong(open_page: Callable[..., Any], tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text('<html><title>x</title><img src="data:,"><p style="color:#ccc;background:#fff">faint</p>')
    with open_page(page) as tab:
        found = " ".join(tab.axe())
    assert "image-alt" in found and "color-contrast" in found and "html-has-lang" in found
