"""`anchoreval longbench`: print the averages of LongBench, the buckets of LongBench-E, the table of LongBench v2, and
notes that a reader needs.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace

from anchoreval.records.rescore import earned
from anchoreval.records.run import Run
from anchoreval.reports.table import table
from anchoreval.reports.words import NONE
from anchoreval.schema import Record
from anchoreval.stats import why_lost
from anchoreval.suites.longbench.scoring import (
    AVERAGES,
    BUCKETS,
    DEVIATIONS,
    FLAT_16,
    FLAT_21,
    LIMIT,
    SCORERS,
    SIX,
    Language,
    bucket_scores,
    category_scores,
)
from anchoreval.suites.longbench_v2.scoring import UNPARSABLE
from anchoreval.suites.ruler.scoring import task_score

V1, EXTENDED = "longbench", "longbench_e"
ASKED, CHOSEN = "longbench_v2", "longbench_v2_choices"  # the suites: the model writes an answer, or chooses a letter
QUESTIONS = 503
DIFFICULTIES, SIZES = ("easy", "hard"), ("short", "medium", "long")
DOMAINS = (
    "Single-Document QA", "Multi-Document QA", "Long In-context Learning", "Long-dialogue History Understanding",
    "Code Repository Understanding", "Long Structured Data Understanding",
)  # fmt: skip
LANGUAGES: tuple[Language, ...] = ("en", "zh")
LABELS = {
    "six categories, English": "longbench_six_en",
    "six categories, Chinese": "longbench_six_zh",
    f"flat over {len(FLAT_16)}, English and code": "longbench_flat_16",
    f"flat over {len(FLAT_21)}": "longbench_flat_21",
}


def deviating(run: Run, name: str) -> tuple[Run, int]:
    """Return the run with its answers scored by a named deviation, and the number of scores that it changed."""
    instead = DEVIATIONS[name]
    scorers = {task: SCORERS[instead[scorer]] for task, scorer in run.header.scorers.items() if scorer in instead}
    records = [
        replace(record, score=score.value, why=score.why)
        if record.task in scorers and (score := earned(record, scorers, run.path))
        else record
        for record in run.records
    ]
    changed = sum(new.score != old.score for new, old in zip(records, run.records, strict=True))
    return replace(run, records=tuple(records)), changed


def report(run: Run, deviation: str | None = None) -> str:
    """Return the text for one run, arm by arm, with scores x 100. An average that lacks a data set is a dash."""
    notes = []
    if deviation:
        run, changed = deviating(run, deviation)
        notes = [f"scored again with the deviation {deviation}, which changed {changed} scores: not those of the cards"]
    arms = dict.fromkeys(record.arm for record in run.records)
    lines = [f"{run.name} of {run.model}"]
    if run.header.sources.get("context"):
        lines.append("the context was left out of every prompt (--no-context)")
    lines += [*([f"changed: {run.changed}"] if run.changed else []), *notes]
    if run.records and not any(record.task.startswith(V1) for record in run.records):
        return f"{lines[0]}: no task of the suites {V1}, {EXTENDED} and longbench_v2"
    for arm in arms:
        lines += ["", f"arm {arm}", *_arm([record for record in run.records if record.arm == arm])]
    return "\n".join(lines)


def _arm(records: Sequence[Record]) -> Iterator[str]:
    by_name = _by_name(records, V1)
    v1 = {name: task_score(record.score for record in name_records) for name, name_records in by_name.items()}
    short = {name for name, name_records in by_name.items() if any(record.score is None for record in name_records)}
    if v1:
        present = len(v1.keys() & set(FLAT_21))
        yield f"LongBench, {present} of {len(FLAT_21)} data sets"
        by_address = {f"{V1}/{name}": score for name, score in v1.items()}
        rows = [
            [
                label,
                _number(
                    AVERAGES[name].of(by_address), short & {task.partition("/")[2] for task in AVERAGES[name].tasks}
                ),
            ]
            for label, name in LABELS.items()
        ]
        rows += [
            [name, *(_number(category_scores(v1, of)[name], short & set(SIX[of][name])) for of in LANGUAGES)]
            for name in SIX["en"]
        ]
        yield from table([[f"  {row[0]}", *row[1:]] for row in rows])
    extended = _by_name(records, EXTENDED)
    if extended:
        yield from table([["LongBench-E, by words", *BUCKETS], *map(_bucket_row, extended.items())])
    if v1 or extended:
        yield from _notes([record for record in records if record.task.split("/")[0] in (V1, EXTENDED)])
    yield from lines_v2(records)


def _notes(records: Sequence[Record]) -> Iterator[str]:
    """Yield counts of what makes a score differ from one computed elsewhere."""
    cut = sum(bool(record.facts.get("cut")) for record in records)
    zeroed = sum((record.why or "").startswith(LIMIT) for record in records)
    yield f"{cut} of {len(records)} prompts lost their middle; upstream's recursion limit lowers {zeroed} scores there"
    if lost := sum(record.score is None for record in records):
        why = by_outcome(records)
        yield f"* {lost} of {len(records)} answers have no score and are left out: {why}"


def _by_name(records: Sequence[Record], suite: str) -> dict[str, list[Record]]:
    by_name: dict[str, list[Record]] = {}
    for record in records:
        record_suite, _, name = record.task.partition("/")
        if record_suite == suite:
            by_name.setdefault(name, []).append(record)
    return by_name


def _bucket_row(of: tuple[str, list[Record]]) -> list[str]:
    name, records = of
    means = bucket_scores((str(record.facts.get("bucket")), record.score) for record in records)
    lost = {str(record.facts.get("bucket")) for record in records if record.score is None}
    return [f"  {name}", *(_number(means[bucket], lost & {bucket}) for bucket in BUCKETS)]


def _number(value: float | None, short: Collection[str]) -> str:
    """Return the value, with a star if data sets behind it have answers without a score."""
    return NONE if value is None else f"{value:.2f}{'*' if short else ''}"


def lines_v2(records: Sequence[Record]) -> Iterator[str]:
    """Yield the tables of one arm's records: one for each task, length and prompt, or nothing if it has none."""
    tables: dict[tuple[str, int, str], list[Record]] = {}
    for record in records:
        if record.task.split("/")[0] in (ASKED, CHOSEN):
            place = (record.task, record.length, str(record.facts.get("prompting")))
            tables.setdefault(place, []).append(record)
    for (task, length, prompting), group in tables.items():
        count = f"{len(group)} of {QUESTIONS} questions"
        yield f"LongBench v2 ({task}, {prompting}, prompts cut at {length} tokens), {count}"
        yield from _table_v2(group)


def _table_v2(records: Sequence[Record]) -> Iterator[str]:
    """Yield rows for all questions, difficulties, sizes and domains, then notes on the answers."""
    others = sorted({str(record.facts.get("domain")) for record in records} - set(DOMAINS))
    facts = {"difficulty": DIFFICULTIES, "size": SIZES, "domain": (*DOMAINS, *others)}
    groups = [
        (name, [record for record in records if record.facts.get(fact) == name])
        for fact, names in facts.items()
        for name in names
    ]
    yield from table([_row_v2(name, group) for name, group in [("overall", records), *groups]])
    unparsable = sum((record.why or "").startswith(UNPARSABLE) for record in records)
    unscored = sum(record.score is None for record in records)
    cut = sum(bool(record.facts.get("cut")) for record in records)
    if records[0].task.split("/")[0] == ASKED:
        yield f"  {unparsable} answers unparsable, counted as wrong ({100 * unparsable / len(records):.1f} of 100)"
    if unscored:
        yield f"* {unscored} questions without a score, counted nowhere: {by_outcome(records)}"
    yield f"  {cut} of {len(records)} prompts lost their middle; chance is 25.0"


def _row_v2(label: str, records: Sequence[Record]) -> list[str]:
    """Return a row: the mean x 100 with upstream's one decimal (a dash if none), and the number of questions."""
    scores = [record.score for record in records if record.score is not None]
    mean = f"{100 * math.fsum(scores) / len(scores):.1f}" if scores else NONE
    star = "*" if scores and len(scores) < len(records) else ""
    return [f"  {label}", mean + star, f"of {len(scores)}"]


def by_outcome(records: Sequence[Record]) -> str:
    """Return counts of the records without a score, such as `3 refused, 1 failed`."""
    reasons = Counter(why_lost(record.outcome) for record in records if record.score is None)
    return ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in reasons.items())
