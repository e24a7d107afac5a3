"""<name>.html: one self-contained page that works offline, shows a table without scripts, and executes nothing
that the runs hold.

The table and the reported numbers are HTML. The maps are JSON, one block per model, drawn when they are chosen. All
text goes through `words.plain` and Jinja's autoescape; the content policy names the page's own style and script.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import quote

from anchoreval.arms.patterns import masks_documents
from anchoreval.records.header import RAW_TEXT
from anchoreval.reports import colours
from anchoreval.reports.board.build import Board, Group, Line, Source
from anchoreval.reports.board.cells import Gap, Map, Mean
from anchoreval.reports.board.columns import Value, heads
from anchoreval.reports.board.details import DIFFERENCE_HEADS, FOREST, SCORE_HEADS, Details, details
from anchoreval.reports.board.reported import Reported, is_length
from anchoreval.reports.links import encoded, listed
from anchoreval.reports.outcomes import EXTENSION, counted_lines
from anchoreval.reports.page import NAME, PIECES, data_block, render
from anchoreval.reports.words import NONE, left_out, lost_counts, p_text, plain, tokens
from anchoreval.schema import Json, Outcome
from anchoreval.stats import Subject

COLUMNS = ("model", "arm", "suite")  # of the table, before the values
TEMPLATES = Path(__file__).parent / "templates"


def page(board: Board) -> Iterator[str]:
    """Yield the page in pieces."""
    definition, seen = board.declared.definition, _Seen(board)
    runs = seen.details
    alone = runs[0] if len(runs) == 1 else None
    settings = {line.setting for line in board.lines}
    yield from render(
        TEMPLATES / "board.html", "board", plain(definition.title, 200), [TEMPLATES / "board.css", colours.css()],
        [PIECES, TEMPLATES / "board.js"],
        about=plain(definition.about, 2000), name=plain(board.declared.name, NAME), baseline=definition.baseline,
        margin=f"{definition.margin:g}", facts=alone.lead if alone else _facts(board, seen),
        lines=(_line(board, line) for line in board.lines),
        notes=alone.warnings if alone else list(_notes(board, seen)),
        arms=list(dict.fromkeys(line.arm for line in board.lines)), suites=list(board.declared.suites),
        groups=list(enumerate(seen.names)),
        columns=[*COLUMNS, *board.heads], count=len(board.lines), setting=settings.pop() if len(settings) == 1 else "",
        reported=[_reported(table) for table in board.declared.reported],
        sources=[(run.path, _folder(run), run.viewer, run.facts, run.page) for run in board.sources],
        runs=runs, alone=alone, sorted_by=_sorted_by(board),
        shared=data_block(_shared(board)), blocks=(data_block(_group(group)) for group in board.groups),
        none=NONE, forest=FOREST, score_heads=SCORE_HEADS, difference_heads=DIFFERENCE_HEADS,
    )  # fmt: skip


def _sorted_by(board: Board) -> Mapping[int, str]:
    """Return the column of the table that decides its order first, with its direction; empty if no value does."""
    definition = board.declared.definition
    names, first = heads(definition.columns, board.lengths, ""), next(iter(definition.order), "")
    column, way = first.removeprefix("-"), "descending" if first.startswith("-") else "ascending"
    return {len(COLUMNS) + names.index(column): way} if column in names else {}


class _Seen:
    """What the page says of all groups together, from one pass over them: they may lie in a file."""

    def __init__(self, board: Board) -> None:
        self.details, self.names, self.models = list[Details](), list[str](), set[str]()
        self.lost, self.masks, self.repeated = Counter[Outcome](), False, 0
        for number, group in enumerate(board.groups):
            if group.view:
                self.details.append(details(group.view, number, _folder(board.sources[group.runs[0]])))
            self.names.append(f"{group.model} · {group.setting}")
            self.models.add(group.model)
            for mean in group.tasks.means.values():
                self.lost.update(mean.outcomes)
            self.masks = self.masks or any(masks_documents(subject.arm) for subject in group.arms)
            self.repeated += group.repeated


def _facts(board: Board, seen: _Seen) -> str:
    models, runs = len(seen.models), len(board.sources)
    spans = " / ".join(tokens(length) for length in board.lengths)
    return f"{models} model{'s' * (models != 1)}, {runs} run{'s' * (runs != 1)}, {spans} tokens"


def _line(board: Board, line: Line) -> Mapping[str, Json]:
    fields = [(value, _href(board, value)) for value in line.values]
    return {"line": line, "fields": fields}


def _href(board: Board, value: Value) -> str:
    """Return the link to the samples behind a value: the run's viewer, filtered, or its records without a viewer."""
    if value.run is None:
        return ""
    source = board.sources[value.run]
    return listed(_folder(source), value.query) if source.viewer else f"{_folder(source)}/records.jsonl"


def _folder(source: Source) -> str:
    """Return the folder of a run as a link."""
    path = quote(source.path, safe="/", errors="replace")
    return path if path.startswith(".") else f"./{path}"


def _notes(board: Board, seen: _Seen) -> Iterator[str]:
    apart = sum(not line.comparable for line in board.lines)
    if apart:
        of = "All rows are" if apart == len(board.lines) else "Rows marked † are"
        yield f"{of} measured on other texts than the published ones: not comparable with published or reported scores."
    several = sum(line.environments > 1 for line in board.lines)
    if several:
        yield (
            f"{several} row{'s' * (several != 1)} marked with a number of environments: machines or versions changed "
            "within the run, so last bits may differ from one record to the next."
        )
    raw = sum(RAW_TEXT in run.facts for run in board.sources)
    if raw:
        yield f"{raw} run{'s' * (raw != 1)} of {len(board.sources)}: {RAW_TEXT}."
    yield from (f"{plain(line.text, 400)}." for line in counted_lines(seen.lost) if line.outcome != "cut")
    if seen.masks:
        yield EXTENSION
    if board.absent:
        yield f"Declared, but in no run: {plain('; '.join(board.absent), 600)}."
    if seen.repeated:
        yield (
            f"{seen.repeated} cell{'s' * (seen.repeated != 1)} ran more than once: shown is the run with the most arms "
            "there, then the most samples; samples of different runs are never put together."
        )
    if not all(run.viewer for run in board.sources) and not seen.details:
        yield "Runs without a viewer link to their records: `anchoreval view RUN`, then write the board again."
    if not board.lines:
        yield "No run holds a cell of this board."


def _reported(table: Reported) -> Mapping[str, Json]:
    columns = table.columns
    heads = [tokens(int(name)) if is_length(name) else name for name in columns]
    rows = [
        (row, [" / ".join(number.value for number in by_column.get(name, ())) or NONE for name in columns])
        for row, by_column in table.rows.items()
    ]
    suites = dict.fromkeys(number.suite for number in table.numbers)
    return {"title": f"{table.source}: {', '.join(suites)}", "heads": heads, "rows": rows, "notes": table.notes}


def _shared(board: Board) -> Json:
    return {"runs": [[_folder(run), int(run.viewer)] for run in board.sources]}


def _group(group: Group) -> Json:
    """Return the maps of one model; numbers are whole tenths of a point, log-probabilities in nats per token."""
    arms = {arm: i for i, arm in enumerate(group.arms)}
    rows = {task: row for row, task in enumerate(group.tasks.rows)}
    unmakeable = group.view.unmakeable if group.view else {}
    return {
        "arms": [_name(group.names[subject], subject.arm) for subject in group.arms],
        "base": next((i for i, subject in enumerate(group.arms) if subject.arm == group.baseline), 0),
        "lengths": group.lengths,
        "samples": int(group.view is not None),
        "why": {f"{rows[task]} {n}": plain(why, 300) for (task, n), why in unmakeable.items() if task in rows},
        "tasks": _map(group.tasks, arms, [_name(task, task) for task in group.tasks.rows]),
        "depths": _map(group.depths, arms, [[row, None] for row in group.depths.rows]),
        "grids": [
            {"task": _name(task, task), "row": rows[task], **_map(grid, arms, [[row, None] for row in grid.rows])}
            for task, grid in group.grids.items()
        ],
    }


def _name(text: str, link: str) -> list[str | None]:
    return [plain(text, NAME), encoded(link)]


def _map(found: Map, arms: Mapping[Subject, int], rows: list[list[str | None]]) -> dict[str, Json]:
    gaps = [((row, n, arms[a], arms[b]), gap) for (row, n, a, b), gap in found.gaps.items()]
    gaps += [((len(rows), n, arms[a], arms[b]), gap) for (n, a, b), gap in found.totals.items()]
    told = [gap for _, gap in gaps if gap.row.logprob_says in ("lower", "higher")]
    return {
        "rows": [*rows, ["all pairs", None]] if found.totals else rows,
        "total": int(bool(found.totals)),
        "scale": colours.shown_scale(gap.row for _, gap in gaps),
        "nats": colours.nats_scale(gap.difference.logprob for gap in told if gap.difference.logprob is not None),
        "means": [[row, n, arms[arm], *_mean(mean)] for (row, n, arm), mean in found.means.items()],
        "gaps": [[*place, *_gap(gap)] for place, gap in gaps],
    }


def _mean(mean: Mean) -> list[Json]:
    logprob = None if mean.logprob is None else round(mean.logprob, 3)
    ends = [_tenths(mean.mean), _tenths(mean.low), _tenths(mean.high), mean.scored, mean.asked, logprob, mean.run]
    more = [_tenths(mean.as_wrong), lost_counts(mean.outcomes, mean.lost)] if mean.lost else [None, ""]
    return [*ends, *more, mean.sources if 0 < mean.sources < mean.scored else 0]


def _gap(gap: Gap) -> list[Json]:
    paired = gap.difference
    ends = [_tenths(paired.difference), _tenths(paired.low), _tenths(paired.high)]
    row = gap.row
    p = p_text(paired.p, row.p_holm) if paired.discordant else ""
    detects = None if row.told else _tenths(paired.detectable)
    fixed = None if row.says.startswith(str(row.verdict)) or row.placebo else str(row.verdict)
    verdict_fields = [p, detects, row.says, gap.run, int(row.told), paired.same_outputs, int(row.too_few), fixed]
    nats_fields = [None if paired.logprob is None else float(f"{paired.logprob:.4g}"), row.logprob_says]
    return [*ends, paired.pairs, left_out(paired), *verdict_fields, *nats_fields]


def _tenths(value: float | None) -> int | None:
    """Return tenths of a point, rounded as `words.percent` prints them."""
    return None if value is None else int(f"{100 * value:.1f}".replace(".", ""))
