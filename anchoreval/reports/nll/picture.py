"""nll.svg: loss by position and its change under each arm, with intervals and the noise floor, as a file of its own."""

from __future__ import annotations

import math
from collections.abc import Sequence

from anchoreval.reports.nll.rows import Row
from anchoreval.reports.plots import Axis, Curve, Drawing, Floor, Point, both_signs, chart, even, sheet
from anchoreval.schema import original_of

APART = 2**0.07  # factor between the x of neighbouring curves, so that their intervals do not overlap
MOST_TICKS = 7


def picture(model: str, dtype: str, rows: Sequence[Row]) -> str:
    """Return the text of nll.svg: two charts for every length, the loss and the differences to the first arm."""
    arms = list(dict.fromkeys(row.arm for row in rows))
    shown = [arm for arm in arms if original_of(arm) is None]
    drawn: list[Drawing] = []
    for length in dict.fromkeys(row.length for row in rows):
        length_rows = [row for row in rows if row.length == length and not _whole(row, rows)]
        drawn += [_losses(length_rows, shown, length), _differences(length_rows, shown, length)]
    head = f"{model}, {dtype}: loss by position, and what an arm changes in it"
    return sheet(head, drawn, shown, _notes(rows, arms[0]))


def _whole(row: Row, rows: Sequence[Row]) -> bool:
    """Return whether a row covers all positions while other rows cover parts of them."""
    firsts = {other.first for other in rows if other.length == row.length}
    return len(firsts) > 1 and (row.first, row.last) == (1, row.length - 1)


def _losses(rows: Sequence[Row], arms: Sequence[str], length: int) -> Drawing:
    curves = [
        Curve(arm, at, tuple(_point(row, 0, at == 0) for row in rows if row.arm == arm and row.baseline is None))
        for at, arm in enumerate(arms)
    ]
    title, note = f"Loss, {length:,} tokens", "y: mean loss in nats per token."
    return Drawing(title, note, chart(curves, _axis(rows), even(curves), title))


def _differences(rows: Sequence[Row], arms: Sequence[str], length: int) -> Drawing:
    paired = [row for row in rows if row.baseline is not None]
    curves = [
        Curve(arm, at, tuple(_point(row, at, True) for row in paired if row.arm == arm))
        for at, arm in enumerate(arms)
        if at
    ]
    size = floor_of(paired)
    scale, axis = both_signs(curves, size), _axis(rows)
    area = Floor(tuple((x, -size, size) for x in axis.ends or ())) if size else None
    title = f"Loss minus that of {arms[0]}, {length:,} tokens"
    note = "y: nats per token, logarithmic away from 0; above 0 the arm predicts worse."
    return Drawing(title, note, chart(curves, axis, scale, title, area))


def floor_of(rows: Sequence[Row]) -> float:
    """Return the largest difference that the placebos show, their intervals included."""
    placebos = [row for row in rows if row.baseline is not None and original_of(row.arm) is not None]
    ends = [end for row in placebos for end in (row.value, row.low, row.high) if end is not None]
    return max(map(abs, ends), default=0.0)


def _notes(rows: Sequence[Row], baseline: str) -> list[str]:
    last = rows[-1]
    units = f"{last.units} {last.unit}{'s' if last.units > 1 else ''}"
    placebos = list(dict.fromkeys(row.arm for row in rows if original_of(row.arm) is not None))
    if not placebos:
        floor = "No placebo was measured, so no floor is drawn."
    elif size := floor_of([row for row in rows if not _whole(row, rows)]):
        floor = f"Grey: the floor, all that {', '.join(placebos)} shows, within ±{size:.1e}."
    else:
        floor = f"The floor is 0: {', '.join(placebos)} gave the same bits."
    bars = f"Vertical bars: 95% interval over {units}; of losses that of {baseline} alone. "
    return [bars + "Hollow: the interval of a difference holds 0.", floor]


def _axis(rows: Sequence[Row]) -> Axis:
    edges = sorted({row.first for row in rows if row.first > 1} | {rows[0].length})
    ticks = edges[:: max(1, -(-len(edges) // MOST_TICKS))]
    ends = (min(map(_middle, rows)) / APART, float(rows[0].length))
    return Axis("position in the text, in tokens", tuple((edge, _short(edge)) for edge in ticks), ends=ends)


def _short(edge: int) -> str:
    return f"{edge // 1024}k" if edge >= 1024 and edge % 1024 == 0 else str(edge)


def _point(row: Row, aside: int, bar: bool) -> Point:
    x = _middle(row) * APART**aside
    return (x, row.value, row.low, row.high) if bar and row.low is not None and row.high is not None else (x, row.value)


def _middle(row: Row) -> float:
    """Return the geometric middle of a bucket."""
    return math.sqrt(row.first * row.last)
