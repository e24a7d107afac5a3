"""Run folders and a definition -> <name>.csv and <name>.html: a board that people share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from anchoreval.files import write_whole
from anchoreval.records.run import find_runs
from anchoreval.reports.board.build import Board, build
from anchoreval.reports.board.definition import Declared, Definition, find_definition, load_definition
from anchoreval.reports.board.gather import gather
from anchoreval.reports.board.sheet import csv_lines
from anchoreval.reports.page import TITLES, require_page

__all__ = ["Board", "Declared", "Definition", "build", "find_definition", "load_definition", "write_leaderboard"]


def write_leaderboard(
    runs: Sequence[Path],
    definition: Path,
    folder: Path,
    workers: int = 1,
    tell: Callable[[str], None] | None = None,
    checkpoints: bool = False,
) -> tuple[Path, Path]:
    """Write `<name>.csv` and `<name>.html` into `folder`, named for the definition, and return their paths.

    The same runs give the same bytes. `definition` is a file, or the name of a definition that comes with the package.
    `runs` are run folders or folders of run folders, read by `workers` processes. With `tell`, a run that was found in
    a folder and cannot be read is reported and skipped. `checkpoints` is as for `build`. Raise CardError for a bad
    definition, RunError for a run that cannot be read.
    """
    from anchoreval.reports.board.page import page

    declared = load_definition(find_definition(definition))
    require_page(folder / f"{declared.name}.csv", "kind,model,")
    require_page(folder / f"{declared.name}.html", *TITLES)
    named = frozenset(runs)
    board = build(declared, gather(find_runs(runs), declared, folder, workers, tell, named), workers, checkpoints)
    return (
        write_whole(folder / f"{declared.name}.csv", csv_lines(board)),
        write_whole(folder / f"{declared.name}.html", page(board)),
    )
