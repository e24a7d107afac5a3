"""Runs -> a board: one CSV and one self-contained page. A board of runs has the default definition, `of_runs`.

definition  strict YAML: what a board shows; the default of a board of runs
gather      run folders, streamed into a few numbers per record, or runs that were read whole
cells       means, paired differences and maps
columns     the columns that a definition may name
models      differences between models, and rows over the seeds of a trained variant
build       groups, maps and rows
page        the page (imports jinja2)
view        what a board shows of one run that was read whole; details, evidence: its cards, tables and samples
run_csv     board.csv of runs
sheet       <name>.csv of a declared board
declared    boards that a definition in YAML declares
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from anchoreval.files import write_whole
from anchoreval.records.run import Run
from anchoreval.reports.board.run_csv import csv_text
from anchoreval.reports.board.view import RunView, view
from anchoreval.reports.page import TABLES, TITLES, require_page
from anchoreval.reports.terminal import run_table

__all__ = ["Run", "RunView", "board_csv", "board_html", "run_table", "view", "write_board"]


def write_board(runs: Sequence[Run], folder: Path, checkpoints: bool = False) -> tuple[Path, Path]:
    """Write board.csv and board.html, each whole or not at all, and return their paths.

    With `checkpoints`, the scores of the checkpoints of one training are averaged in a row.

    The same runs give the same bytes. Run folders are named relative to `folder`. Raise RunError if a file cannot be
    written, or if a file of that name exists that is not ours.
    """
    views = [view(run, folder) for run in runs]
    require_page(folder / "board.csv", *TABLES)
    require_page(folder / "board.html", *TITLES)
    return (
        write_whole(folder / "board.csv", [csv_text(views)]),
        write_whole(folder / "board.html", _html(views, checkpoints)),
    )


def board_csv(runs: Sequence[Run], folder: Path = Path()) -> str:
    """Return the text of board.csv."""
    return csv_text([view(run, folder) for run in runs])


def board_html(runs: Sequence[Run], folder: Path = Path()) -> str:
    """Return the text of board.html; links to run folders are relative to `folder`."""
    return "".join(_html([view(run, folder) for run in runs]))


def _html(views: Sequence[RunView], checkpoints: bool = False) -> Iterator[str]:
    from anchoreval.reports.board.build import build
    from anchoreval.reports.board.definition import of_runs
    from anchoreval.reports.board.gather import gathered_view
    from anchoreval.reports.board.page import page

    names = Counter(view.name for view in views)
    labels = [view.name if names[view.name] == 1 else view.path for view in views] if len(views) > 1 else [""]
    return page(build(of_runs(views), map(gathered_view, views, labels), checkpoints=checkpoints))
