"""A row of a contrast as fields for files: the names of compare.csv, and of whatever else holds comparisons."""

from __future__ import annotations

from anchoreval.schema import Json
from anchoreval.stats import Contrast, Row


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
        "lost": ", ".join(f"{count} {reason}" for reason, count in one.lost.items()),
        "same_outputs": one.same_outputs,
        "sources": one.clusters,
    }
    return {**place, **counts, "margin": _times(contrast.margin), **scores, **logprobs, **floors}


def _times(value: float | None) -> float | None:
    return None if value is None else round(100 * value, 9)
