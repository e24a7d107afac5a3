"""Rows of contrasts and cells as fields for files: the names of compare.csv, and of whatever else holds comparisons."""

from __future__ import annotations

from anchoreval.reports.words import plain
from anchoreval.schema import OUTCOMES, Json
from anchoreval.stats import Asked, Contrast, Row


def fields_of(contrast: Contrast, row: Row) -> dict[str, Json]:
    """One mapping; scores in points of 100, log-probabilities in nats per token. `verdict` is `says` in short."""
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
        "verdict": row.word,
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
        "floor_outputs": _times(floor.outputs if floor else None),
        "prompts": "; ".join(contrast.prompts),
    }
    place = {"arm": contrast.arm, "baseline": contrast.baseline, "scope": scope, "task": one.task, "length": one.length}
    counts = {
        "pairs": one.pairs,
        "left_out": one.left_out,
        "lost": _reasons(row),
        "same_outputs": one.same_outputs,
        "sources": one.clusters,
    }
    return {**place, **counts, "margin": _times(contrast.margin), **scores, **logprobs, **floors}


def _times(value: float | None) -> float | None:
    return None if value is None else round(100 * value, 9)


def _reasons(row: Row) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in row.difference.lost.items())


def compared(row: Row) -> dict[str, str]:
    """What boards' CSV files say of a difference beside its size."""
    one = row.difference
    return {
        "pairs": str(one.pairs),
        "left_out": str(one.left_out),
        "p": "" if one.p is None else f"{one.p:.6g}",
        "detectable": number(one.detectable, 100),
        "p_holm": "" if row.p_holm is None else f"{row.p_holm:.6g}",
        "verdict": row.word,
        "says": row.says,
        "logprob_says": row.logprob_says,
        "same_outputs": "" if one.same_outputs is None else str(one.same_outputs),
        "lost": _reasons(row),
        "floor": number(row.floor.difference if row.floor else None, 100),
    }


def scored(cell: Asked) -> dict[str, str]:
    """What they say of a mean beside its size."""
    return {
        "asked": str(cell.asked),
        "scored": str(cell.scored),
        "low": number(cell.low, 100),
        "high": number(cell.high, 100),
        "logprob_per_token": number(cell.logprob, digits=6),
        **{outcome: str(cell.outcomes.get(outcome, 0)) for outcome in OUTCOMES},
    }


def number(value: float | None, factor: float = 1.0, digits: int = 4) -> str:
    """The value times a factor; nothing where there is none."""
    return "" if value is None else f"{factor * value + 0.0:.{digits}f}"


def inert(value: str, limit: int = 400) -> str:
    """The text as `plain`, which cuts it at `limit`; what a spreadsheet would run gets a leading `'`."""
    text = plain(value, limit)
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text
