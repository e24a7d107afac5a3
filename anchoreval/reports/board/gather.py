"""Run folders -> scores per cell, streamed: each record is read once, and only a few numbers of it are kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

from anchoreval.errors import RunError
from anchoreval.files import there
from anchoreval.records.header import HEADER, Header, read_header
from anchoreval.records.lines import RECORDS, Lines, each_fields
from anchoreval.records.run import changed_since
from anchoreval.reports.board.definition import Declared
from anchoreval.reports.board.view import RunView
from anchoreval.reports.links import has_page, has_viewer, relative
from anchoreval.schema import original_of
from anchoreval.stats import Place, Scores, Subject, Trained

WORTH_A_PROCESS, CHUNK = 40, 10  # items
Item = TypeVar("Item")
Result = TypeVar("Result")


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
    cells: Mapping[Subject, Mapping[Place, Scores]]
    changed: str = ""
    view: RunView | None = None
    beside: str = ""
    tokenizer: str = ""
    trained: Trained | None = None
    page: bool = False


def gather(
    paths: Sequence[Path],
    declared: Declared,
    folder: Path,
    workers: int = 1,
    tell: Callable[[str], None] | None = None,
    named: frozenset[Path] = frozenset(),
) -> Iterator[Gathered]:
    """Yield the runs that hold a cell of the declared board, in the order of `paths`.

    With `tell`, a run that cannot be read is reported and skipped, unless it is among `named`.
    """
    strict, arms = frozenset(paths) if tell is None else named, declared.definition.arms
    for run in spread_out(partial(_gathered, declared=declared, folder=folder, strict=strict), paths, workers):
        if isinstance(run, Gathered):
            if any(arms is None or subject.arm in arms for subject in run.cells):
                if run.changed and tell is not None:
                    tell(f"{run.path}: {run.changed}: `anchoreval verify` says where")
                yield run
        elif tell is not None:
            tell(f"left out: {run}")


def _gathered(path: Path, declared: Declared, folder: Path, strict: frozenset[Path]) -> Gathered | str:
    try:
        return gathered(path, declared, folder)
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


def gathered(path: Path, declared: Declared, folder: Path) -> Gathered:
    """Return one run folder with the cells that the board shows, and those of placebos for the noise floors.

    Raise RunError if a record is broken or repeated.
    """
    header, lines = read_header(path / HEADER), Lines(path / RECORDS)
    run = header.run or path.name
    models = declared.definition.models
    wanted = models is None or header.subject("", run).model in models
    by_arm = _cells(header, lines, declared) if wanted and there(lines.path) else {}
    changed = changed_since(header, lines) if wanted else ""
    cells = {header.subject(arm): of for arm, of in by_arm.items()}
    kept = _kept(header, run, relative(path, folder), has_viewer(path), cells, changed)
    return replace(kept, page=has_page(path))


def gathered_view(view: RunView, label: str = "") -> Gathered:
    """Return a run that was read whole; one of several on a board is a setting of its own, told by its label."""
    kept = _kept(view.header, view.name, view.path, view.viewer, view.subjects, view.changed, view)
    return of_its_own(kept, label) if label else kept


def of_its_own(run: Gathered, label: str) -> Gathered:
    """Return the run as a setting of its own, told by its label, so that it is merged with no other run."""
    return replace(run, setting=", ".join(filter(None, (run.setting, f"run {label}"))))


def _kept(
    header: Header, run: str, path: str, viewer: bool, cells: Mapping[Subject, Mapping[Place, Scores]], changed: str,
    view: RunView | None = None,
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
        cells,
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


def _cells(header: Header, lines: Lines, declared: Declared) -> dict[str, dict[Place, Scores]]:
    """Return arm -> the cells that the board shows, including those of placebos."""
    definition, tasks = declared.definition, frozenset(declared.tasks)
    lengths, arms, stopped = frozenset(definition.lengths or ()), frozenset(definition.arms or ()), header.stopped
    by_arm: dict[str, dict[Place, Scores]] = {}
    for number, record in each_fields(lines):
        task, length, arm = record["task"], record["length"], record["arm"]
        wanted = not arms or arm in arms or original_of(arm) is not None
        if task in tasks and (not lengths or length in lengths) and wanted:
            cells = by_arm.setdefault(arm, {})
            if (task, length) not in cells:
                cells[task, length] = Scores(task, length, stopped=stopped.get(arm, {}).get((task, length), ""))
            try:
                cells[task, length].add(record.get)
            except (TypeError, ValueError, AttributeError, OverflowError) as error:
                raise RunError(f"{lines.path}:{number}: a field of this record has the wrong type: {error}") from error
    for arm, cells in by_arm.items():
        for scores in cells.values():
            scores.require_each_once(arm, f"{lines.path}: ")
    return by_arm
