"""Run folders -> what a board keeps of each: where its cells are, and their scores when they are used (store.py)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from anchoreval.errors import RunError
from anchoreval.files import there
from anchoreval.records.header import HEADER, read_header
from anchoreval.records.lines import RECORDS, Lines
from anchoreval.records.run import changed_since
from anchoreval.reports.board.build import Gathered, spread_out
from anchoreval.reports.board.definition import Declared
from anchoreval.reports.board.store import Kept, Key, Store
from anchoreval.reports.page import has_page, has_viewer, relative
from anchoreval.schema import original_of
from anchoreval.stats import Cells, Place, Scores, Subject


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
