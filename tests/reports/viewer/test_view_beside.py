"""Viewers that commands write on the way: cheap, never a reason to fail, never in place of one that holds more."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from anchoreval.cli.parser import main
from anchoreval.errors import RunError
from anchoreval.reports.viewer import write
from tests.conftest import REPOSITORY

COMMITTED = REPOSITORY / "leaderboards" / "results" / "anchor-tiny" / "3ea75cb9ef6b0c93"
RUN = [
    "run",
    "--model",
    "anchor-tiny",
    "--tasks",
    "ruler/vt",
    "--lengths",
    "512",
    "--limit",
    "2",
    "--backend",
    "fake",
    "--rope",
    "bf16,fp32",
    "--output",
]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return Path(shutil.copytree(COMMITTED, tmp_path / "run", ignore=shutil.ignore_patterns("view")))


def test_a_run_that_cannot_have_a_viewer_is_finished_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object, **__: object) -> Path:
        raise RunError("cannot write view: No space left on device")

    monkeypatch.setattr(write, "write_view", full)
    assert main([*RUN, str(tmp_path)]) == 0
    assert "No space left on device; boards link to records.jsonl instead" in capsys.readouterr().err
    (board,) = tmp_path.glob("*/*/board.html")
    assert 'view/index.html"' not in board.read_text() and 'view/index.html#"' not in board.read_text()


def test_a_viewer_with_prompts_stays_and_one_of_other_records_does_not(tmp_path: Path) -> None:
    assert main([*RUN, str(tmp_path)]) == 0
    (folder,) = tmp_path.glob("anchor-tiny/*")
    page = folder / "view" / "index.html"
    assert main(["view", str(folder)]) == 0
    whole = page.read_bytes()
    assert main([*RUN, str(tmp_path)]) == 0 and page.read_bytes() == whole
    assert main([*RUN, str(tmp_path), "--limit", "3"]) == 0 and page.read_bytes() != whole


def test_pages_of_a_small_run_show_the_prompts_and_those_of_another_name_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for most, number in (write.FEW_MEGABYTES, 2), (0, 0):
        monkeypatch.setattr(write, "FEW_MEGABYTES", most)
        assert main([*RUN, str(tmp_path / str(most))]) == 0
        (page,) = (tmp_path / str(most)).glob("anchor-tiny/*/view/index.html")
        assert f'data-prompts="{number}"' in page.read_text()
        (index,) = page.parent.glob("data/*/index.js")
        assert ("anchoreval view RUN adds them" in index.read_text()) == (not number)


def test_a_board_gives_every_run_a_viewer_once(run: Path, tmp_path: Path) -> None:
    assert main(["board", str(run), "--output", str(tmp_path / "out")]) == 0
    page = run / "view" / "index.html"
    before = page.stat().st_mtime_ns
    assert main(["board", str(run), "--output", str(tmp_path / "out")]) == 0
    assert page.stat().st_mtime_ns == before


def test_runs_too_large_for_a_board_to_read_twice_are_said(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(write, "MOST_BYTES", 1000)
    assert main(["board", str(run), "--output", str(tmp_path / "out")]) == 0
    assert "no viewers: 1 runs hold" in capsys.readouterr().err and not (run / "view").exists()
