"""Numbers, differences and hostile text in the form that every board shows."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping

from anchoreval.schema import NATURAL, SCORED, Outcome
from anchoreval.stats import UNSCORED, Cell, Contrast, Difference, Row

NONE = "–"  # en dash: a cell that holds no number
# C0 except tab and newline, C1, soft hyphen, zero-width and bidirectional marks, line separators, byte order
# mark, lone surrogates, interlinear annotations: they hide, reorder or break text on a page
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff\ufff9-\ufffb]"
)


def plain(value: object, limit: int = 400) -> str:
    """Return at most `limit` characters of the text, and how many were cut.

    Characters that hide or reorder text are spelled out.
    """
    text = str(value)
    shown = _UNSEEN.sub(lambda match: f"⟨U+{ord(match[0]):04X}⟩", text[:limit])
    return shown if len(text) <= limit else f"{shown} … [{len(text) - limit:,} more characters not shown]"


def percent(value: float | None, signed: bool = False) -> str:
    """Return a fraction as `95.0`, or as `+1.5`, `-1.5` or `0.0` if signed."""
    if value is None:
        return NONE
    text = f"{100 * value:+.1f}" if signed else f"{100 * value:.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text


def interval(low: float | None, high: float | None, signed: bool = False) -> str:
    """Return `[70.1, 85.2]`, or an empty string if there is no interval."""
    if low is None or high is None:
        return ""
    return f"[{percent(low, signed)}, {percent(high, signed)}]"


def p_value(p: float | None) -> str:
    """Return `p=0.031`, `p=1e-12` or `p<1e-300`."""
    if p is None:
        return ""
    if p < 1e-300:
        return "p<1e-300"
    return f"p={p:.0e}" if p < 0.001 else f"p={p:.3f}" if p < 0.1 else f"p={p:.2f}"


def p_text(p: float | None, holm: float | None) -> str:
    """Return `p=0.031`, or `p=0.031, 0.062 after Holm's correction` if the correction changes it."""
    if p is None or holm is None or holm == p:
        return p_value(p)
    return f"{p_value(p)}, {p_number(holm)} after Holm's correction"


def p_number(p: float | None) -> str:
    """Return `0.031`, `1e-12` or `<1e-300`, for a column of p values."""
    return NONE if p is None else p_value(p).removeprefix("p").removeprefix("=")


def size(row: Row) -> str:
    """Return `-63.0 [-70.1, -55.2]`, without the interval if there are too few pairs for it to mean anything."""
    paired = row.difference
    ends = "" if row.too_few else interval(paired.low, paired.high, True)
    return f"{percent(paired.difference, True)} {ends}".rstrip()


def sentence(row: Row) -> str:
    """Return `worse, -63.0 [-70.1, -55.2], 60 pairs (12 of the same output), p=1e-12`, or the detectable effect."""
    return counts(row, "" if row.difference.difference is None else size(row))


def counts(row: Row, difference: str = "") -> str:
    """Return `sentence` without the difference itself: `worse, 60 pairs, 4 left out: 3 refused, 1 failed, p=0.031`."""
    paired = row.difference
    same = "" if paired.same_outputs is None or not paired.pairs else f" ({paired.same_outputs:,} of the same output)"
    parts = [row.says, difference, f"{paired.pairs:,} pair{'s' * (paired.pairs != 1)}{same}", left_out(paired)]
    if paired.pairs and paired.discordant:
        parts.append(p_text(paired.p, row.p_holm))
    if not row.told and paired.detectable is not None:
        parts.append(f"detects {percent(paired.detectable)}")
    return ", ".join(filter(None, parts))


def left_out(difference: Difference) -> str:
    """Return `4 left out: 3 refused, 1 failed`, or an empty string if none was."""
    if not difference.left_out:
        return ""
    why = ", ".join(f"{count:,} {reason.replace('_', ' ')}" for reason, count in difference.lost.items())
    return f"{difference.left_out:,} left out" + (f": {why}" if why else "")


def tally(rows: Iterable[Row]) -> str:
    """Return how many rows say which word: `22 worse, 4 cannot tell`."""
    words = Counter(row.word for row in rows)
    return ", ".join(f"{count} {word}" for word, count in words.most_common())


def apart_words(contrast: Contrast) -> str:
    """Return how many pairs were computed on two machines or by two versions, or an empty string if none was."""
    count = contrast.computed_apart
    return f"{count:,} pairs have their two answers from different environments: last bits differ" if count else ""


def floor_words(contrast: Contrast) -> str:
    """Return the differences of the placebo over all pairs in words, or an empty string without a placebo."""
    floor = contrast.pooled.floor
    if floor is None:
        return ""
    if floor.zero:
        return "noise floor 0 here: the placebo changed no score, no output and no bit of a log-probability"
    words = f"noise floor, pooled: the placebo differs in {100 * floor.discordant:.1f}% of scores"
    words += "" if floor.outputs is None else f" and {100 * floor.outputs:.1f}% of outputs"
    words += f", its mean by {100 * floor.difference:.2f}"
    if floor.logprob_spread is not None:
        words += f", its log-probabilities by {floor.logprob_spread:.1e} nats (root mean square)"
    return words


def cell_words(cell: Cell) -> str:
    """Return `95.0 [76.4, 99.1], 20 of 20 scored, log-probability -0.123 per token`.

    If samples have no score, the mean with those as wrong is added; if samples share sources, the number of sources.
    """
    score = f"{percent(cell.mean)} {interval(cell.low, cell.high)}" if cell.scored else "no score"
    parts = [score, f"{cell.scored} of {cell.asked} scored"]
    if 0 < cell.sources < cell.scored:
        parts.append(f"from {cell.sources:,} source{'s' * (cell.sources != 1)}")
    if cell.lost:
        parts += [f"{percent(cell.as_wrong)} with the lost as wrong", lost_counts(cell.outcomes, cell.lost)]
    parts.append("no log-probability" if cell.logprob is None else f"log-probability {cell.logprob:.3f} per token")
    return ", ".join(filter(None, parts))


def lost_counts(outcomes: Mapping[Outcome, int], lost: int) -> str:
    """Return `3 refused, 1 failed`: the `lost` samples by outcome, last those that no rule could judge."""
    counts = {outcome: count for outcome, count in outcomes.items() if outcome not in SCORED}
    parts = [f"{count:,} {outcome.replace('_', ' ')}" for outcome, count in counts.items()]
    unjudged = lost - sum(counts.values())
    return ", ".join([*parts, f"{unjudged:,} {UNSCORED}"] if unjudged > 0 else parts)


def logprob_difference(row: Row) -> str:
    """Return `log-probability per token: lower, -0.120 [-0.200, -0.040], 20 pairs`, or an empty string if none."""
    paired = row.difference
    if paired.logprob is None:
        return ""
    value = f"{nats(paired.logprob)} {logprob_interval(paired)}".rstrip()
    return f"log-probability per token: {row.logprob_says}, {value}, {paired.logprob_pairs:,} pairs"


def logprob_interval(difference: Difference) -> str:
    """Return `[-0.2000, -0.0400]` in nats, or an empty string if there is no interval."""
    low, high = difference.logprob_low, difference.logprob_high
    return "" if low is None or high is None else f"[{nats(low)}, {nats(high)}]"


def nats(value: float) -> str:
    """Return `+0.0012` or `-3.1e-06`."""
    return f"{value:+.4f}" if abs(value) >= 1e-3 or not value else f"{value:+.1e}"


def tokens(length: int) -> str:
    """Return `2,048`, or `natural` for prompts that have no set length."""
    return "natural" if length == NATURAL else f"{length:,}"


def shortened(items: Iterable[str], most: int = 8) -> list[str]:
    """Return the first `most` items, and how many more there are."""
    listed = list(items)
    return listed if len(listed) <= most else [*listed[:most], f"and {len(listed) - most} more"]
