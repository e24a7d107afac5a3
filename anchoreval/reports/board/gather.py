"""Run folders -> scores per cell, streamed: a record is looked at once and only a few numbers of it are kept."""

from __future__ import annotations

import hashlib
import math
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

from anchoreval.errors import RunError
from anchoreval.records.header import HEADER, Header, read_header
from anchoreval.records.lines import RECORDS, Lines, each_fields
from anchoreval.records.plain_files import there
from anchoreval.records.seal import changed_since
from anchoreval.reports.board.definition import Declared
from anchoreval.reports.board.view import relative
from anchoreval.reports.links import has_viewer
from anchoreval.schema import OUTCOMES, Json, Outcome, original_of, outcome_of
from anchoreval.stats import per_token_of, unit_of

DECILES = 10
NOWHERE = -1  # the decile of a sample without one single depth
WORTH_A_PROCESS, CHUNK = 40, 10  # items
Item = TypeVar("Item")
Result = TypeVar("Result")
Key = tuple[str, int, str]  # (task, length, arm)


@dataclass(slots=True)
class Scores:
    """One cell of one run, a column per number and an entry per record, sorted by the sample's index.

    `score` and `logprob` (per token) hold NaN where the record has none; `prompt`, `cluster` and `output` are 64-bit
    marks of the prompt's hash, of what makes samples dependent and of the answer; `decile` is that of the sample's one
    depth, or NOWHERE; `outcome` is its number in the enum.
    """

    index: array[int] = field(default_factory=lambda: array("q"))
    score: array[float] = field(default_factory=lambda: array("d"))
    logprob: array[float] = field(default_factory=lambda: array("d"))
    prompt: array[int] = field(default_factory=lambda: array("Q"))
    cluster: array[int] = field(default_factory=lambda: array("Q"))
    decile: array[int] = field(default_factory=lambda: array("b"))
    output: array[int] = field(default_factory=lambda: array("Q"))
    outcome: array[int] = field(default_factory=lambda: array("b"))

    def add(self, record: Mapping[str, Any]) -> None:
        """One more record, as its fields."""
        score, facts = record["score"], record["facts"]
        logprob = per_token_of(record["reference_logprob"], record["reference_tokens"])
        self.index.append(record["index"])
        self.score.append(math.nan if score is None else score)
        self.logprob.append(math.nan if logprob is None else logprob)
        self.prompt.append(mark(record["prompt_sha256"]))
        unit = unit_of(record["task"], record["sample_id"], record["index"], record["references"], facts)
        self.cluster.append(mark(repr(unit)))
        self.decile.append(decile(facts))
        self.output.append(mark(record["output"]))
        self.outcome.append(_NUMBER[_outcome(record)])

    def sorted(self, where: str) -> Scores:
        """The same entries by index; RunError where a sample is there twice."""
        order = sorted(range(len(self.index)), key=self.index.__getitem__)
        for one, other in pairwise(order):
            if self.index[one] == self.index[other]:
                raise RunError(f"{where}: two records of sample {self.index[one]}")
        columns = (self.index, self.score, self.logprob, self.prompt, self.cluster, self.decile, self.output,
                   self.outcome)  # fmt: skip
        return Scores(*(array(column.typecode, map(column.__getitem__, order)) for column in columns))  # type: ignore[arg-type]


_NUMBER: Mapping[str, int] = {outcome: number for number, outcome in enumerate(OUTCOMES)}


def _outcome(record: Mapping[str, Any]) -> Outcome:
    """The outcome on a line, or the one that follows on lines of a format without it."""
    said: Outcome | None = record.get("outcome")
    return said or outcome_of(record["finish"], record["output"], bool(record.get("choices")))


@dataclass(frozen=True, slots=True)
class Gathered:
    """What a board keeps of one run; `path` is the folder as seen from the board's own.

    `incomparable` and `stopped` are those of records.Header, `changed` that of records.Run.
    """

    path: str
    name: str
    model: str
    weights: str
    setting: str
    created: str
    incomparable: Mapping[str, str]
    viewer: bool
    facts: tuple[str, ...]
    environments: int
    stopped: Mapping[str, Mapping[tuple[str, int], str]]
    cells: Mapping[Key, Scores]
    changed: str = ""


def gather(
    paths: Sequence[Path],
    declared: Declared,
    folder: Path,
    workers: int = 1,
    tell: Callable[[str], None] | None = None,
    named: frozenset[Path] = frozenset(),
) -> Iterator[Gathered]:
    """The runs that hold a cell of the declared board, in the order of `paths`; others are left out.

    With `tell` a run that cannot be read is told and left out, unless it is among `named`.
    """
    strict, arms = frozenset(paths) if tell is None else named, declared.definition.arms
    for run in spread_out(partial(_gathered, declared=declared, folder=folder, strict=strict), paths, workers):
        if isinstance(run, Gathered):
            if any(arms is None or arm in arms for _, _, arm in run.cells):
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
    """`work` of every item, in order; in processes of their own where there are enough items to be worth it."""
    if workers < 2 or len(items) < WORTH_A_PROCESS:
        yield from map(work, items)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield from pool.map(work, items, chunksize=CHUNK)


def gathered(path: Path, declared: Declared, folder: Path) -> Gathered:
    """One run folder, with the cells that the board shows and those of placebos, from which noise floors come.

    RunError where a record is broken or repeated.
    """
    header, lines = read_header(path / HEADER), Lines(path / RECORDS)
    run = header.run or path.name
    name = str(header.model.get("name") or run)
    wanted = declared.definition.models is None or name in declared.definition.models
    found = _cells(lines, declared) if wanted and there(lines.path) else {}
    changed = changed_since(header, lines) if wanted else ""
    return Gathered(
        relative(path, folder),
        run,
        name,
        str(header.model.get("sha256") or "")[:8],
        setting(header),
        str(header.get("created") or ""),
        header.incomparable(),
        has_viewer(path),
        (*facts(header), *([f"changed: {changed}"] if changed else [])),
        max(1, len(header.environments)),
        header.stopped,
        found,
        changed,
    )


def setting(header: Header) -> str:
    """What two runs of one model must share to stand in one row: dtype, kernel, form of the prompts, sources."""
    backend, form = header.backend, header.form
    parts = [str(backend.get("dtype") or header.model.get("dtype") or ""), str(backend.get("kernel") or "")]
    parts.append({"server": "server's chat template"}.get(form, f"{form} template") if form else "")
    parts += [f"{key}={value}" for key, value in sorted(header.part("identity", "template_args").items())]
    made = (f"{key} {value}" for key, value in sorted(header.sources.items()) if key != "wordlists")
    return ", ".join(part for part in (*parts, *made) if part)


def facts(header: Header) -> tuple[str, ...]:
    """What stands beside a run's folder: the form of its prompts, its anchor, and how many environments computed it."""
    form, anchor = header.form_words, header.anchor_words
    found = [f"prompts: {form}" if form else "", header.raw_words]
    found += [f"anchor: {anchor}" if anchor else "", header.environment_words]
    return tuple(filter(None, found))


def _cells(lines: Lines, declared: Declared) -> dict[Key, Scores]:
    definition, tasks = declared.definition, frozenset(declared.tasks)
    lengths, arms = frozenset(definition.lengths or ()), frozenset(definition.arms or ())
    found: dict[Key, Scores] = {}
    path = lines.path
    for number, record in each_fields(lines):
        key = task, length, arm = record["task"], record["length"], record["arm"]
        wanted = not arms or arm in arms or original_of(arm) is not None
        if task in tasks and (not lengths or length in lengths) and wanted:
            try:
                (found.get(key) or found.setdefault(key, Scores())).add(record)
            except (TypeError, ValueError, AttributeError, OverflowError) as error:
                raise RunError(f"{path}:{number}: a field of this record has the wrong type: {error}") from error
    return {key: scores.sorted(f"{path}: {key[0]} at {key[1]}, {key[2]}") for key, scores in found.items()}


def decile(facts: Mapping[str, Json]) -> int:
    """Tenth of the context, 0..9, in which the one needle or gold document stands; NOWHERE for none or several."""
    depths = facts.get("depths", facts.get("depth"))
    if isinstance(depths, list):
        depths = depths[0] if len(depths) == 1 else None
    if isinstance(depths, bool) or not isinstance(depths, int | float) or not 0 <= depths <= 1:
        return NOWHERE
    return min(DECILES - 1, int(DECILES * depths))


def mark(text: str) -> int:
    """A 64-bit mark of any text, the same in every process."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")
