"""Run folders and a definition -> <name>.csv and <name>.html: a board that people share.

Of each run a board keeps where its cells are, and their scores when they are used (store.py). The CSV has one line per
number, first measured numbers, then reported numbers, marked as such.

kind: `row` (a column of the board's table), `cell` (task x length), `depth` (tenth of the context x length),
`difference` and `depth_difference` (arm minus baseline), `reported` (printed in a paper). Scores are x 100.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from anchoreval.errors import RunError
from anchoreval.files import there, write_whole
from anchoreval.records.header import HEADER, Header, read_header
from anchoreval.records.lines import RECORDS, Lines
from anchoreval.records.run import Run, changed_since, find_runs, header_alone, load_run
from anchoreval.reports.board import of_runs
from anchoreval.reports.board.build import Board, Gathered, Group, build, of_its_own, spread_out
from anchoreval.reports.board.cells import Map
from anchoreval.reports.board.definition import Declared, Definition, find_definition, load_definition
from anchoreval.reports.board.store import Kept, Key, Store, open_store
from anchoreval.reports.page import BOARD, TABLES, TITLES, has_page, has_viewer, relative, require_page
from anchoreval.reports.readable import draw
from anchoreval.reports.table import TRAINED, compared_fields, csv_lines, number, scored_fields, trained_fields
from anchoreval.schema import OUTCOMES, original_of
from anchoreval.stats import Cells, Place, Scores, Subject

__all__ = ["Board", "Declared", "Definition", "build", "find_definition", "load_definition", "write_leaderboard"]

MANY = 12  # runs that one page shows with their samples; more are a summary with a page for each
COLUMNS = (
    "kind", "model", "setting", "arm", "suite", "task", "depth", "length", "column", "value", "low", "high", "asked",
    "scored", "logprob_per_token", "baseline", "pairs", "p", "p_holm", "detectable", "verdict", "comparable", "run",
    "source", "note", "as_wrong", *OUTCOMES, "says", "logprob_says", "same_outputs", "left_out", "lost", "floor",
    "environments", *TRAINED,
)  # fmt: skip
TEXTS = (
    "model", "setting", "arm", "suite", "task", "column", "value", "baseline", "verdict", "run", "source", "note",
    "says", *TRAINED,
)  # fmt: skip


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


def gather(
    paths: Sequence[Path],
    declared: Declared,
    folder: Path,
    store: Store,
    workers: int = 1,
    tell: Callable[[str], None] | None = None,
    named: frozenset[Path] = frozenset(),
) -> Iterator[Gathered]:
    """Yield the runs that hold a cell of the declared board, in the order of `paths`.

    With `tell`, a run that cannot be read is reported and skipped, unless it is among `named`.
    """
    strict, arms = frozenset(paths) if tell is None else named, declared.definition.arms
    read = partial(_gathered, declared=declared, folder=folder, store=store, strict=strict)
    for run in spread_out(read, paths, workers):
        if isinstance(run, Gathered):
            if any(arms is None or subject.arm in arms for subject in run.places):
                if run.changed and tell is not None:
                    tell(f"{run.path}: {run.changed}: `anchoreval verify` says where")
                yield run
        elif tell is not None:
            tell(f"left out: {run}")


def _gathered(path: Path, declared: Declared, folder: Path, store: Store, strict: frozenset[Path]) -> Gathered | str:
    """Return one run folder with the cells that the board shows, and those of placebos for the noise floors.

    If a record is broken or repeated, raise RunError for a path in `strict` and return its text for others.
    """
    definition, tasks, records = declared.definition, frozenset(declared.tasks), path / RECORDS
    lengths, arms = frozenset(definition.lengths or ()), frozenset(definition.arms or ())
    try:
        header = read_header(path / HEADER)
        name = header.run or path.name
        wanted = definition.models is None or header.subject("", name).model in definition.models
        kept = store.of(records) if wanted and there(records) else None
        shown = [
            (arm, task, length)
            for arm, task, length in (kept.cells if kept else ())
            if task in tasks
            and (not lengths or length in lengths)
            and (not arms or arm in arms or original_of(arm) is not None)
        ]
        if kept:
            kept.require(shown)
        changed = changed_since(header, kept or Lines(records)) if wanted else ""
    except RunError as error:
        if path in strict:
            raise
        return str(error)
    subjects = {arm: header.subject(arm) for arm in dict.fromkeys(arm for arm, *_ in shown)}
    places = {subject: tuple((task, length) for of, task, length in shown if of == arm)
              for arm, subject in subjects.items()}  # fmt: skip
    load = partial(_load, store, kept, subjects, header.stopped, frozenset(shown))
    at = relative(path, folder)
    return Gathered.of(header, at, name, places, load, changed, has_viewer(path), has_page(path))


def _load(
    store: Store, kept: Kept | None, subjects: Mapping[str, Subject], stopped: Mapping[str, Mapping[Place, str]],
    shown: frozenset[Key],
) -> Mapping[Subject, Cells]:  # fmt: skip
    cells: dict[Subject, dict[Place, Scores]] = {subject: {} for subject in subjects.values()}
    for arm, scores in store.scores(kept, shown) if kept else ():
        place = scores.task, scores.length
        scores.stopped = stopped.get(arm, {}).get(place, "")
        cells[subjects[arm]][place] = scores
    return cells


def lines_of(board: Board) -> Iterator[str]:
    """Yield the file's lines, header first."""
    return csv_lines(COLUMNS, TEXTS, _rows(board))


def _rows(board: Board) -> Iterator[dict[str, str]]:
    for line in board.lines:
        of = {"model": line.model, "setting": line.setting, "arm": line.arm, "suite": line.suite}
        of |= {"comparable": "yes" if line.comparable else "no", "environments": str(line.environments)}
        of |= trained_fields(line.row.trained, line.row.seeds, line.row.steps)
        for head, value in zip(board.heads, line.values, strict=True):
            run = "" if value.run is None else board.runs[value.run].path
            shown = value.key if value.mean is None else value.mean
            text = f"{shown:.4f}" if isinstance(value.key, float) and value.low is not None else value.text
            ends = {"low": number(value.low), "high": number(value.high), "as_wrong": value.bound.partition(" ")[0]}
            yield of | ends | {"kind": "row", "column": head, "value": text, "run": run, "note": value.label}
    for group in board.groups:
        yield from _map(board, group, group.tasks, "cell", "difference", "task")
        yield from _map(board, group, group.depths, "depth", "depth_difference", "depth")
    for table in board.declared.reported:
        for printed in table.numbers:
            yield {
                "kind": "reported", "model": printed.model, "setting": printed.trained_on, "arm": printed.method,
                "suite": printed.suite, "column": printed.column, "value": printed.value,
                "source": f"{printed.source}, table {printed.table}", "note": printed.note,
            }  # fmt: skip


def _map(board: Board, group: Group, found: Map, kind: str, differing: str, row_name: str) -> Iterator[dict[str, str]]:
    group_of = {"model": group.model, "setting": group.setting, "environments": str(group.environments)}
    group_of |= trained_fields(group.trained)

    def row_of(row: int, length: int, arm: Subject, run: int) -> dict[str, str]:
        tasks = {found.rows[row]} if row_name == "task" else set(group.tasks.rows)
        place = {row_name: found.rows[row], "length": str(length), "arm": group.names[arm]}
        comparable = "no" if group.incomparable & tasks else "yes"
        return group_of | place | {"comparable": comparable, "run": board.runs[run].path}

    for (row, length, arm), mean in found.means.items():
        values = {"value": number(mean.mean, 100), "as_wrong": number(mean.as_wrong, 100)}
        yield row_of(row, length, arm, mean.run) | {"kind": kind} | scored_fields(mean) | values
    for (row, length, arm, baseline), gap in found.gaps.items():
        paired = gap.row.difference
        values = {"baseline": group.names[baseline], "value": number(paired.difference, 100)}
        values |= {"low": number(paired.low, 100), "high": number(paired.high, 100)}
        yield row_of(row, length, arm, gap.run) | {"kind": differing} | compared_fields(gap.row) | values
