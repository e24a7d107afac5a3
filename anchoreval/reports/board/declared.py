"""Run folders and a definition -> <name>.csv and <name>.html: a board that people share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from anchoreval.errors import RunError
from anchoreval.files import write_whole
from anchoreval.records.header import Header
from anchoreval.records.lines import RECORDS
from anchoreval.records.run import Run, find_runs, header_alone, load_run
from anchoreval.reports.board import of_runs
from anchoreval.reports.board.build import Board, Gathered, build, of_its_own
from anchoreval.reports.board.definition import Declared, Definition, find_definition, load_definition
from anchoreval.reports.board.gather import gather
from anchoreval.reports.board.sheet import lines_of
from anchoreval.reports.board.store import open_store
from anchoreval.reports.page import BOARD, TABLES, TITLES, require_page
from anchoreval.reports.readable import draw

__all__ = ["Board", "Declared", "Definition", "build", "find_definition", "load_definition", "write_leaderboard"]

MANY = 12  # runs that one page shows with their samples; more are a summary with a page for each


def write_leaderboard(
    runs: Sequence[Path],
    definition: Path,
    folder: Path,
    workers: int = 1,
    tell: Callable[[str], None] | None = None,
    checkpoints: bool = False,
    fresh: bool = False,
) -> tuple[Path, Path]:
    """Write `<name>.csv` and `<name>.html` into `folder`, named for the definition, and return their paths.

    The same runs give the same bytes. `definition` is a file, or the name of a definition that comes with the package.
    `runs` are run folders or folders of run folders, read by `workers` processes. With `tell`, a run that was found in
    a folder and cannot be read is reported and skipped. `checkpoints` is as for `build`. Records that an earlier board
    has read are not read again, except with `fresh` (store.py). Raise CardError for a bad definition, RunError for a
    run that cannot be read.
    """
    declared = load_definition(find_definition(definition))
    with open_store(fresh) as store:
        gathered = gather(find_runs(runs), declared, folder, store, workers, tell, frozenset(runs))
        return _write(declared, gathered, folder, workers, checkpoints)


def write_summary(
    runs: Sequence[Path],
    folder: Path,
    workers: int = 1,
    tell: Callable[[str], None] = lambda _: None,
    checkpoints: bool = False,
    fresh: bool = False,
) -> tuple[Path, Path]:
    """Write board.csv and board.html of many runs into `folder`, and a page for each run into its own folder.

    The summary has the table and the maps of all runs, and links to their pages, which hold cards, tables and samples.
    Of one run at a time all records are held, for its page. A run that cannot be read is reported and skipped. `fresh`
    is as for `write_leaderboard`.
    """
    known = list[Run]()
    for path in runs:
        try:
            header = header_alone(path).header
        except RunError as error:
            tell(f"left out: {error}")
            continue
        # what `of_runs` reads of it alone: a header may be as long as a hundred records
        model = {name: header.model.get(name) for name in ("name", "sha256", "trained")}
        kept = {"run": header.run, "tasks": header.tasks, "lengths": header.lengths, "arms": header.arms}
        known.append(Run(path, Header(kept | {"model": model}), ()))
    if not known:
        raise RunError(f"{runs[0]}: none of {len(runs)} runs can be read")
    for run in known:
        page, records = run.path / BOARD, run.path / RECORDS
        drawn = page.is_file() and records.is_file() and page.stat().st_mtime_ns >= records.stat().st_mtime_ns
        if not drawn:
            draw([load_run(run.path)], run.path, [run.path], tell)
    names = Counter(run.name for run in known)
    declared = of_runs(known)
    with open_store(fresh) as store:
        gathered = gather([run.path for run in known], declared, folder, store, workers, tell)
        apart = (of_its_own(run, run.path if names[run.name] > 1 else run.name) for run in gathered)
        return _write(declared, apart, folder, workers, checkpoints)


def _write(
    declared: Declared, runs: Iterable[Gathered], folder: Path, workers: int, checkpoints: bool
) -> tuple[Path, Path]:
    from anchoreval.reports.board.page import page

    require_page(folder / f"{declared.name}.csv", *TABLES)
    require_page(folder / f"{declared.name}.html", *TITLES)
    board = build(declared, runs, workers, checkpoints)
    return (
        write_whole(folder / f"{declared.name}.csv", lines_of(board)),
        write_whole(folder / f"{declared.name}.html", page(board)),
    )
