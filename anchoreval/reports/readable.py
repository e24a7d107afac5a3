"""Load and draw several runs together: a damaged run is reported and skipped, and the others are shown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from anchoreval.errors import AnchorEvalError, RunError
from anchoreval.records.header import HEADER
from anchoreval.records.run import Run, find_runs, load_run
from anchoreval.reports.board import board_csv, board_html, write_board

Tell = Callable[[str], None]
#: Errors that code may raise on a header of the wrong shape.
BROKEN = (AnchorEvalError, KeyError, IndexError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError)


def load_runs(paths: Iterable[Path], tell: Tell) -> list[Run]:
    """Return the runs at and under `paths`.

    A run that was found in a folder and cannot be read is reported and skipped. Raise RunError for a run folder that
    was named itself, and if no run can be read.
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


def draw(
    runs: Sequence[Run], folder: Path, keep: Iterable[Path], tell: Tell, checkpoints: bool = False
) -> tuple[Path, Path]:
    """Draw board.csv and board.html of the runs and return their paths.

    A run that cannot be drawn is reported and skipped, unless it is in `keep`. `checkpoints` is as for `write_board`.
    """
    try:
        return write_board(runs, folder, checkpoints)
    except BROKEN:
        kept = set(keep)
        whole = [run for run in runs if run.path in kept or _drawn(run, folder, tell)]
        if not whole or len(whole) == len(runs):
            raise
        return write_board(whole, folder, checkpoints)


def _drawn(run: Run, folder: Path, tell: Tell) -> bool:
    try:
        board_csv([run], folder)
        board_html([run], folder)
    except BROKEN as error:
        tell(f"left out: {run.path}: {HEADER} is not that of a run ({type(error).__name__}: {error})")
        return False
    return True
