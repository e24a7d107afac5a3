"""The part of `anchoreval longbench` about LongBench v2: upstream's table (result.py), domains, unparsable answers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence

from anchoreval.reports.table import table
from anchoreval.reports.words import NONE
from anchoreval.schema import Record
from anchoreval.stats import why_lost
from anchoreval.suites.longbench_v2.scoring import UNPARSABLE

ASKED, CHOSEN = "longbench_v2", "longbench_v2_choices"  # the suites: the model writes an answer, or chooses a letter
QUESTIONS = 503
DIFFICULTIES, SIZES = ("easy", "hard"), ("short", "medium", "long")
DOMAINS = (
    "Single-Document QA", "Multi-Document QA", "Long In-context Learning", "Long-dialogue History Understanding",
    "Code Repository Understanding", "Long Structured Data Understanding",
)  # fmt: skip


def lines(records: Sequence[Record]) -> Iterator[str]:
    """Yield the tables of one arm's records: one for each task, length and prompt, or nothing if it has none."""
    tables: dict[tuple[str, int, str], list[Record]] = {}
    for record in records:
        if record.task.split("/")[0] in (ASKED, CHOSEN):
            place = (record.task, record.length, str(record.facts.get("prompting")))
            tables.setdefault(place, []).append(record)
    for (task, length, prompting), group in tables.items():
        count = f"{len(group)} of {QUESTIONS} questions"
        yield f"LongBench v2 ({task}, {prompting}, prompts cut at {length} tokens), {count}"
        yield from _table(group)


def _table(records: Sequence[Record]) -> Iterator[str]:
    """Yield rows for all questions, difficulties, sizes and domains, then notes on the answers."""
    others = sorted({str(record.facts.get("domain")) for record in records} - set(DOMAINS))
    facts = {"difficulty": DIFFICULTIES, "size": SIZES, "domain": (*DOMAINS, *others)}
    groups = [
        (name, [record for record in records if record.facts.get(fact) == name])
        for fact, names in facts.items()
        for name in names
    ]
    yield from table([_row(name, group) for name, group in [("overall", records), *groups]])
    unparsable = sum((record.why or "").startswith(UNPARSABLE) for record in records)
    unscored = sum(record.score is None for record in records)
    cut = sum(bool(record.facts.get("cut")) for record in records)
    if records[0].task.split("/")[0] == ASKED:
        yield f"  {unparsable} answers unparsable, counted as wrong ({100 * unparsable / len(records):.1f} of 100)"
    if unscored:
        yield f"* {unscored} questions without a score, counted nowhere: {by_outcome(records)}"
    yield f"  {cut} of {len(records)} prompts lost their middle; chance is 25.0"


def _row(label: str, records: Sequence[Record]) -> list[str]:
    """Return a row: the mean x 100 with upstream's one decimal (a dash if none), and the number of questions."""
    scores = [record.score for record in records if record.score is not None]
    mean = f"{100 * math.fsum(scores) / len(scores):.1f}" if scores else NONE
    star = "*" if scores and len(scores) < len(records) else ""
    return [f"  {label}", mean + star, f"of {len(scores)}"]


def by_outcome(records: Sequence[Record]) -> str:
    """Return counts of the records without a score, such as `3 refused, 1 failed`."""
    reasons = Counter(why_lost(record.outcome) for record in records if record.score is None)
    return ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in reasons.items())
