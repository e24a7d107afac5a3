"""board.html: one self-contained page that works offline, is readable without scripts, and executes nothing that
the records hold.

All text goes through `words.plain` and Jinja's autoescape. A content policy allows the page's own style and script, by
hash, and nothing else. The script only chooses a baseline, sorts tables, shows tips and opens evidence.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from anchoreval.records.command import command_of
from anchoreval.records.header import Header
from anchoreval.reports import colours
from anchoreval.reports.board.depths import Depths, depth_maps
from anchoreval.reports.board.evidence import Evidence, evidence, place_id
from anchoreval.reports.board.heat import Field, HeatMap, folder_of, samples_of
from anchoreval.reports.board.view import RULER_TASKS, RulerMeans, RunView
from anchoreval.reports.page import TEMPLATES, environment, policy_hash, script, style
from anchoreval.reports.words import (
    NONE,
    apart_words,
    cell_words,
    counts,
    floor_words,
    interval,
    logprob_difference,
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


@dataclass(frozen=True, slots=True)
class Forest:
    """A difference and its interval as x positions on an axis from -FOREST to FOREST; `scale` in points."""

    low: float
    middle: float
    high: float
    scale: int


@dataclass(frozen=True, slots=True)
class Versus:
    """One arm against the baseline: words, a plot, a heat map and table rows."""

    arm: str
    word: str
    size: str
    href: str
    words: str
    notes: tuple[str, ...]
    forest: Forest | None
    heat: HeatMap
    rows: tuple[tuple[tuple[str, str], ...], ...]


@dataclass(frozen=True, slots=True)
class Section:
    """One run on the page; `versus[baseline]` lists the other arms."""

    number: int
    title: str
    lead: str
    facts: tuple[tuple[str, str], ...]
    header: str
    links: Mapping[str, str]
    fingerprint: str
    warnings: tuple[str, ...]
    lengths: tuple[int, ...]
    heats: tuple[HeatMap, ...]
    versus: Mapping[str, tuple[Versus, ...]]
    scale: int
    floor: str
    rows: tuple[tuple[tuple[str, str], ...], ...]
    evidence: tuple[Evidence, ...]
    footnotes: tuple[str, ...]
    depths: Depths | None


def page(views: Sequence[RunView]) -> str:
    """Return the whole page as text."""
    page_environment = environment(TEMPLATES)
    page_environment.filters["tokens"] = tokens
    css, js = style(), script(TEMPLATES / "board.js")
    return page_environment.get_template("board.html").render(
        title=_title(views), sections=[_section(view, number) for number, view in enumerate(views)],
        style=css, script=js, style_hash=policy_hash(css), script_hash=policy_hash(js), forest=FOREST,
    )  # fmt: skip


def _title(views: Sequence[RunView]) -> str:
    return _model(views[0]) if len(views) == 1 else f"{len(views)} runs"


def _model(view: RunView) -> str:
    return plain(view.header.model.get("name") or view.name, 100)


def _section(view: RunView, number: int) -> Section:
    scale = colours.shown_scale(row for contrast in view.contrasts.values() for row in contrast.cells)
    compared = view.arms if len(view.arms) > 1 else ()
    href = folder_of(view)
    return Section(
        number,
        _model(view),
        _lead(view),
        tuple(_facts(view)),
        plain(json.dumps(view.header, indent=2, default=str), HEADER_CHARACTERS),
        {"header.json": f"{href}/header.json", "records.jsonl": f"{href}/records.jsonl"},
        view.fingerprint,
        tuple(_warnings(view)),
        view.lengths,
        tuple(_scores(view, number, arm) for arm in view.arms),
        {plain(base, 60): _against(view, number, base, scale) for base in compared},
        scale,
        _floor(view.contrasts.values()),
        tuple(_score_rows(view, number)),
        tuple(evidence(view, number)),
        tuple(_footnotes(view)),
        depth_maps(view, number),
    )  # fmt: skip


def _floor(contrasts: Iterable[Contrast]) -> str:
    """Return the noise floor that the placebo shows, or that there is no placebo."""
    return next(filter(None, map(floor_words, contrasts)), "noise floor: no placebo in this run")


def _lead(view: RunView) -> str:
    spans = [tokens(length) for length in view.lengths]
    parts = [
        f"{len(view.tasks)} task{'s' * (len(view.tasks) != 1)}",
        f"{' / '.join(spans)} tokens",
        f"{len(view.arms)} arm{'s' * (len(view.arms) != 1)}",
    ]
    limit = view.header.limit
    return ", ".join(parts + ([f"{limit} samples per cell"] if limit else []))


def _facts(view: RunView) -> Iterator[tuple[str, str]]:
    """(label, value) of what a reader asks first; the whole header follows on the page."""
    header = view.header
    model = header.model
    size = model.get("parameters")
    yield "Run", plain(view.name, 100)
    yield "Folder", plain(view.path, 200)
    yield "Started", plain(header.created or NONE, 40)
    yield "Model", plain(model.get("path", NONE), 200)
    yield "Engine", _engine(header)
    yield "Weights", f"sha256 {plain(model['sha256'], 64)[:16]}" if model.get("sha256") else NONE
    yield "Parameters", f"{size:,}" if isinstance(size, int) else plain(size or NONE, 40)
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
    if view.changed:
        yield f"This run is not what it was when it finished: {view.changed}."
    if view.incomparable:
        yield f"Not comparable with published scores: {plain(view.incomparable, 400)}."
    if raw := view.header.raw_words:
        yield f"{raw[:1].upper()}{raw[1:]}."
    if view.extension:
        yield view.extension
    if view.environments:
        yield f"{plain(view.environments, 400)}."
    yield from (line.text for line in view.outcomes if not line.quiet)
    if view.expected is not None and len(view.records) < view.expected:
        yield f"Unfinished: {len(view.records):,} of {view.expected:,} records so far."


def _scores(view: RunView, number: int, arm: str) -> HeatMap:
    rows = [
        (plain(task, 80), tuple(_score(view, number, task, length, arm) for length in view.lengths))
        for task in view.tasks
    ]
    average = view.averages.get(arm)
    if average is not None:
        rows.append(("mean over tasks", tuple(_mean(view, average, length, number) for length in view.lengths)))
    return HeatMap(plain(arm, 60), tuple(rows), average.summary if average else "")


def _score(view: RunView, number: int, task: str, length: int, arm: str) -> Field:
    where = f"{plain(task, 80)} at {tokens(length)}, {plain(arm, 60)}"
    href = samples_of(view, f"#{place_id(view, number, task, length)}", task=task, length=length, arm=arm)
    cell = view.cells.get((task, length, arm))
    if cell is None or cell.mean is None:
        why = view.unmakeable.get((task, length))
        reason = f"cannot be made: {plain(why, 300)}" if why else "no score" if cell else "no records"
        return Field(NONE, "none", f"{where}: {reason}", href)
    mark = "*" if cell.lost else ""
    label = f"{where}: {cell_words(cell)}"
    return Field(percent(cell.mean) + mark, colours.score_class(cell.mean), label, href)


def _mean(view: RunView, average: RulerMeans, length: int, number: int) -> Field:
    value, count = average.by_length.get(length), average.tasks.get(length, 0)
    label = f"{plain(average.arm, 60)} at {tokens(length)}: mean of {count} of {RULER_TASKS} tasks"
    if lost := average.lost.get(length, 0):
        label += f", {lost:,} samples without a score left out; {average.as_wrong[length]:.1f} with the lost as wrong"
    label += f"; {interval(*ends)}" if (ends := average.ends.get(length)) else ""
    text = NONE if value is None else f"{value:.1f}" + ("*" if lost or count < RULER_TASKS else "")
    return Field(text, "mean", label, samples_of(view, f"#run{number}", length=length, arm=average.arm))


def _versus(view: RunView, number: int, arm: str, baseline: str, scale: int, forest: int) -> Versus:
    contrast = view.contrasts[arm, baseline]
    cells = view.differences(arm, baseline)
    rows = [
        (
            plain(task, 80),
            tuple(_changed(view, number, task, n, arm, cells.get((task, n)), scale) for n in view.lengths),
        )
        for task in view.tasks
    ]
    by_length = {row.difference.length: row for row in contrast.lengths}
    rows.append(("all pairs", tuple(_pooled(view, number, n, arm, by_length.get(n)) for n in view.lengths)))
    pooled = contrast.pooled
    several = f"by task and length: {tally(contrast.cells)}" if len(contrast.cells) > 1 else ""
    return Versus(
        plain(arm, 60),
        pooled.word,
        size(pooled),
        samples_of(view, "", arm=arm),
        counts(pooled),
        tuple(filter(None, [logprob_difference(pooled), several, apart_words(contrast)])),
        None if pooled.too_few else _forest(pooled, forest),
        HeatMap(f"{plain(arm, 60)} minus {plain(baseline, 60)}", tuple(rows), ""),
        tuple(_difference_row(view, number, row) for row in contrast.cells),
    )


def _changed(view: RunView, number: int, task: str, length: int, arm: str, row: Row | None, scale: int) -> Field:
    where = f"{plain(task, 80)} at {tokens(length)}"
    href = samples_of(view, f"#{place_id(view, number, task, length)}", task=task, length=length, arm=arm)
    if row is None or row.difference.difference is None:
        why = view.unmakeable.get((task, length))
        lost = counts(row) if row and row.difference.left_out else "no pairs"
        return Field(NONE, "none", f"{where}: {f'cannot be made: {plain(why, 300)}' if why else lost}", href)
    words = "; ".join(filter(None, [sentence(row), logprob_difference(row)]))
    style = colours.difference_class(100 * row.difference.difference, scale, row.told)
    return Field(_difference(row), style, f"{where}: {words}", href, row.told)


def _difference(row: Row) -> str:
    """Return the difference, with a star if pairs are left out."""
    star = "*" if row.difference.left_out and row.difference.pairs else ""
    return percent(row.difference.difference, True) + star


def _pooled(view: RunView, number: int, length: int, arm: str, row: Row | None) -> Field:
    href = samples_of(view, f"#run{number}", length=length, arm=arm)
    if row is None or row.difference.difference is None:
        return Field(NONE, "none", f"{tokens(length)}: no pairs", href)
    label = f"all tasks at {tokens(length)}: {sentence(row)}"
    return Field(_difference(row), "mean", label, href, row.told)


def _against(view: RunView, number: int, baseline: str, scale: int) -> tuple[Versus, ...]:
    """Return every other arm against the baseline, with the interval plots on one axis."""
    arms = [arm for arm in view.arms if arm != baseline]
    pooled = [row.difference for arm in arms if not (row := view.contrasts[arm, baseline].pooled).too_few]
    ends = [100 * end for paired in pooled for end in (paired.low, paired.high) if end is not None]
    forest = colours.difference_scale(ends)
    return tuple(_versus(view, number, arm, baseline, scale, forest) for arm in arms)


def _forest(row: Row, scale: int) -> Forest | None:
    low, middle, high = row.difference.low, row.difference.difference, row.difference.high
    if low is None or middle is None or high is None:
        return None
    low, middle, high = (round(100 * value / scale * FOREST, 2) for value in (low, middle, high))
    return Forest(low, middle, high, scale)


def _score_rows(view: RunView, number: int) -> Iterator[tuple[tuple[str, str], ...]]:
    """Yield (shown text, sort key) of every column of the score table; the first column holds the two links."""
    for task in view.tasks:
        for length in view.lengths:
            for arm in view.arms:
                cell = view.cells.get((task, length, arm))
                if cell is not None:
                    yield _score_row(view, number, cell)


def _score_row(view: RunView, number: int, cell: Cell) -> tuple[tuple[str, str], ...]:
    logprob = NONE if cell.logprob is None else f"{cell.logprob:.3f}"
    return (
        _row_links(view, number, cell.task, cell.length, cell.arm),
        (plain(cell.task, 80), ""),
        (tokens(cell.length), str(cell.length)),
        (plain(cell.arm, 60), ""),
        (percent(cell.mean) + ("*" if cell.lost and cell.scored else ""), _key(cell.mean)),
        (interval(cell.low, cell.high), _key(cell.low)),
        (f"{cell.scored}/{cell.asked}", str(cell.scored)),
        (percent(cell.as_wrong), _key(cell.as_wrong)),
        (logprob, _key(cell.logprob)),
    )


def _difference_row(view: RunView, number: int, row: Row) -> tuple[tuple[str, str], ...]:
    cell = row.difference
    task, length = str(cell.task), int(cell.length or 0)
    same = NONE if cell.same_outputs is None else str(cell.same_outputs)
    return (
        _row_links(view, number, task, length, cell.arm),
        (plain(task, 80), ""),
        (tokens(length), str(length)),
        (plain(cell.arm, 60), ""),
        (_difference(row), _key(cell.difference)),
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


def _row_links(view: RunView, number: int, task: str, length: int, arm: str) -> tuple[str, str]:
    """Return the links of a table row: to the evidence on the page, and to the viewer (empty if the run has none)."""
    return f"#{place_id(view, number, task, length)}", samples_of(view, "", task=task, length=length, arm=arm)


def _key(value: float | None) -> str:
    return "" if value is None else repr(value)


def _footnotes(view: RunView) -> Iterator[str]:
    for (task, length), why in view.unmakeable.items():
        yield f"{NONE} {plain(task, 80)} at {tokens(length)} cannot be made: {plain(why, 300)}"
    if any(cell.lost for cell in view.cells.values()):
        yield "* samples without a score are left out; the column 'lost as wrong' is the mean where they count as wrong"
    yield from (line.text for line in view.outcomes if line.quiet)
    if any(count < RULER_TASKS for average in view.averages.values() for count in average.tasks.values()):
        yield f"* in the last row: a mean over fewer than RULER's {RULER_TASKS} tasks"
