"""From a number on a board to the raw record behind it: a cell's link, then a sample, in headless Chromium."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from anchoreval.cli.parser import main
from anchoreval.records.run import load_run
from tests.conftest import REPOSITORY

pytestmark = pytest.mark.browser

COMMITTED = REPOSITORY / "leaderboards" / "results" / "anchor-tiny" / "31bf25797b7ffa79"  # 13 tasks, 20 samples
TASK, LENGTH, ARM = "ruler/niah_multikey_2", 1024, "bf16"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    shutil.copytree(COMMITTED, folder, ignore=shutil.ignore_patterns("view"))
    return folder


@pytest.mark.parametrize("declared", [False, True], ids=["plain", "declared"])
def test_two_clicks_lead_from_a_cell_to_its_raw_records(
    open_page: Callable[..., Any], run: Path, tmp_path: Path, declared: bool
) -> None:
    definition = ["--definition", str(REPOSITORY / "leaderboards" / "anchor-tiny.yaml")] if declared else []
    assert main(["board", str(run), *definition, "--output", str(tmp_path)]) == 0
    query = f"task={TASK.replace('/', '%2F')}&length={LENGTH}&arm={ARM}"
    found = [one for one in load_run(run).records if (one.task, one.length, one.arm) == (TASK, LENGTH, ARM)]
    with open_page(tmp_path / ("anchor-tiny.html" if declared else "board.html")) as tab:
        mean = f"{100 * sum(one.score or 0 for one in found) / len(found):.1f}"
        links = tab.page.locator(f"a[href$='view/index.html#{query}']:visible")
        links.filter(has_text=re.compile(rf"^\s*{re.escape(mean)}\s*$")).first.click()
        tab.page.wait_for_selector("#samples tbody a")
        assert f"{len(found)} of" in tab.page.inner_text("body")
        tab.page.locator("#samples tbody a").first.click()
        raw = json.loads(tab.page.locator(f"#raw pre[aria-label='Record of {ARM}']").inner_text())
        assert raw in [json.loads(line) for line in (run / "records.jsonl").read_text().splitlines()]
        assert raw["task"] == TASK and raw["sample_id"] in {one.sample_id for one in found} and not tab.problems
