"""Runs to be shown together: one that is damaged is named and left out, and no other run fails for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from anchoreval.errors import AnchorEvalError, RunError
from anchoreval.records.header import HEADER
from anchoreval.records.run import Run, find_runs, load_run
from anchoreval.reports.board import board_csv, board_html, write_board

Tell = Callable[[str], None]
#: What a header of another shape makes of any code that reads it.
BROKEN = (AnchorEvalError, KeyError, IndexError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError)


def load_runs(paths: Iterable[Path], tell: Tell) -> list[Run]:
    """The runs at and under `paths`; one that was found under a folder and cannot be read is told and left out.

    RunError for a run folder that was named itself, and where no run can be read.
    """
    runs, last = [], None
    for path in paths:
        named = (path / HEADER).is_file()
        for place in find_runs([path]):
            try:
                runs.append(load_run(place))
            except RunError as error:
                if named:
                    raise
                last = error
                tell(f"left out: {error}")
    if last is not None and not runs:
        raise last
    return list({run.path: run for run in runs}.values())


def draw(runs: Sequence[Run], folder: Path, keep: Iterable[Path], tell: Tell) -> tuple[Path, Path]:
    """Paths of board.csv and board.html of the runs; one not in `keep` that cannot be drawn is told and left out."""
    try:
        return write_board(runs, folder)
    except BROKEN:
        kept = set(keep)
        whole = [run for run in runs if run.path in kept or _drawn(run, folder, tell)]
        if not whole or len(whole) == len(runs):
            raise
        return write_board(whole, folder)


def _drawn(run: Run, folder: Path, tell: Tell) -> bool:
    try:
        board_csv([run], folder)
        board_html([run], folder)
    except BROKEN as error:
        tell(f"left out: {run.path}: {HEADER} is not that of a run ({type(error).__name__}: {error})")
        return False
    return True
