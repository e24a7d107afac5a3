"""A contrast as a table on stdout and as CSV rows. Scores in points of 100, log-probabilities in nats per token."""

from __future__ import annotations

from collections.abc import Sequence

from anchoreval.reports.table import csv_lines, fields_of, table
from anchoreval.reports.words import NONE as EMPTY
from anchoreval.reports.words import (
    apart_words,
    floor_words,
    interval,
    left_out,
    logprob_interval,
    nats,
    p_number,
    percent,
    plain,
    tokens,
)
from anchoreval.schema import Json
from anchoreval.stats import ALONE, Contrast, Row

NONE = "-"
HEAD = (
    "task", "length", "pairs", "same output", "baseline", "arm", "difference", "95% interval", "p", "Holm", "detects",
    "verdict",
)  # fmt: skip
SHORT = 12  # most (task, length) named for pairs that are left out
LOGPROBS = ("log-prob", "95% interval", "p", "Holm", "verdict")


def table_of(contrast: Contrast, width: int | None = None) -> str:
    """Return the contrast as text: a title, a row for each task and length, each length and all; then the noise floor.

    Scores and log-probabilities are side by side, or one below the other if that would be wider than `width` columns.
    """
    lengths = contrast.lengths if len(contrast.lengths) > 1 else ()
    shown = [*(row for row in contrast.cells if row.difference.pairs), *lengths, contrast.pooled]
    scores = [[*HEAD], *(_fields(row) for row in shown)]
    logprobs = [[*LOGPROBS], *(_logprob_fields(row) for row in shown)]
    lines = _block([[*one, *other] for one, other in zip(scores, logprobs, strict=True)])
    if width is not None and len(lines[1]) > width:
        lines = _block(scores)
        lines += ["", *_block([[*one[:2], *other] for one, other in zip(scores, logprobs, strict=True)])]
    title = [f"{plain(contrast.arm, 60)} minus {plain(contrast.baseline, 60)}"]
    title += [f"NOT THE SAME PROMPTS: {plain(reason, 200)}" for reason in contrast.prompts]
    return "\n".join([*title, *lines, *_notes(contrast)])


def _block(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows in columns, words aligned left and numbers right, with a rule below the first row."""
    return table(rows, [i for i, name in enumerate(rows[0]) if name in ("task", "verdict")], rule=True)


def _fields(row: Row) -> list[str]:
    paired = row.difference
    task = plain(paired.task, 60) if paired.task else "all" if paired.length is None else "all tasks"
    return [
        task,
        "all" if paired.length is None else tokens(paired.length).replace(",", ""),
        f"{paired.pairs}{'*' if paired.left_out else ''}",
        NONE if paired.same_outputs is None else str(paired.same_outputs),
        _dash(percent(paired.mean_baseline)),
        _dash(percent(paired.mean_arm)),
        _dash(percent(paired.difference, True)),
        NONE if row.too_few else interval(paired.low, paired.high, True) or NONE,
        _dash(p_number(paired.p)),
        _dash(p_number(row.p_holm)),
        _dash(percent(paired.detectable)),
        row.says,
    ]


def _logprob_fields(row: Row) -> list[str]:
    paired = row.difference
    if paired.logprob is None:
        return [NONE] * 4 + [""]
    numbers = [nats(paired.logprob), logprob_interval(paired) or NONE, _dash(p_number(paired.logprob_p))]
    return [*numbers, _dash(p_number(row.logprob_p_holm)), row.logprob_says]


def _dash(text: str) -> str:
    """Return the text, or an ASCII dash if it holds no number."""
    return NONE if text == EMPTY else text


def _notes(contrast: Contrast) -> list[str]:
    notes = list(contrast.notes)
    if contrast.pooled.difference.left_out:
        notes.append(f"* {left_out(contrast.pooled.difference)}")
        # Of several tasks, those that lost pairs for lack of a score are named.
        short = [row.difference for row in contrast.cells if row.difference.lost.keys() - {ALONE}]
        for paired in short[:SHORT] if len(contrast.cells) > 1 else []:
            notes.append(f"  {plain(paired.task, 60)} at {tokens(paired.length or 0)}: {left_out(paired)}")
    notes += filter(None, [floor_words(contrast), apart_words(contrast)])
    notes.append(
        f"margin {100 * contrast.margin:g} points; Holm over the tasks and lengths, and over the lengths; "
        "detects: the smallest effect seen with 80% power"
    )
    return notes


def rows_of(contrast: Contrast) -> list[dict[str, Json]]:
    """Return one mapping per row, with the names of compare.csv."""
    return [fields_of(contrast, row) for row in contrast.rows]


def csv_of(contrasts: Sequence[Contrast]) -> str:
    """Return all rows of all contrasts as CSV; a missing value is an empty field."""
    rows = [row for contrast in contrasts for row in rows_of(contrast)]
    return "".join(csv_lines(list(rows[0]), ("arm", "baseline", "task", "says", "logprob_says", "prompts"), rows))
