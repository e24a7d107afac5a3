"""<name>.html: one self-contained page that works offline, shows a table without scripts, and executes nothing
that the runs hold.

The table, what is shown of each run that was read whole, and the reported numbers are HTML. The maps are JSON, one
block per model, drawn when they are chosen. All text goes through `words.plain` and Jinja's autoescape; the content
policy names the page's own style and script.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from anchoreval.arms.patterns import masks_documents
from anchoreval.records.command import command_of
from anchoreval.records.header import RAW_TEXT
from anchoreval.reports import page as kit
from anchoreval.reports import words
from anchoreval.reports.board.build import Board, Group
from anchoreval.reports.board.cells import Map
from anchoreval.reports.board.definition import Reported, is_length
from anchoreval.reports.board.view import DO, EXTENSION, MEANS, RunView
from anchoreval.reports.words import NONE, interval, lost_counts, percent, plain, tokens
from anchoreval.schema import OUTCOMES, Json, Outcome, Record
from anchoreval.stats import Subject, per_token

TEMPLATES = Path(__file__).parent / "templates"
COLUMNS = ("model", "arm", "suite")  # of the table, before the values
SCORE_HEADS = ("task", "length", "arm", "score", "95% interval", "scored", "lost as wrong", "log-prob per token")
DIFFERENCE_HEADS = (
    "task", "length", "arm", "difference", "verdict", "95% interval", "pairs", "same output", "differ", "p", "p (Holm)",
    "detects", "in full",
)  # fmt: skip
FOREST = 100.0  # half the width of the little interval plot, in its own units
HEADER_CHARACTERS = 20_000
SAMPLES = 4  # of a task and length
OUTPUT_CHARACTERS = 400
REFERENCE_CHARACTERS = 160
REFERENCES = 12
Fields = Sequence[tuple[str, float | None]]  # (shown text, sort key) behind the two links of a table's row


def page(board: Board) -> Iterator[str]:
    """Yield the page in pieces."""
    declared, definition = board.declared, board.declared.definition
    folders = [quote(run.path, safe="/", errors="replace") for run in board.runs]
    folders = [folder if folder.startswith(".") else f"./{folder}" for folder in folders]

    # one pass over the groups: they may lie in a file
    details, names, models = list[dict[str, Any]](), list[str](), set[str]()
    lost, masks, repeated = Counter[Outcome](), False, 0
    for number, group in enumerate(board.groups):
        if group.view:
            details.append(_details(group.view, number, folders[group.runs[0]]))
        names.append(f"{group.model} · {group.setting}")
        models.add(group.model)
        for mean in group.tasks.means.values():
            lost.update(mean.outcomes)
        masks = masks or any(masks_documents(subject.arm) for subject in group.arms)
        repeated += group.repeated

    alone = details[0] if len(details) == 1 else None
    if alone:
        facts, notes = alone["lead"], alone["warnings"]
    else:
        spans = " / ".join(tokens(length) for length in board.lengths)
        facts = f"{len(models)} model{'s' * (len(models) != 1)}, {len(folders)} run{'s' * (len(folders) != 1)}, "
        facts += f"{spans} tokens"
        notes = list(_notes(board, lost, masks, repeated, whole=bool(details)))

    # the column that decides the order of the table first, unless it is none of the values
    first = next(iter(definition.order), "")
    column, way = first.removeprefix("-"), "descending" if first.startswith("-") else "ascending"
    settings = {line.setting for line in board.lines}
    yield from kit.render(
        TEMPLATES / "board.html", "board", plain(definition.title, 200), [TEMPLATES / "board.css", kit.colours_css()],
        [kit.PIECES, TEMPLATES / "board.js"],
        about=plain(definition.about, 2000), name=plain(declared.name, kit.NAME), baseline=definition.baseline,
        margin=f"{definition.margin:g}", facts=facts, notes=notes, lines=_rows(board, folders),
        arms=list(dict.fromkeys(line.arm for line in board.lines)), suites=list(declared.suites),
        groups=list(enumerate(names)), columns=[*COLUMNS, *board.heads], count=len(board.lines),
        setting=settings.pop() if len(settings) == 1 else "",
        sorted_by={len(COLUMNS) + board.names.index(column): way} if column in board.names else {},
        reported=[_reported(table) for table in declared.reported],
        sources=list(zip(board.runs, folders, strict=True)), runs=details, alone=alone,
        shared=kit.data_block({"runs": [[at, int(run.viewer)] for at, run in zip(folders, board.runs, strict=True)]}),
        blocks=(kit.data_block(_maps(group)) for group in board.groups),
        none=NONE, forest=FOREST, score_heads=SCORE_HEADS, difference_heads=DIFFERENCE_HEADS,
    )  # fmt: skip


def _rows(board: Board, folders: Sequence[str]) -> Iterator[Mapping[str, Any]]:
    """Yield the rows of the table, each value with the link to its samples: in the run's viewer, else its records."""
    for line in board.lines:
        fields = []
        for value in line.values:
            href = ""
            if value.run is not None:
                folder = folders[value.run]
                viewed = board.runs[value.run].viewer
                href = kit.listed(folder, value.query) if viewed else f"{folder}/records.jsonl"
            fields.append((value, href))
        yield {"line": line, "fields": fields}


def _notes(board: Board, lost: Mapping[Outcome, int], masks: bool, repeated: int, whole: bool) -> Iterator[str]:
    """Yield what a reader must know of many runs; `whole` is True if each of them is shown with its samples."""
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
    raw = sum(RAW_TEXT in run.facts for run in board.runs)
    if raw:
        yield f"{raw} run{'s' * (raw != 1)} of {len(board.runs)}: {RAW_TEXT}."
    for outcome in OUTCOMES:
        if lost.get(outcome) and outcome not in ("answered", "cut"):
            text = f"{lost[outcome]:,} {outcome.replace('_', ' ')}: {MEANS[outcome]}; {DO[outcome]}"
            yield f"{plain(text, 400)}."
    if masks:
        yield EXTENSION
    if board.absent:
        yield f"Declared, but in no run: {plain('; '.join(board.absent), 600)}."
    if repeated:
        yield (
            f"{repeated} cell{'s' * (repeated != 1)} ran more than once: shown is the run with the most arms "
            "there, then the most samples; samples of different runs are never put together."
        )
    if not all(run.viewer for run in board.runs) and not whole:
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


def _details(view: RunView, number: int, folder: str) -> dict[str, Any]:
    """Return what the page shows of run `number` besides its maps; `folder` is the run's, as a link."""
    header, model, limit = view.header, view.header.model, view.header.limit
    parts = [
        f"{len(view.tasks)} task{'s' * (len(view.tasks) != 1)}",
        f"{' / '.join(tokens(length) for length in view.lengths)} tokens",
        f"{len(view.arms)} arm{'s' * (len(view.arms) != 1)}",
        *([f"{limit} samples per cell"] if limit else []),
    ]

    # the samples that each arm of the finished run has, unless its header does not tell
    samples, many = header.samples, f"{len(view.records):,}"
    if samples is None and limit is not None and not header.get("until"):
        samples = limit * sum((task, length) not in view.unmakeable for task in view.tasks for length in view.lengths)
    expected = None if samples is None else samples * len(view.arms)

    # what a reader asks first; the whole header follows on the page
    versions = ", ".join(
        f"{plain(name, 40)} {plain(text, 40)}" for name, text in header.part("backend", "versions").items()
    )
    where = header.at("backend", "server", "address") or header.backend.get("device") or ""
    engine = filter(None, [plain(header.backend.get("engine", NONE), 40), versions, plain(where, 200)])
    parameters = model.get("parameters")
    facts = {
        "Run": plain(view.name, 100),
        "Folder": plain(view.path, 200),
        "Started": plain(header.created or NONE, 40),
        "Model": plain(model.get("path", NONE), 200),
        "Engine": ", ".join(engine),
        "Weights": f"sha256 {plain(model['sha256'], 64)[:16]}" if model.get("sha256") else NONE,
        "Parameters": f"{parameters:,}" if isinstance(parameters, int) else plain(parameters or NONE, 40),
        "Dtype": plain(model.get("dtype") or NONE, 40),
        "Anchor token": plain(header.anchor_words or NONE, 120),
        "Prompts": plain(header.form_words or NONE, 60),
        "Seed": plain(header.get("seed", NONE), 40),
        "Sources": ", ".join(f"{plain(k, 40)} {plain(v, 60)}" for k, v in header.sources.items()) or NONE,
        **({"Environments": str(len(header.environments))} if len(header.environments) > 1 else {}),
        "Command": plain(command_of(header), 2_000),
        "Records": many if expected is None else f"{many} of {expected:,}",
    }

    warnings = [*view.notes, *(line.text for line in view.outcomes if not line.quiet)]
    if expected is not None and len(view.records) < expected:
        warnings.append(f"Unfinished: {many} of {expected:,} records so far.")
    footnotes = [
        f"{NONE} {plain(task, 80)} at {tokens(length)} cannot be made: {plain(why, 300)}"
        for (task, length), why in view.unmakeable.items()
    ]
    if any(cell.lost for cell in view.cells.values()):
        left = "samples without a score are left out"
        footnotes.append(f"* {left}; the column 'lost as wrong' is the mean where they count as wrong")
    footnotes += [line.text for line in view.outcomes if line.quiet]
    floors = map(words.floor_words, view.contrasts.values())
    return {
        "number": number,
        "title": plain(view.model, 100),
        "lead": ", ".join(parts),
        "facts": facts,
        "header": plain(json.dumps(header, indent=2, default=str), HEADER_CHARACTERS),
        "files": {name: f"{folder}/{name}" for name in ("header.json", "records.jsonl")},
        "fingerprint": view.fingerprint,
        "warnings": warnings,
        "against": [_against(view, base, number, folder) for base in view.arms] if len(view.arms) > 1 else [],
        "floor": next(filter(None, floors), "noise floor: no placebo in this run"),
        "rows": list(_score_rows(view, number, folder)),
        "evidence": list(_evidence(view, number)),
        "footnotes": [*footnotes, *view.ruler_words],
    }


def _against(view: RunView, base: str, number: int, folder: str) -> dict[str, Any]:
    """Return the other arms against one baseline: a card each, and the rows of a table.

    A card holds words, and low, middle and high of an interval plot on an axis of +-FOREST, whose ends are +-`scale`
    points.
    """
    contrasts = [(arm, view.contrasts[arm, base]) for arm in view.arms if arm != base]
    drawn = [contrast.pooled.difference for _, contrast in contrasts if not contrast.pooled.too_few]
    scale = kit.difference_scale([100 * end for paired in drawn for end in (paired.low, paired.high) if end])
    cards, rows = [], []
    for arm, contrast in contrasts:
        pooled, lengths = contrast.pooled, contrast.lengths if len(contrast.lengths) > 1 else ()
        ends = [pooled.difference.low, pooled.difference.difference, pooled.difference.high]
        forest = [round(100 * end / scale * FOREST, 2) for end in ends if end is not None]
        sentences = [
            words.counts(pooled),
            words.logprob_difference(pooled),
            *(f"at {tokens(row.difference.length or 0)}: {words.sentence(row)}" for row in lengths),
            f"by task and length: {words.tally(contrast.cells)}" if len(contrast.cells) > 1 else "",
            words.apart_words(contrast),
        ]
        cards.append({
            "arm": plain(contrast.arm, 60),
            "word": pooled.word,
            "size": words.size(pooled),
            "href": kit.listed(folder, [("arm", arm)]) if view.viewer else "",
            "words": list(filter(None, sentences)),
            "forest": forest if len(forest) == len(ends) and not pooled.too_few else [],
        })  # fmt: skip
        for row in contrast.cells:
            cell = row.difference
            task, length, same = str(cell.task), int(cell.length or 0), cell.same_outputs
            star = "*" if cell.left_out else ""
            fields: Fields = (
                (plain(task, 80), None),
                (tokens(length), length),
                (plain(cell.arm, 60), None),
                (percent(cell.difference, True) + (star if cell.pairs else ""), cell.difference),
                (row.word, None),
                (NONE if row.too_few else interval(cell.low, cell.high, True), cell.low),
                (f"{cell.pairs}{star}", cell.pairs),
                (NONE if same is None else str(same), same),
                (str(cell.discordant), cell.discordant),
                (words.p_number(cell.p), cell.p),
                (words.p_number(row.p_holm), row.p_holm),
                (percent(cell.detectable), cell.detectable),
                (row.says, None),
            )
            rows.append((_links(view, number, folder, task, length, cell.arm), fields))
    return {"baseline": plain(base, 60), "cards": cards, "scale": scale, "rows": rows}


def _links(view: RunView, number: int, folder: str, task: str, length: int, arm: str) -> tuple[str, str]:
    """Return the links of a table's row: to the samples on the page, and to those in the viewer if there is one."""
    query = [("task", task), ("length", str(length)), ("arm", arm)]
    return f"#e{number}-{view.tasks.index(task)}-{length}", kit.listed(folder, query) if view.viewer else ""


def _score_rows(view: RunView, number: int, folder: str) -> Iterator[tuple[tuple[str, str], Fields]]:
    places = ((task, length, arm) for task in view.tasks for length in view.lengths for arm in view.arms)
    for place in places:
        if (cell := view.cells.get(place)) is None:
            continue
        why = f" ({lost_counts(cell.outcomes, cell.lost)})" if cell.lost else ""
        fields: Fields = (
            (plain(cell.task, 80), None),
            (tokens(cell.length), cell.length),
            (plain(cell.arm, 60), None),
            (percent(cell.mean) + ("*" if cell.lost and cell.scored else ""), cell.mean),
            (interval(cell.low, cell.high), cell.low),
            (f"{cell.scored}/{cell.asked}{why}", cell.scored),
            (percent(cell.as_wrong), cell.as_wrong),
            (NONE if cell.logprob is None else f"{cell.logprob:.3f}", cell.logprob),
        )
        yield _links(view, number, folder, *place), fields


def _evidence(view: RunView, number: int) -> Iterator[dict[str, Any]]:
    """Yield what is behind each (task, length): counts per arm, and a few samples with the outputs of all arms.

    The samples are first those on which arms disagree, then by index. The id is that of a row and length of the map of
    run `number`; the script makes the same.
    """
    samples: dict[tuple[str, int], dict[str, dict[str, Record]]] = {}
    for record in view.records:
        by_sample = samples.setdefault((record.task, record.length), {})
        by_sample.setdefault(record.sample_id, {})[record.arm] = record
    for row, task in enumerate(view.tasks):
        for length in view.lengths:
            by_id = samples.get((task, length), {})
            scores = {name: {record.score for record in of.values()} for name, of in by_id.items()}
            index = {name: min(record.index for record in of.values()) for name, of in by_id.items()}
            first = sorted(by_id, key=lambda name: (len(scores[name]) < 2, index[name]))[:SAMPLES]
            cells = [(arm, view.cells.get((task, length, arm))) for arm in view.arms]
            yield {
                "id": f"e{number}-{row}-{length}",
                "task": plain(task, 80),
                "length": length,
                "arms": [(plain(arm, 60), words.cell_words(cell) if cell else "no records") for arm, cell in cells],
                "samples": [_sample(by_id[name], view.arms) for name in first],
                "total": len(by_id),
                "unmakeable": plain(view.unmakeable.get((task, length), ""), 300),
            }


def _sample(by_arm: Mapping[str, Record], arms: Sequence[str]) -> dict[str, Any]:
    """Return one sample with the answers of all arms, safe to print."""
    first = next(iter(by_arm.values()))
    references = [plain(reference, REFERENCE_CHARACTERS) for reference in first.references[:REFERENCES]]
    if len(first.references) > REFERENCES:
        references.append(f"and {len(first.references) - REFERENCES} more")
    answers = []
    for record in (by_arm[arm] for arm in arms if arm in by_arm):
        logprob = per_token(record)
        notes = [
            f"{record.output_tokens} tokens",
            f"ended by {plain(record.finish, 20)}",
            "" if logprob is None else f"reference {logprob:.3f} per token",
            plain(record.why, 200) if record.why else "",
        ]
        answers.append({
            "arm": plain(record.arm, 60),
            "output": plain(record.output, OUTPUT_CHARACTERS),
            "score": "no score" if record.score is None else f"{100 * record.score:.0f}",
            "right": None if record.score is None else record.score >= 1,
            "note": ", ".join(filter(None, notes)),
        })  # fmt: skip
    return {
        "id": plain(first.sample_id, 120),
        "prompt_sha256": plain(first.prompt_sha256, 64),
        "prompt_tokens": first.prompt_tokens,
        "references": references,
        "answers": answers,
    }


def _maps(group: Group) -> Json:
    """Return the maps of one model; numbers are whole tenths of a point, log-probabilities in nats per token."""
    arms = {arm: i for i, arm in enumerate(group.arms)}
    tasks = {task: row for row, task in enumerate(group.tasks.rows)}
    names: dict[str, list[str | None]] = {task: [plain(task, kit.NAME), kit.encoded(task)] for task in tasks}
    unmakeable = group.view.unmakeable if group.view else {}
    return {
        "arms": [[plain(group.names[subject], kit.NAME), kit.encoded(subject.arm)] for subject in group.arms],
        "base": next((i for i, subject in enumerate(group.arms) if subject.arm == group.baseline), 0),
        "lengths": group.lengths,
        "samples": int(group.view is not None),
        "why": {f"{tasks[task]} {n}": plain(why, 300) for (task, n), why in unmakeable.items() if task in tasks},
        "tasks": _map(group.tasks, arms, list(names.values())),
        "depths": _map(group.depths, arms, [[row, None] for row in group.depths.rows]),
        "grids": [
            {"task": names[task], "row": tasks[task], **_map(grid, arms, [[row, None] for row in grid.rows])}
            for task, grid in group.grids.items()
        ],
    }


def _map(found: Map, arms: Mapping[Subject, int], rows: list[list[str | None]]) -> dict[str, Json]:
    means: list[Json] = []
    for (row, n, arm), mean in found.means.items():
        means.append([
            row, n, arms[arm], _tenths(mean.mean), _tenths(mean.low), _tenths(mean.high), mean.scored, mean.asked,
            None if mean.logprob is None else round(mean.logprob, 3),
            mean.run,
            _tenths(mean.as_wrong) if mean.lost else None,
            lost_counts(mean.outcomes, mean.lost) if mean.lost else "",
            mean.sources if 0 < mean.sources < mean.scored else 0,
        ])  # fmt: skip

    gaps = [((row, n, arms[a], arms[b]), gap) for (row, n, a, b), gap in found.gaps.items()]
    gaps += [((len(rows), n, arms[a], arms[b]), gap) for (n, a, b), gap in found.totals.items()]
    differences: list[Json] = []
    shown, nats = list[float](), list[float]()  # those that verdicts show: noise sets no scale
    for place, gap in gaps:
        judged, paired = gap.row, gap.row.difference
        if judged.told and paired.difference is not None:
            shown.append(100 * paired.difference)
        if judged.logprob_says in ("lower", "higher") and paired.logprob is not None:
            nats.append(paired.logprob)
        differences.append([
            *place, _tenths(paired.difference), _tenths(paired.low), _tenths(paired.high), paired.pairs,
            words.left_out(paired),
            words.p_text(paired.p, judged.p_holm) if paired.discordant else "",
            None if judged.told else _tenths(paired.detectable),
            judged.says, gap.run, int(judged.told), paired.same_outputs, int(judged.too_few),
            None if judged.says.startswith(str(judged.verdict)) or judged.placebo else str(judged.verdict),
            None if paired.logprob is None else float(f"{paired.logprob:.4g}"),
            judged.logprob_says,
        ])  # fmt: skip
    return {
        "rows": [*rows, ["all pairs", None]] if found.totals else rows,
        "total": int(bool(found.totals)),
        "scale": kit.difference_scale(shown),
        "nats": kit.nats_scale(nats),
        "means": means,
        "gaps": differences,
    }


def _tenths(value: float | None) -> int | None:
    """Return tenths of a point, rounded as `words.percent` prints them."""
    return None if value is None else int(f"{100 * value:.1f}".replace(".", ""))
