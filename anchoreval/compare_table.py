"""A contrast as a table on stdout and as CSV rows. Scores in points of 100, log-probabilities in nats per token."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from anchoreval.board.words import column, plain
from anchoreval.compare_runs import Contrast, Row
from anchoreval.schema import Json

NONE = "-"
HEAD = ("task", "length", "pairs", "baseline", "arm", "difference", "95% interval", "p", "Holm", "detects", "verdict")
LOGPROBS = ("log-prob", "95% interval", "p", "Holm", "verdict")


def table_of(contrast: Contrast, width: int | None = None) -> str:
    """The contrast as text: a title, a row for each task and length, each length and all; then the noise floor.

    Scores and log-probabilities stand side by side, or one below the other where that is wider than `width` columns.
    """
    lengths = contrast.lengths if len(contrast.lengths) > 1 else ()
    shown = [*(row for row in contrast.cells if row.difference.pairs), *lengths, contrast.pooled]
    scores = [[*HEAD], *(_fields(row) for row in shown)]
    logprobs = [[*LOGPROBS], *(_logprob_fields(row) for row in shown)]
    lines = _block([[*one, *other] for one, other in zip(scores, logprobs, strict=True)])
    if width is not None and len(lines[1]) > width:
        lines = _block(scores)
        lines += ["", *_block([[*one[:2], *other] for one, other in zip(scores, logprobs, strict=True)])]
    title = f"{plain(contrast.arm, 60)} minus {plain(contrast.baseline, 60)}"
    return "\n".join([title, *lines, *_notes(contrast)])


def _block(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows in columns, words to the left and numbers to the right, a rule below the first row."""
    words = [name in {"task", "verdict"} for name in rows[0]]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(
            f"{text:<{w}}" if word else f"{text:>{w}}" for text, w, word in zip(row, widths, words, strict=True)
        ).rstrip()
        for row in rows
    ]
    return [lines[0], "-" * max(map(len, lines)), *lines[1:]]


def _fields(row: Row) -> list[str]:
    one = row.difference
    task = plain(one.task, 60) if one.task else "all" if one.length is None else "all tasks"
    numbers = [
        "all" if one.length is None else column(one.length),
        str(one.pairs),
        _points(one.mean_baseline),
        _points(one.mean_arm),
    ]
    numbers += [_signed(one.difference), _interval(one.low, one.high), _p(one.p), _p(row.p_holm)]
    return [task, *numbers, _points(one.detectable), row.says]


def _logprob_fields(row: Row) -> list[str]:
    one = row.difference
    if one.logprob is None:
        return [NONE] * 4 + [""]
    interval = NONE
    if one.logprob_low is not None and one.logprob_high is not None:
        interval = f"[{_nats(one.logprob_low)}, {_nats(one.logprob_high)}]"
    return [_nats(one.logprob), interval, _p(one.logprob_p), _p(row.logprob_p_holm), row.logprob_says]


def _notes(contrast: Contrast) -> list[str]:
    floor, notes = contrast.pooled.floor, list(contrast.notes)
    if floor is not None:
        said = f"noise floor, pooled: the placebo differs in {100 * floor.discordant:.1f}% of samples"
        said += f", its mean by {100 * floor.difference:.2f}"
        if floor.logprob_spread is not None:
            said += f", its log-probabilities by {floor.logprob_spread:.1e} nats (root mean square)"
        notes.append(said)
    notes.append(
        f"margin {100 * contrast.margin:g} points; Holm over the tasks and lengths, and over the lengths; "
        "detects: the smallest effect seen with 80% power"
    )
    return notes


def rows_of(contrast: Contrast) -> list[dict[str, Json]]:
    """One mapping per row, names as in compare.csv."""
    return [_mapping(contrast, row) for row in contrast.rows]


def csv_of(contrasts: Sequence[Contrast]) -> str:
    """All rows of all contrasts; empty where there is no value."""
    rows = [row for contrast in contrasts for row in rows_of(contrast)]
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def _mapping(contrast: Contrast, row: Row) -> dict[str, Json]:
    one, floor = row.difference, row.floor
    scope = "cell" if one.task else "pooled" if one.length is None else "length"
    scores = {
        "mean_arm": _times(one.mean_arm),
        "mean_baseline": _times(one.mean_baseline),
        "difference": _times(one.difference),
        "low": _times(one.low),
        "high": _times(one.high),
        "interval": one.method,
        "discordant": one.discordant,
        "p": one.p,
        "p_holm": row.p_holm,
        "detectable": _times(one.detectable),
        "verdict": row.verdict.word,
        "within_margin": row.verdict.within,
        "needs": row.verdict.needs,
        "says": row.says,
    }
    logprobs = {
        "logprob_pairs": one.logprob_pairs,
        "logprob": one.logprob,
        "logprob_low": one.logprob_low,
        "logprob_high": one.logprob_high,
        "logprob_p": one.logprob_p,
        "logprob_p_holm": row.logprob_p_holm,
        "logprob_spread": one.logprob_spread,
        "logprob_says": row.logprob_says,
    }
    floors = {
        "floor_discordant": _times(floor.discordant if floor else None),
        "floor_difference": _times(floor.difference if floor else None),
        "floor_logprob": floor.logprob if floor else None,
        "floor_logprob_spread": floor.logprob_spread if floor else None,
    }
    place = {"arm": contrast.arm, "baseline": contrast.baseline, "scope": scope, "task": one.task, "length": one.length}
    counts = {"pairs": one.pairs, "left_out": one.left_out, "sources": one.clusters}
    return {**place, **counts, "margin": _times(contrast.margin), **scores, **logprobs, **floors}


def _times(value: float | None) -> float | None:
    return None if value is None else round(100 * value, 9)


def _points(value: float | None) -> str:
    return NONE if value is None else f"{100 * value:.1f}"


def _signed(value: float | None) -> str:
    return NONE if value is None else f"{100 * value:+.1f}"


def _interval(low: float | None, high: float | None) -> str:
    return NONE if low is None or high is None else f"[{_signed(low)}, {_signed(high)}]"


def _nats(value: float) -> str:
    return f"{value:+.4f}" if abs(value) >= 1e-3 or not value else f"{value:+.1e}"


def _p(value: float | None) -> str:
    return NONE if value is None else "<0.0001" if value < 1e-4 else f"{value:.4f}"
