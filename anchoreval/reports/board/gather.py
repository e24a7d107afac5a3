"""Run folders -> what a board keeps of each: where its cells are, and their scores when they are used (store.py)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

from anchoreval.errors import RunError
from anchoreval.files import there
from anchoreval.records.header import HEADER, Header, read_header
from anchoreval.records.lines import RECORDS, Lines
from anchoreval.records.run import changed_since
from anchoreval.reports.board.definition import Declared
from anchoreval.reports.board.store import Kept, Key, Store
from anchoreval.reports.board.view import RunView
from anchoreval.reports.links import has_page, has_viewer, relative
from anchoreval.schema import original_of
from anchoreval.stats import Place, Scores, Subject, Trained

WORTH_A_PROCESS, CHUNK = 40, 10  # items
Item = TypeVar("Item")
Result = TypeVar("Result")


Cells = Mapping[Subject, Mapping[Place, Scores]]


@dataclass(frozen=True, slots=True)
class Columns:
    """The cells of a run that a board shows: `places` of each arm; `load` returns their scores, anew at each call."""

    places: Mapping[Subject, tuple[Place, ...]]
    load: Callable[[], Cells]

    @classmethod
    def at_hand(cls, cells: Cells) -> Columns:
        """Return cells that are in memory."""
        return cls({subject: tuple(of) for subject, of in cells.items()}, partial(dict, cells))


@dataclass(frozen=True, slots=True)
class Gathered:
    """What a board keeps of one run; `path` is the folder relative to the board's.

    `subject` is what its arms have in common. `setting` describes what runs of one row share, including the sources of
    their texts; `beside` is the same without the label of one of several runs. `trained` says how the model was
    trained. `incomparable` is as in records.Header, `changed` as in records.Run. `view` is a run that was read whole,
    which a board of runs shows with its samples.
    """

    path: str
    name: str
    subject: Subject
    setting: str
    created: str
    incomparable: Mapping[str, str]
    viewer: bool
    facts: tuple[str, ...]
    environments: int
    columns: Columns
    changed: str = ""
    view: RunView | None = None
    beside: str = ""
    tokenizer: str = ""
    trained: Trained | None = None
    page: bool = False

    @property
    def places(self) -> Mapping[Subject, tuple[Place, ...]]:
        """Return the cells of each arm, placebos included."""
        return self.columns.places


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
    try:
        return gathered(path, declared, folder, store)
    except RunError as error:
        if path in strict:
            raise
        return str(error)


def spread_out(work: Callable[[Item], Result], items: Sequence[Item], workers: int) -> Iterator[Result]:
    """Yield `work(item)` for every item, in order; use `workers` processes for WORTH_A_PROCESS items or more."""
    if workers < 2 or len(items) < WORTH_A_PROCESS:
        yield from map(work, items)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield from pool.map(work, items, chunksize=CHUNK)


def gathered(path: Path, declared: Declared, folder: Path, store: Store) -> Gathered:
    """Return one run folder with the cells that the board shows, and those of placebos for the noise floors.

    Raise RunError if a record is broken or repeated.
    """
    header, records = read_header(path / HEADER), path / RECORDS
    run = header.run or path.name
    models = declared.definition.models
    wanted = models is None or header.subject("", run).model in models
    kept = store.of(records) if wanted and there(records) else None
    shown = tuple(_shown(kept.cells, declared)) if kept else ()
    if kept:
        kept.require(shown)
    changed = changed_since(header, kept or Lines(records)) if wanted else ""
    subjects = {arm: header.subject(arm) for arm in dict.fromkeys(arm for arm, *_ in shown)}
    places = {subject: tuple((task, length) for of, task, length in shown if of == arm)
              for arm, subject in subjects.items()}  # fmt: skip
    load = partial(_load, store, kept, subjects, header.stopped, frozenset(shown))
    of_run = _kept(header, run, relative(path, folder), has_viewer(path), Columns(places, load), changed)
    return replace(of_run, page=has_page(path))


def _shown(cells: Iterable[Key], declared: Declared) -> Iterator[Key]:
    """Yield the cells that the board shows, including those of placebos."""
    definition, tasks = declared.definition, frozenset(declared.tasks)
    lengths, arms = frozenset(definition.lengths or ()), frozenset(definition.arms or ())
    for arm, task, length in cells:
        wanted = not arms or arm in arms or original_of(arm) is not None
        if task in tasks and (not lengths or length in lengths) and wanted:
            yield arm, task, length


def _load(
    store: Store, kept: Kept | None, subjects: Mapping[str, Subject], stopped: Mapping[str, Mapping[Place, str]],
    shown: frozenset[Key],
) -> Cells:  # fmt: skip
    cells: dict[Subject, dict[Place, Scores]] = {subject: {} for subject in subjects.values()}
    for arm, scores in store.scores(kept, shown) if kept else ():
        place = scores.task, scores.length
        scores.stopped = stopped.get(arm, {}).get(place, "")
        cells[subjects[arm]][place] = scores
    return cells


def gathered_view(view: RunView, label: str = "") -> Gathered:
    """Return a run that was read whole; one of several on a board is a setting of its own, told by its label."""
    kept = _kept(view.header, view.name, view.path, view.viewer, Columns.at_hand(view.subjects), view.changed, view)
    return of_its_own(kept, label) if label else kept


def of_its_own(run: Gathered, label: str) -> Gathered:
    """Return the run as a setting of its own, told by its label, so that it is merged with no other run."""
    return replace(run, setting=", ".join(filter(None, (run.setting, f"run {label}"))))


def _kept(
    header: Header, run: str, path: str, viewer: bool, columns: Columns, changed: str, view: RunView | None = None,
) -> Gathered:  # fmt: skip
    subject = header.subject("", run)
    source_words = (f"{key} {value}" for key, value in sorted(header.sources.items()) if key != "wordlists")
    words = (subject.dtype, subject.kernel, subject.form, header.outside_words, *source_words)
    return Gathered(
        path,
        run,
        replace(subject, run=""),
        setting := ", ".join(filter(None, words)),
        header.created,
        header.incomparable(view.records if view else ()),
        viewer,
        (*facts(header), *([f"changed: {changed}"] if changed else [])),
        max(1, len(header.environments)),
        columns,
        changed,
        view,
        setting,
        str(header.tokenizer.get("sha256") or ""),
        header.trained,
    )


def facts(header: Header) -> tuple[str, ...]:
    """Return sentences about a run: the form of its prompts, its anchor, and how many environments computed it."""
    form, anchor = header.form_words, header.anchor_words
    sentences = [f"prompts: {form}" if form else "", header.raw_words]
    sentences += [f"anchor: {anchor}" if anchor else "", header.environment_words]
    return tuple(filter(None, sentences))
