"""Numbers, differences and hostile text in the form in which every board shows them."""

from __future__ import annotations

import re
from collections.abc import Iterable

from anchoreval.schema import NATURAL
from anchoreval.stats import Cell, Difference

NONE = "–"  # en dash: a cell that holds no number
# C0 but tab and newline, C1, soft hyphen, zero-width and bidirectional marks, line separators, byte order
# mark, lone surrogates, interlinear annotations: what hides, reorders or breaks text on a page
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff\ufff9-\ufffb]"
)


def plain(value: object, limit: int = 400) -> str:
    """At most `limit` characters of the text, hiding and reordering marks spelled out, and what was cut."""
    text = str(value)
    shown = _UNSEEN.sub(lambda match: f"⟨U+{ord(match[0]):04X}⟩", text[:limit])
    return shown if len(text) <= limit else f"{shown} … [{len(text) - limit:,} more characters not shown]"


def percent(value: float | None, signed: bool = False) -> str:
    """A fraction as `95.0`, or `+1.5` and `-1.5` and `0.0` when signed."""
    if value is None:
        return NONE
    text = f"{100 * value:+.1f}" if signed else f"{100 * value:.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text


def interval(low: float | None, high: float | None, signed: bool = False) -> str:
    """`[70.1, 85.2]`, or nothing where there is no interval."""
    if low is None or high is None:
        return ""
    return f"[{percent(low, signed)}, {percent(high, signed)}]"


def p_value(p: float | None) -> str:
    """`p=0.031`, `p=1e-12`, `p<1e-300`."""
    if p is None:
        return ""
    if p < 1e-300:
        return "p<1e-300"
    return f"p={p:.0e}" if p < 0.001 else f"p={p:.3f}" if p < 0.1 else f"p={p:.2f}"


def verdict(difference: Difference) -> str:
    """`worse` or `better` where the interval excludes zero and p < 0.05, else `no difference shown`."""
    low, high, p = difference.low, difference.high, difference.p
    if low is None or high is None or p is None:
        return "nothing to compare"
    if p < 0.05 and (high < 0 or low > 0):
        return "worse" if high < 0 else "better"
    return "identical scores" if difference.discordant == 0 else "no difference shown"


def sentence(difference: Difference) -> str:
    """`worse, -63.0 [-70.1, -55.2], n=60 pairs, p=1e-12`, or what could have been seen."""
    if difference.difference is None:
        return counts(difference)
    size = f"{percent(difference.difference, True)} {interval(difference.low, difference.high, True)}"
    said, rest = counts(difference).split(", ", 1)
    return f"{said}, {size}, {rest}"


def counts(difference: Difference) -> str:
    """`sentence` without the difference itself."""
    count = f"n={difference.pairs} pairs{_left_out(difference)}"
    said = verdict(difference)
    if difference.difference is None:
        return f"{said}, {count}"
    text = f"{said}, {count}, {p_value(difference.p)}"
    return text if said in ("worse", "better") else f"{text}; {_detectable(difference)}"


def cell_words(cell: Cell) -> str:
    """`95.0 [76.4, 99.1], 20 of 20 scored, log-probability -0.123 per token`."""
    score = f"{percent(cell.mean)} {interval(cell.low, cell.high)}" if cell.scored else "no score"
    return f"{score}, {cell.scored} of {cell.asked} scored, {logprob(cell.logprob)}"


def logprob(value: float | None) -> str:
    """`log-probability -0.123 per token`."""
    return "no log-probability" if value is None else f"log-probability {value:.3f} per token"


def logprob_difference(difference: Difference) -> str:
    """`log-probability per token -0.120 [-0.200, -0.040], n=20`; nothing where there is none."""
    if difference.logprob is None:
        return ""
    low, high = difference.logprob_low, difference.logprob_high
    value = f"{difference.logprob:+.4f}"
    if low is not None and high is not None:
        value += f" [{low:+.4f}, {high:+.4f}]"
    elif difference.logprob == 0 and difference.logprob_pairs > 1:
        value = "identical in all"
    return f"log-probability per token {value}, n={difference.logprob_pairs}"


def tokens(length: int) -> str:
    """`2,048`; `natural` where prompts are as long as they are."""
    return "natural" if length == NATURAL else f"{length:,}"


def column(length: int) -> str:
    """`2048`, or `natural`: the head of a column in a text table."""
    return tokens(length).replace(",", "")


def shortened(items: Iterable[str], most: int = 8) -> list[str]:
    """The first `most` items, and how many more there are."""
    listed = list(items)
    return listed if len(listed) <= most else [*listed[:most], f"and {len(listed) - most} more"]


def _left_out(difference: Difference) -> str:
    return f" ({difference.left_out} left out)" if difference.left_out else ""


def _detectable(difference: Difference) -> str:
    if difference.detectable is None:
        return "too few pairs to show any difference"
    return f"smallest detectable {percent(difference.detectable)}"
