"""What a board of runs shows of each run besides its maps: facts, cards of differences, tables, samples."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from anchoreval.records.command import command_of
from anchoreval.records.header import Header
from anchoreval.reports import colours
from anchoreval.reports.board.evidence import Evidence, evidence, place_id
from anchoreval.reports.board.view import RunView
from anchoreval.reports.links import listed
from anchoreval.reports.words import (
    NONE,
    apart_words,
    counts,
    floor_words,
    interval,
    logprob_difference,
    lost_counts,
    p_number,
    percent,
    plain,
    sentence,
    size,
    tally,
    tokens,
)
from anchoreval.stats import Cell, Contrast, Row

HEADER_CHARACTERS = 20_000
FOREST = 100.0  # half the width of the little interval plot, in its own units
SCORE_HEADS = ("task", "length", "arm", "score", "95% interval", "scored", "lost as wrong", "log-prob per token")
DIFFERENCE_HEADS = (
    "task", "length", "arm", "difference", "verdict", "95% interval", "pairs", "same output", "differ", "p", "p (Holm)",
    "detects", "in full",
)  # fmt: skip
Fields = tuple[tuple[str, str], ...]  # (shown text, sort key); the first holds the links of the row


@dataclass(frozen=True, slots=True)
class Card:
    """One arm against the baseline: words, and low, middle and high of an interval plot on an axis of +-FOREST."""

    arm: str
    word: str
    size: str
    href: str
    words: tuple[str, ...]
    forest: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Against:
    """The other arms against one baseline. The axis of the interval plots ends at +-`scale` points."""

    baseline: str
    cards: tuple[Card, ...]
    scale: int
    rows: tuple[Fields, ...]


@dataclass(frozen=True, slots=True)
class Details:
    """One run on a board of runs."""

    number: int
    title: str
    lead: str
    facts: tuple[tuple[str, str], ...]
    header: str
    links: Mapping[str, str]
    fingerprint: str
    warnings: tuple[str, ...]
    against: tuple[Against, ...]
    floor: str
    rows: tuple[Fields, ...]
    evidence: tuple[Evidence, ...]
    footnotes: tuple[str, ...]


def details(view: RunView, number: int, folder: str) -> Details:
    """Return what the page shows of run `number`; `folder` is the run's, as a link."""
    links = _Links(view, number, folder)
    return Details(
        number,
        plain(view.model, 100),
        lead(view),
        tuple(_facts(view)),
        plain(json.dumps(view.header, indent=2, default=str), HEADER_CHARACTERS),
        {name: f"{folder}/{name}" for name in ("header.json", "records.jsonl")},
        view.fingerprint,
        tuple(_warnings(view)),
        tuple(_against(view, base, links) for base in view.arms) if len(view.arms) > 1 else (),
        next(filter(None, map(floor_words, view.contrasts.values())), "noise floor: no placebo in this run"),
        tuple(_score_row(cell, links) for cell in _ordered(view)),
        tuple(evidence(view, number)),
        tuple(_footnotes(view)),
    )


@dataclass(frozen=True, slots=True)
class _Links:
    view: RunView
    number: int
    folder: str

    def samples(self, **query: str | int) -> str:
        """Return the link to the viewer's list of the samples in `query`; empty if the run has no viewer."""
        return listed(self.folder, [(key, str(value)) for key, value in query.items()]) if self.view.viewer else ""

    def row(self, task: str, length: int, arm: str) -> tuple[str, str]:
        """Return the links of a table row: to the samples on the page, and to the viewer."""
        here = f"#{place_id(self.number, self.view.tasks.index(task), length)}"
        return here, self.samples(task=task, length=length, arm=arm)


def lead(view: RunView) -> str:
    """Return `5 tasks, 512 / 2,048 tokens, 3 arms, 12 samples per cell`."""
    spans, limit = [tokens(length) for length in view.lengths], view.header.limit
    parts = [
        f"{len(view.tasks)} task{'s' * (len(view.tasks) != 1)}",
        f"{' / '.join(spans)} tokens",
        f"{len(view.arms)} arm{'s' * (len(view.arms) != 1)}",
    ]
    return ", ".join(parts + ([f"{limit} samples per cell"] if limit else []))


def _facts(view: RunView) -> Iterator[tuple[str, str]]:
    """(label, value) of what a reader asks first; the whole header follows on the page."""
    header = view.header
    model = header.model
    parameters = model.get("parameters")
    yield "Run", plain(view.name, 100)
    yield "Folder", plain(view.path, 200)
    yield "Started", plain(header.created or NONE, 40)
    yield "Model", plain(model.get("path", NONE), 200)
    yield "Engine", _engine(header)
    yield "Weights", f"sha256 {plain(model['sha256'], 64)[:16]}" if model.get("sha256") else NONE
    yield "Parameters", f"{parameters:,}" if isinstance(parameters, int) else plain(parameters or NONE, 40)
    yield "Dtype", plain(model.get("dtype") or NONE, 40)
    yield "Anchor token", plain(header.anchor_words or NONE, 120)
    yield "Prompts", plain(header.form_words or NONE, 60)
    yield "Seed", plain(header.get("seed", NONE), 40)
    yield "Sources", ", ".join(f"{plain(k, 40)} {plain(v, 60)}" for k, v in header.sources.items()) or NONE
    if len(header.environments) > 1:
        yield "Environments", f"{len(header.environments)}"
    yield "Command", plain(command_of(header), 2_000)
    yield "Records", f"{len(view.records):,}" + (f" of {view.expected:,}" if view.expected is not None else "")


def _engine(header: Header) -> str:
    """Return the backend, its versions, and its device or the address of its server."""
    known = header.part("backend", "versions").items()
    versions = ", ".join(f"{plain(name, 40)} {plain(text, 40)}" for name, text in known)
    where = header.at("backend", "server", "address") or header.backend.get("device")
    parts = [plain(header.backend.get("engine", NONE), 40), versions, plain(where or "", 200)]
    return ", ".join(filter(None, parts))


def _warnings(view: RunView) -> Iterator[str]:
    yield from view.notes
    yield from (line.text for line in view.outcomes if not line.quiet)
    if view.expected is not None and len(view.records) < view.expected:
        yield f"Unfinished: {len(view.records):,} of {view.expected:,} records so far."


def _against(view: RunView, base: str, links: _Links) -> Against:
    contrasts = [(arm, view.contrasts[arm, base]) for arm in view.arms if arm != base]
    drawn = [contrast.pooled.difference for _, contrast in contrasts if not contrast.pooled.too_few]
    scale = colours.difference_scale([100 * end for paired in drawn for end in (paired.low, paired.high) if end])
    return Against(
        plain(base, 60),
        tuple(_card(contrast, links.samples(arm=arm), scale) for arm, contrast in contrasts),
        scale,
        tuple(_difference_row(row, links) for _, contrast in contrasts for row in contrast.cells),
    )


def _card(contrast: Contrast, href: str, scale: int) -> Card:
    pooled, lengths = contrast.pooled, contrast.lengths if len(contrast.lengths) > 1 else ()
    ends = (pooled.difference.low, pooled.difference.difference, pooled.difference.high)
    forest = tuple(round(100 * end / scale * FOREST, 2) for end in ends if end is not None)
    words = [
        counts(pooled),
        logprob_difference(pooled),
        *(f"at {tokens(row.difference.length or 0)}: {sentence(row)}" for row in lengths),
        f"by task and length: {tally(contrast.cells)}" if len(contrast.cells) > 1 else "",
        apart_words(contrast),
    ]
    shown = forest if len(forest) == len(ends) and not pooled.too_few else ()
    return Card(plain(contrast.arm, 60), pooled.word, size(pooled), href, tuple(filter(None, words)), shown)


def _ordered(view: RunView) -> Iterator[Cell]:
    places = ((task, length, arm) for task in view.tasks for length in view.lengths for arm in view.arms)
    return filter(None, map(view.cells.get, places))


def _score_row(cell: Cell, links: _Links) -> Fields:
    logprob = NONE if cell.logprob is None else f"{cell.logprob:.3f}"
    why = f" ({lost_counts(cell.outcomes, cell.lost)})" if cell.lost else ""
    return (
        links.row(cell.task, cell.length, cell.arm),
        (plain(cell.task, 80), ""),
        (tokens(cell.length), str(cell.length)),
        (plain(cell.arm, 60), ""),
        (percent(cell.mean) + ("*" if cell.lost and cell.scored else ""), _key(cell.mean)),
        (interval(cell.low, cell.high), _key(cell.low)),
        (f"{cell.scored}/{cell.asked}{why}", str(cell.scored)),
        (percent(cell.as_wrong), _key(cell.as_wrong)),
        (logprob, _key(cell.logprob)),
    )


def _difference_row(row: Row, links: _Links) -> Fields:
    cell = row.difference
    task, length = str(cell.task), int(cell.length or 0)
    same = NONE if cell.same_outputs is None else str(cell.same_outputs)
    star = "*" if cell.left_out and cell.pairs else ""
    return (
        links.row(task, length, cell.arm),
        (plain(task, 80), ""),
        (tokens(length), str(length)),
        (plain(cell.arm, 60), ""),
        (percent(cell.difference, True) + star, _key(cell.difference)),
        (row.word, ""),
        (NONE if row.too_few else interval(cell.low, cell.high, True), _key(cell.low)),
        (f"{cell.pairs}{'*' if cell.left_out else ''}", str(cell.pairs)),
        (same, "" if cell.same_outputs is None else same),
        (str(cell.discordant), str(cell.discordant)),
        (p_number(cell.p), _key(cell.p)),
        (p_number(row.p_holm), _key(row.p_holm)),
        (percent(cell.detectable), _key(cell.detectable)),
        (row.says, ""),
    )


def _key(value: float | None) -> str:
    return "" if value is None else repr(value)


def _footnotes(view: RunView) -> Iterator[str]:
    for (task, length), why in view.unmakeable.items():
        yield f"{NONE} {plain(task, 80)} at {tokens(length)} cannot be made: {plain(why, 300)}"
    if any(cell.lost for cell in view.cells.values()):
        yield "* samples without a score are left out; the column 'lost as wrong' is the mean where they count as wrong"
    yield from (line.text for line in view.outcomes if line.quiet)
    yield from view.ruler_words
