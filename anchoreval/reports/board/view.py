"""What a board shows of one run: its cells, paired differences, RULER averages, notes on them, and board.csv.

Samples that were not simply answered are counted by outcome, with what it means and what to do about it.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from statistics import fmean

from anchoreval.arms.patterns import masks_documents
from anchoreval.records.header import Header
from anchoreval.records.run import Run
from anchoreval.reports.page import has_viewer, relative
from anchoreval.reports.table import TRAINED, compared_fields, csv_lines, number, scored_fields, trained_fields
from anchoreval.reports.words import plain
from anchoreval.schema import OUTCOMES, SCORED, Outcome, Record
from anchoreval.stats import UNSCORED, Cell, Cells, Compared, Contrast, Place, Row, Subject, average_ends, figures
from anchoreval.suites.ruler.scoring import TASKS, effective_length, weighted_decreasing, weighted_increasing

EXTENSION = "Attention masked by documents at inference is this project's extension, not part of arXiv 2411.13476."
_AGAIN = "the same command asks them again"
MEANS: Mapping[Outcome, str] = {
    "cut": "filled their budget of new tokens",
    "empty": "gave an answer of nothing but white space, or none: the first token ended it",
    "unclosed": "spent their budget on reasoning that never ended",
    "refused": "were refused by the server",
    "failed": "gave no answer",
    "not_finite": "gave logits or log-probabilities that are not numbers",
    "does_not_fit": "need more positions than there are",
}
DO: Mapping[Outcome, str] = {
    "cut": "scored as they stand; where the answer stands behind a long introduction or reasoning, ask for less of it",
    "empty": "scored by the benchmark's rule; read some of them: the form of the prompts may not be the model's",
    "unclosed": f"not scored; turn reasoning off in the template, or give answers more room: {_AGAIN}",
    "refused": f"not scored; start the server with a larger window, or mend what it says: {_AGAIN}",
    "failed": f"not scored; {_AGAIN}",
    "not_finite": f"not scored; try --dtype float32, or bfloat16 in place of float16: {_AGAIN}",
    "does_not_fit": f"not scored; start the server with a larger window (then {_AGAIN}), or choose shorter --lengths",
}
_NORMAL = "scored as they stand; a base model does not end its answers, so this is normal here"


@dataclass(frozen=True, slots=True)
class OutcomeLine:
    """One outcome of a run in a sentence; `quiet` is True if the outcome is to be expected."""

    text: str
    quiet: bool


@dataclass(frozen=True, slots=True)
class RulerMeans:
    """RULER's averages for one arm; scores 0..100. `tasks[length]` counts the tasks in `by_length[length]`.

    A mean over fewer than 13 tasks is marked as such, and so is a mean from which samples without a score are left out:
    `as_wrong[length]` is the mean if they count as wrong. `ends[length]` is the 95% interval of the mean. The weighted
    means and the effective length ("<4K", "8K", ">128K") are RULER's own: they need six lengths of 13 tasks each, and
    are None if a length that matters is missing. `coverage` is `13 of 13`, or `11-12 of 13` if lengths differ;
    `summary` says all this in words, or why there are no averages.
    """

    by_length: Mapping[int, float]
    tasks: Mapping[int, int]
    increasing: float | None
    decreasing: float | None
    effective: str | None
    as_wrong: Mapping[int, float]
    ends: Mapping[int, tuple[float, float]]
    coverage: str
    summary: str


@dataclass(frozen=True, slots=True)
class RunView:
    """One run, ready to be rendered. `path` is the run's folder relative to the board's folder, with `/`.

    `contrasts` are the paired differences (arm, baseline) with verdicts, for every ordered pair of arms. `averages` are
    RULER's by arm, empty if the run holds no RULER task, and `ruler_words` the same in words. `notes` are what a reader
    must know beside the scores. `incomparable` is as in records.Header, for the records that are here. `fingerprint` is
    the first 12 hex digits of the SHA-256 of the header as canonical JSON. `viewer` is True if the folder holds a page
    of all its samples. `changed` says what changed since the run finished.
    """

    path: str
    name: str
    model: str
    header: Header
    records: tuple[Record, ...]
    tasks: tuple[str, ...]
    lengths: tuple[int, ...]
    arms: tuple[str, ...]
    subjects: Mapping[Subject, Cells]
    cells: Mapping[tuple[str, int, str], Cell]
    compared: Compared
    contrasts: Mapping[tuple[str, str], Contrast]
    averages: Mapping[str, RulerMeans]
    ruler_words: Sequence[str]
    outcomes: Sequence[OutcomeLine]
    notes: Sequence[str]
    unmakeable: Mapping[Place, str]
    incomparable: Mapping[str, str]
    fingerprint: str
    viewer: bool
    changed: str


def view(run: Run, folder: Path) -> RunView:
    """Return the run as a board in `folder` shows it; tasks and arms in the header's order, lengths ascending."""
    header, path = run.header, relative(run.path, folder)
    known = {subject.arm: (subject, cells) for subject, cells in run.subjects().items()}
    subjects = dict(known.get(arm) or (header.subject(arm, run.name), {}) for arm in run.arms)
    cells = {
        (*place, subject.arm): Cell(*place, subject.arm, **figures([scores]))
        for subject, by_place in subjects.items()
        for place, scores in by_place.items()
    }

    compared, of_arm = Compared(subjects), {subject.arm: subject for subject in subjects}
    pairs = permutations(run.arms, 2)
    contrasts = {(arm, base): compared.contrast(of_arm[arm], of_arm[base]) for base, arm in pairs}

    has_ruler = any(task.startswith("ruler/") for task in run.tasks)
    averages = {
        arm: _ruler_means([cell for cell in cells.values() if cell.arm == arm]) for arm in run.arms if has_ruler
    }
    ruler_words = [f"{plain(arm, 40)}: RULER {average.summary}" for arm, average in averages.items()]
    summaries = {average.summary for average in averages.values() if average.by_length}
    if len(summaries) == 1:
        ruler_words = [f"RULER: {summaries.pop()}"]

    lengths = sorted({*header.lengths, *(length for _, length, _ in cells)})
    name = header.run or path
    canonical = json.dumps(header, sort_keys=True, separators=(",", ":"), default=str)
    return RunView(
        path=path, name=name, model=str(header.model.get("name") or name), header=header, records=run.records,
        tasks=run.tasks, lengths=tuple(lengths), arms=run.arms, subjects=subjects, cells=cells, compared=compared,
        contrasts=contrasts, averages=averages, ruler_words=ruler_words, outcomes=outcome_lines(header, run.records),
        notes=list(run_notes(header, run.records, run.arms, run.changed)), unmakeable=header.unmakeable,
        incomparable=header.incomparable(run.records), viewer=has_viewer(run.path), changed=run.changed,
        fingerprint=hashlib.sha256(canonical.encode("ascii")).hexdigest()[:12],
    )  # fmt: skip


def _ruler_means(cells: Iterable[Cell]) -> RulerMeans:
    """Return RULER's averages over the cells of one arm: of points with two decimals, as upstream averages them."""
    asked: dict[int, list[Cell]] = {}
    for cell in sorted(cells, key=lambda cell: cell.length):
        if cell.task.startswith("ruler/"):
            asked.setdefault(cell.length, []).append(cell)
    scored = {n: kept for n, at_length in asked.items() if (kept := [cell for cell in at_length if cell.scored])}
    means = {n: fmean(round(100 * (cell.mean or 0.0), 2) for cell in at_length) for n, at_length in scored.items()}
    tasks = {n: len(at_length) for n, at_length in scored.items()}
    whole = {n: mean for n, mean in means.items() if tasks[n] == TASKS}
    increasing, decreasing = weighted_increasing(whole), weighted_decreasing(whole)
    effective = effective_length(whole)

    counts = sorted(set(tasks.values())) or [0]
    coverage = f"{counts[0]}-{counts[-1]} of {TASKS}" if len(counts) > 1 else f"{counts[0]} of {TASKS}"
    parts = []
    if increasing is not None and decreasing is not None:
        parts += [f"wAvg(inc) {increasing:.1f}", f"wAvg(dec) {decreasing:.1f}"]
    if effective is not None:
        parts.append(f"effective length {effective}")
    if len(parts) < 3:
        parts.append(f"wAvg needs RULER's six lengths, 4K to 128K, with all {TASKS} tasks")
    lost = sum(cell.lost for at_length in asked.values() for cell in at_length)
    left = f"{lost:,} samples have no score and are left out; " if lost else ""
    return RulerMeans(
        by_length=means,
        tasks=tasks,
        increasing=increasing,
        decreasing=decreasing,
        effective=effective,
        as_wrong={n: fmean(round(100 * cell.as_wrong, 2) for cell in at_length) for n, at_length in asked.items()},
        ends={n: average_ends([(1.0, cell) for cell in at_length]) for n, at_length in scored.items()},
        coverage=coverage,
        summary=f"means over {coverage} tasks; {left}{', '.join(parts)}",
    )


def run_notes(header: Header, records: Sequence[Record], arms: Iterable[str], changed: str) -> Iterator[str]:
    """Yield a sentence for everything that a reader of a run's scores must know, except outcomes."""
    if changed:
        yield f"This run is not what it was when it finished: {changed}."
    if why := header.incomparable_words(records=records):
        yield f"Not comparable with published scores: {plain(why)}."
    if raw := header.raw_words:
        yield f"{raw[:1].upper()}{raw[1:]}."
    if several := header.environment_words:
        yield f"{plain(several)}: last bits may differ from one record to the next; records name theirs."
    if any(map(masks_documents, arms)):
        yield EXTENSION


def outcome_lines(header: Header, records: Iterable[Record]) -> list[OutcomeLine]:
    """Return a line for every outcome of a run's records except `answered`; outcomes that lost the score come last."""
    by_outcome: dict[Outcome, Counter[str]] = {}
    reasons: dict[Outcome, str] = {}
    arms: dict[str, None] = {}
    for record in records:
        arms[record.arm] = None
        outcome = record.outcome or "answered"
        by_outcome.setdefault(outcome, Counter())[record.arm] += 1
        if outcome not in SCORED and record.why:
            reasons.setdefault(outcome, record.why)

    lines = []
    for outcome in OUTCOMES:
        if outcome == "answered" or outcome not in by_outcome:
            continue
        by_arm = by_outcome[outcome]
        count, quiet = by_arm.total(), outcome == "cut" and header.form == "base"
        counts = ", ".join(f"{plain(arm, 40)} {of_arm:,}" for arm, of_arm in by_arm.items())
        in_arms = f" ({counts})" if len(arms) > 1 else ""
        why = f", the first: {plain(reasons[outcome], 160)}" if outcome in reasons else ""
        text = f"{count:,} {outcome.replace('_', ' ')}{in_arms}: {MEANS[outcome]}{why}; "
        lines.append(OutcomeLine(text + (_NORMAL if quiet else DO[outcome]), quiet))
    return lines


COLUMNS = (
    "run", "kind", "task", "length", "arm", "asked", "scored", "mean_x100", "low", "high", "interval",
    "logprob_per_token", "baseline", "pairs", "left_out", "difference", "difference_low", "difference_high",
    "discordant", "p", "detectable", "logprob_difference", "tasks", "comparable", "unmakeable", "path",
    "header", "as_wrong_x100", *OUTCOMES, "p_holm", "verdict", "says", "logprob_says", "same_outputs", "lost", "floor",
    "form", "environments", *TRAINED,
)  # fmt: skip
TEXTS = ("run", "task", "arm", "baseline", "unmakeable", "path", "says", "form", *TRAINED)


def csv_text(views: Iterable[RunView]) -> str:
    """Return board.csv: one tidy row per (run, task, length, arm), then one per average. Same runs, same bytes.

    Scores and differences are x 100; differences are to the run's first arm, with the verdicts of `compare`.
    `as_wrong_x100` is the mean if samples without a score count as wrong. The columns named for outcomes count them.

    kind: `cell`; `mean` (over tasks, per length), `wavg_inc`, `wavg_dec`; `effective_length`, with its value in the
    column `length`; `difference` (all pairs of an arm, or of a length). `tasks` is the number of RULER's 13 tasks in an
    average.
    """
    return "".join(csv_lines(COLUMNS, TEXTS, (row for view in views for row in _csv_rows(view))))


def _csv_rows(view: RunView) -> Iterator[dict[str, str]]:
    apart = set(view.tasks) if "all tasks" in view.incomparable else set(view.tasks) & set(view.incomparable)
    of_run = {
        "run": view.name,
        "comparable": "no" if apart else "yes",
        "path": view.path,
        "header": view.fingerprint,
        "form": view.header.form,
        "environments": str(max(1, len(view.header.environments))),
        **trained_fields(view.header.trained),
    }
    contrasts = {arm: view.contrasts[arm, view.arms[0]] for arm in view.arms[1:]}
    differences = {
        (row.difference.task, row.difference.length, arm): row for arm, of in contrasts.items() for row in of.cells
    }
    for task in view.tasks:
        comparable = "no" if task in apart else "yes"
        for length in view.lengths:
            why = view.unmakeable.get((task, length), "")
            for arm in view.arms:
                place = {"kind": "cell", "task": task, "length": str(length), "arm": arm}
                row = of_run | place | {"comparable": comparable, "unmakeable": why}
                if cell := view.cells.get((task, length, arm)):
                    row |= scored_fields(cell) | {"interval": cell.method or "", "mean_x100": number(cell.mean, 100)}
                    row["as_wrong_x100"] = number(cell.as_wrong, 100)
                if difference := differences.get((task, length, arm)):
                    row |= _difference_fields(difference)
                if cell or why:
                    yield row

    for arm, average in view.averages.items():
        for length, mean in average.by_length.items():
            here = [cell for cell in view.cells.values() if (cell.length, cell.arm) == (length, arm)]
            behind = [cell for cell in here if cell.task.startswith("ruler/")]
            counts = sum((Counter(cell.outcomes) for cell in behind), Counter[Outcome]())
            lost: dict[str, int] = {name: counts[name] for name in OUTCOMES if counts[name] and name not in SCORED}
            if others := sum(cell.lost for cell in behind) - sum(lost.values()):
                lost[UNSCORED] = others
            low, high = (number(end, 100) for end in average.ends[length])
            yield of_run | {
                "kind": "mean", "arm": arm, "length": str(length), "mean_x100": f"{mean:.4f}", "low": low, "high": high,
                "interval": "pseudo-scores", "tasks": str(average.tasks[length]),
                "as_wrong_x100": f"{average.as_wrong[length]:.4f}",
                "asked": str(sum(cell.asked for cell in behind)), "scored": str(sum(cell.scored for cell in behind)),
                "lost": ", ".join(f"{count} {reason}" for reason, count in lost.items()),
            }  # fmt: skip
        of_arm = of_run | {"arm": arm, "tasks": average.coverage}
        yield of_arm | {"kind": "wavg_inc", "mean_x100": number(average.increasing)}
        yield of_arm | {"kind": "wavg_dec", "mean_x100": number(average.decreasing)}
        yield of_arm | {"kind": "effective_length", "length": average.effective or ""}

    for arm, contrast in contrasts.items():
        for pooled in (*contrast.lengths, contrast.pooled):
            length_text = "" if pooled.difference.length is None else str(pooled.difference.length)
            yield of_run | {"kind": "difference", "arm": arm, "length": length_text} | _difference_fields(pooled)


def _difference_fields(row: Row) -> dict[str, str]:
    paired = row.difference
    return compared_fields(row) | {
        "baseline": paired.baseline,
        "difference": number(paired.difference, 100),
        "difference_low": number(paired.low, 100),
        "difference_high": number(paired.high, 100),
        "discordant": str(paired.discordant),
        "logprob_difference": number(paired.logprob, digits=6),
    }
