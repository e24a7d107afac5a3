"""Runs -> tables people read: text for the terminal, board.csv, and board.html, one self-contained page.

view      what a board shows of one run: cells, differences, averages, provenance
run_csv   board.csv of runs
run_page  board.html of runs (imports jinja2)
declared  boards that a definition in YAML declares
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from anchoreval.files import write_whole
from anchoreval.records.run import Run
from anchoreval.reports.board.run_csv import csv_text
from anchoreval.reports.board.view import RunView, view
from anchoreval.reports.page import require_page
from anchoreval.reports.terminal import run_table, table

__all__ = ["Run", "RunView", "board_csv", "board_html", "run_table", "table", "view", "write_board"]


def write_board(runs: Sequence[Run], folder: Path) -> tuple[Path, Path]:
    """Write board.csv and board.html, each whole or not at all, and return their paths.

    The same runs give the same bytes. Run folders are named relative to `folder`. Raise RunError if a file cannot be
    written, or if a file of that name exists that is not ours.
    """
    views = [view(run, folder) for run in runs]
    require_page(folder / "board.csv", "run,kind,task,")
    require_page(folder / "board.html", " · anchoreval board</title>")
    return (
        write_whole(folder / "board.csv", [csv_text(views)]),
        write_whole(folder / "board.html", [_html(views)]),
    )


def board_csv(runs: Sequence[Run], folder: Path = Path()) -> str:
    """Return the text of board.csv."""
    return csv_text([view(run, folder) for run in runs])


def board_html(runs: Sequence[Run], folder: Path = Path()) -> str:
    """Return the text of board.html; links to run folders are relative to `folder`."""
    return _html([view(run, folder) for run in runs])


def _html(views: Sequence[RunView]) -> str:
    from anchoreval.reports.board.run_page import page

    return page(views)
