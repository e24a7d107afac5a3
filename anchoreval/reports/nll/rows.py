"""Losses of tokens -> mean loss by position and paired differences between arms, with intervals. Pure: numpy, no torch.

Losses are nats per token; the array of one arm is [windows, length - 1], and column c is the token at position c + 1
(position 0 is the anchor, which is given). Every interval is two-sided, 95%: t over units, the variance by leaving out
one unit at a time (stats/intervals.py). With units of equal size that is the ordinary t interval.

Units are texts, if there are two or more. Tokens, blocks and windows of one text are not independent: with a single
text, its windows (or blocks of 128 tokens of its only window) are the units, and the interval is about that text alone.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Literal

from anchoreval.errors import AnchorEvalError
from anchoreval.reports.table import csv_lines, table
from anchoreval.stats.intervals import degrees, jackknife, t_quantile

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Unit = Literal["text", "window", "block"]
Span = tuple[int, int]  # first position, and the position after the last

FIRST_EDGE = 64  # first edge of doubling buckets; shorter ones hold too few tokens
BLOCK_TOKENS = 128
LEAST_BLOCKS = 4


@dataclass(frozen=True, slots=True)
class Losses:
    """All losses at one length: arm -> [windows, length - 1] nats, and the text of each window."""

    length: int
    by_arm: Mapping[str, NDArray[np.float64]]
    text_of: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Row:
    """Mean loss of `arm` in nats per token or, with a `baseline`, the mean of `arm` minus `baseline`.

    The mean is over `tokens` tokens at the positions `first` to `last`. `low` and `high` are None if there are too few
    units, or units that do not vary. `differing` is the share of tokens whose loss is not the baseline's bit for bit.
    """

    length: int
    first: int
    last: int
    arm: str
    baseline: str | None
    value: float
    low: float | None
    high: float | None
    differing: float | None
    tokens: int
    units: int
    unit: Unit


def spans(length: int, equal: int | None = None) -> list[Span]:
    """Return buckets of the positions 1 to length - 1.

    They double in width ([1, 64), [64, 128), ...), or there are `equal` many of equal width. Raise AnchorEvalError if
    there are fewer positions than buckets.
    """
    if equal is None:
        edges = [1]
        while edges[-1] < length:
            edges.append(min(length, max(FIRST_EDGE, 2 * edges[-1])))
    else:
        if equal > length - 1:
            raise AnchorEvalError(
                f"--buckets {equal}: a window of {length} tokens has losses at {length - 1} positions"
            )
        edges = [1 + (length - 1) * i // equal for i in range(equal + 1)]
    return list(itertools.pairwise(edges))


def rows_of(losses: Losses, equal: int | None = None) -> list[Row]:
    """Return rows by bucket, then over all positions: each arm's mean, and each later arm minus the first."""
    every = (1, losses.length)
    buckets = spans(losses.length, equal)
    chosen = buckets if len(buckets) == 1 else [*buckets, every]
    baseline, *others = losses.by_arm
    rows: list[Row] = []
    for span in chosen:
        rows += [_row(losses, span, arm, None) for arm in losses.by_arm]
        rows += [_row(losses, span, arm, baseline) for arm in others]
    return rows


@dataclass(frozen=True, slots=True)
class OfText:
    """The part of a row from one text: the mean of its tokens, and of their differences to the baseline."""

    length: int
    first: int
    last: int
    text: str
    arm: str
    value: float
    difference: float | None
    differing: float | None
    tokens: int


def of_texts(losses: Losses, names: Sequence[str], equal: int | None = None) -> list[OfText]:
    """Return rows by bucket, text and arm. Weighted by their tokens, they average to the rows of `rows_of`."""
    baseline, parts = next(iter(losses.by_arm)), []
    for first, end in spans(losses.length, equal):
        for text in dict.fromkeys(losses.text_of):
            windows = [i for i, window_text in enumerate(losses.text_of) if window_text == text]
            base = losses.by_arm[baseline][windows, first - 1 : end - 1]
            for arm, arm_losses in losses.by_arm.items():
                values = arm_losses[windows, first - 1 : end - 1]
                difference = differing = None
                if arm != baseline:
                    difference, differing = float((values - base).mean()), float((values != base).mean())
                value, tokens = float(values.mean()), int(values.size)
                place = (losses.length, first, end - 1)
                parts.append(OfText(*place, names[text], arm, value, difference, differing, tokens))
    return parts


def unit_of(text_of: Sequence[int]) -> Unit:
    """Return the independent unit: texts if there are two or more, else windows, else blocks of the only window."""
    if len(set(text_of)) > 1:
        return "text"
    return "window" if len(text_of) > 1 else "block"


def interval(sums: Sequence[float], counts: Sequence[int]) -> tuple[float | None, float | None]:
    """Return the 95% interval of sum(sums) / sum(counts), with one pair per independent unit.

    Return (None, None) if nothing varies or there are fewer than two units.
    """
    if len(sums) < 2:
        return None, None
    mean, error = math.fsum(sums) / math.fsum(counts), jackknife(sums, counts)
    if error <= abs(mean) * 1e-14:
        return None, None
    half = t_quantile(degrees(counts)) * error
    return mean - half, mean + half


def _row(losses: Losses, span: Span, arm: str, baseline: str | None) -> Row:
    first, end = span
    values = losses.by_arm[arm][:, first - 1 : end - 1]
    differing = None
    if baseline is not None:
        other = losses.by_arm[baseline][:, first - 1 : end - 1]
        values, differing = values - other, float((values != other).mean())
    unit = unit_of(losses.text_of)
    sums, counts = _units(values, losses.text_of, unit)
    low, high = interval(sums, counts) if unit != "block" or len(sums) >= LEAST_BLOCKS else (None, None)
    value, tokens = float(sum(sums)) / sum(counts), sum(counts)
    return Row(losses.length, first, end - 1, arm, baseline, value, low, high, differing, tokens, len(sums), unit)


def _units(values: NDArray[np.float64], text_of: Sequence[int], unit: Unit) -> tuple[list[float], list[int]]:
    """Return sum and count of the values of every unit."""
    if unit == "block":
        parts = [values[:, at : at + BLOCK_TOKENS] for at in range(0, values.shape[1], BLOCK_TOKENS)]
    elif unit == "window":
        parts = [values[i : i + 1] for i in range(len(values))]
    else:
        parts = [
            values[[i for i, text in enumerate(text_of) if text == unit_text]] for unit_text in dict.fromkeys(text_of)
        ]
    return [float(part.sum()) for part in parts], [int(part.size) for part in parts]


def csv_of(rows: Sequence[Row] | Sequence[OfText]) -> str:
    """Return the rows as CSV; numbers have nine significant digits, None is an empty field."""
    names = [field.name for field in fields(rows[0])]
    return "".join(csv_lines(names, (), ({name: _field(getattr(row, name)) for name in names} for row in rows)))


def _field(value: float | str | None) -> str | int:
    return f"{value:.9g}" if isinstance(value, float) else "" if value is None else value


HEAD = ("positions", "arm", "loss", "low", "high", "difference", "low", "high")


def table_of(rows: Sequence[Row]) -> str:
    """Return the rows as text: a line per bucket and arm, with the difference to the first arm beside the mean."""
    lines: list[str] = []
    for length in dict.fromkeys(row.length for row in rows):
        length_rows = [row for row in rows if row.length == length]
        baseline, last = length_rows[0].arm, length_rows[-1]
        units = f"{last.units} {last.unit}{'s' if last.units > 1 else ''}"
        lines.append(f"{length} tokens: loss in nats per token, difference to {baseline}, 95% intervals over {units}")
        paired = {(row.first, row.last, row.arm): row for row in length_rows if row.baseline}
        shown = [row for row in length_rows if row.baseline is None]
        lines += table([HEAD, *(_fields(row, paired.get((row.first, row.last, row.arm))) for row in shown)], ())
    return "\n".join(lines)


def _fields(row: Row, paired: Row | None) -> list[str]:
    fields = [f"{row.first}-{row.last}", row.arm, *(_short(value, ".4f") for value in (row.value, row.low, row.high))]
    if paired is None:
        return fields
    if not paired.differing:
        return [*fields, "same bits"]
    return [*fields, *(_short(value, "+.2e") for value in (paired.value, paired.low, paired.high))]


def _short(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
