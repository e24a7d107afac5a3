"""probe.html: one self-contained page without scripts, with the paper's three panels and a summary in words."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from anchoreval.diagnostics.probe.reading import (
    MODE_WORDS,
    beyond,
    dtype_words,
    lengths,
    levels,
    main_level,
    number,
    pair,
    reading,
    settings,
    spread,
    total,
)
from anchoreval.diagnostics.probe.sheet import Mode, Row, Study
from anchoreval.reports.page import CURVES, render
from anchoreval.reports.plots import Axis, Curve, Drawing, Floor, Point, chart, decades, sheet, swatch

TEMPLATES = Path(__file__).parent / "templates"
TOP_HEADS = 12
#: The first of these levels that was measured is the floor: the differences that remain if RoPE rounds in float32 only.
FLOORS = ("fp32-qk", "fp32")


@dataclass(frozen=True, slots=True)
class Panel:
    """A row of charts, one per setting, on one y axis."""

    title: str
    note: str
    charts: tuple[tuple[str, str], ...]


def page(study: Study) -> str:
    """Return the text of probe.html."""
    parts = render(
        TEMPLATES / "probe.html",
        "probe",
        study.model,
        [CURVES, TEMPLATES / "probe.css"],
        facts=_facts(study),
        reading=reading(study),
        legend=[(name, swatch(at)) for at, name in enumerate(levels(study))],
        floor=floor_words(study),
        panels=[panel(study) for panel in (_shift_panel, _score_panel, _weight_panel, _length_panel, _oracle_panel)],
        table=_table(study),
        heads=_heads(study),
        level=main_level(study),
        length=f"{lengths(study)[-1]:,}",
    )
    return "".join(parts)


def picture(study: Study) -> str:
    """Return the text of probe.svg: the paper's three panels of the model as stored, in one stand-alone drawing."""
    dtype, mode = settings(study)[0]
    panels = [panel(study) for panel in (_shift_panel, _weight_panel, _length_panel)]
    drawings = [Drawing(panel.title, panel.note, panel.charts[0][1]) for panel in panels]
    words = _words(study, dtype, mode)
    head = f"{study.model}: what a shift of all positions does to attention, by RoPE level ({words})"
    counts = {row.setting.length: row.setting.texts for row in study.totals()}
    texts = ", ".join(f"{counts[length]} at {length:,}" for length in lengths(study))
    notes = [f"Vertical bars: 95% interval over the texts; tokens and texts: {texts}.", floor_words(study)]
    return sheet(head, drawings, levels(study), [*filter(None, notes)])


def floor_words(study: Study) -> str:
    """Return in words what the grey area of a chart is, or "" if no level can be the floor."""
    level = _floor_level(study)
    return f"Grey: at or below the floor {level}, where RoPE rounds in float32 alone." if level else ""


def _floor_level(study: Study) -> str | None:
    return next((level for level in FLOORS if level in levels(study)), None)


def _words(study: Study, dtype: str, mode: Mode) -> str:
    return f"{dtype_words(study, dtype)}, {MODE_WORDS[mode]}"


def _panel(
    study: Study, title: str, note: str, axis: Axis, points: Callable[[str, Mode, str], Iterable[Point]]
) -> Panel:
    """Return a chart per setting with a curve per level; `points` takes (dtype, mode, level)."""
    names, floor = levels(study), _floor_level(study)
    settings_curves = [
        (_words(study, dtype, mode), [Curve(n, at, tuple(points(dtype, mode, n))) for at, n in enumerate(names)])
        for dtype, mode in settings(study)
    ]
    scale = decades([curve for _, curves in settings_curves for curve in curves])

    def draw(curves: list[Curve], name: str) -> str:
        below = next((curve.points for curve in curves if curve.name == floor), ())
        area = Floor(tuple((x, None, y) for x, y, *_ in below if y > 0)) if below else None
        return chart(curves, axis, scale, f"{title}: {name}", area)

    return Panel(title, note, tuple((name, draw(curves, name)) for name, curves in settings_curves))


def _shift_panel(study: Study) -> Panel:
    shift, other = pair(study)
    swept = [row.setting for row in study.rows if row.setting.against == "shift" and row.setting.shift != shift]
    length = swept[0].length if swept else lengths(study)[-1]

    def points(dtype: str, mode: Mode, level: str) -> list[Point]:
        rows = study.totals(dtype=dtype, mode=mode, level=level, against="shift", length=length, other=other)
        return sorted(_point(row.setting.shift, row, "D") for row in rows)

    starts = sorted({s.shift for s in swept} | {shift})
    ticks = [at for at in (0, 8, other, 100, 1000) if starts[0] <= at <= starts[-1]]
    axis = Axis(f"first shift (second: {other})", tuple((at, str(at)) for at in ticks), from_zero=True)
    note = f"{length:,} tokens. y: D, Equation 4 of the paper, a sum of weight changes over layers and heads."
    return _panel(study, "D against the shift", note, axis, points)


def _key_panel(study: Study, measure: str, title: str, note: str) -> Panel:
    (shift, other), longest = pair(study), lengths(study)[-1]

    def points(dtype: str, mode: Mode, level: str) -> list[Point]:
        rows = study.keys(
            dtype=dtype, mode=mode, level=level, against="shift", length=longest, shift=shift, other=other
        )
        return [_point(_middle(row.key), row, measure) for row in rows]

    at = [0, *(4**power for power in range(1, 12) if 4**power < longest)]
    axis = Axis("key", tuple((key, _short(key)) for key in at[:1] + at[1:][-7:]), from_zero=True)
    note = f"{longest:,} tokens, shift {shift} against {other}. {note} Keys from 4 on are means of bins that double."
    return _panel(study, title, note, axis, points)


def _score_panel(study: Study) -> Panel:
    note = "y: change of the score in logits, mean over queries, summed over layers and heads."
    return _key_panel(study, "key_logit", "Difference per key, before softmax", note)


def _weight_panel(study: Study) -> Panel:
    note = "y: change of the key's weight, Equation 4 without its sum over keys."
    return _key_panel(study, "key_weight", "Difference per key, after softmax", note)


def _length_panel(study: Study) -> Panel:
    note = (
        "y: D_logit, Equation 5: change of the first key's score in logits, mean over queries, summed over layers and "
        "heads; with the model's 1/√d."
    )
    return _by_length(study, "D_logit against the length", note, "shift", "D_logit")


def _oracle_panel(study: Study) -> Panel:
    note = "y: D, Equation 4 between the level and the fp64-angle oracle of the same model, at the first shift."
    return _by_length(study, "Distance to the oracle against the length", note, "oracle", "D")


def _by_length(study: Study, title: str, note: str, against: str, measure: str) -> Panel:
    shift, other = pair(study)
    other = other if against == "shift" else shift

    def points(dtype: str, mode: Mode, level: str) -> list[Point]:
        rows = study.totals(dtype=dtype, mode=mode, level=level, against=against, shift=shift, other=other)
        return sorted((row.setting.length, row.values[measure]) for row in rows)

    every = lengths(study)
    axis = Axis("tokens", tuple((length, _short(length)) for length in every[:: max(1, (len(every) + 4) // 6)]))
    return _panel(study, title, note, axis, points)


def _point(x: float, row: Row, measure: str) -> Point:
    """Return a mean over the texts with its interval; without one if it reaches zero, which the axis does not have."""
    value, half = row.values[measure], row.halves.get(measure, 0.0)
    return (x, value, value - half, value + half) if 0 < half < value else (x, value)


def _middle(key: str) -> float:
    """Return the geometric middle of a bin, or the key itself."""
    low, _, high = key.partition("-")
    return float(low) if not high else (float(low) * float(high)) ** 0.5


def _short(length: int) -> str:
    return f"{length // 1024}k" if length >= 1024 and length % 1024 == 0 else str(length)


def _table(study: Study) -> list[tuple[str, list[list[str]]]]:
    """Return for each setting a line per level, with the numbers at the longest length."""
    (shift, other), longest = pair(study), lengths(study)[-1]
    tables = []
    for dtype, mode in settings(study):
        lines = []
        for level in levels(study):
            wanted = {"dtype": dtype, "mode": mode, "level": level, "length": longest, "shift": shift}
            row, oracle = total(study, against="shift", other=other, **wanted), total(study, against="oracle", **wanted)
            if row and oracle:
                lines.append(_line(row, oracle))
        tables.append((_words(study, dtype, mode), lines))
    return tables


def _line(row: Row, oracle: Row) -> list[str]:
    v = row.values
    numbers = [spread(one.values[name], one.halves.get(name)) for one in (row, oracle) for name in ("D", "D_logit")]
    return [
        row.setting.level,
        row.setting.applied,
        *numbers,
        *_against_others(v),
        f"{v['share_first']:.1%}",
    ]


def _against_others(v: dict[str, float]) -> list[str]:
    """Return the ratios of the first key and of the top key to the mean other key: of scores, then of weights."""
    pairs = [(f"{what}_{key}", f"{what}_other") for what in ("logit", "weight") for key in ("first", "top")]
    return [_ratio(v[one], v[rest]) if one in v else "–" for one, rest in pairs]


def _ratio(first: float, rest: float) -> str:
    return "–" if rest == 0 else f"{number(first / rest)}×"


def _heads(study: Study) -> list[list[str]]:
    """Return the heads with most weight on the first key, under the main level, in the model as stored."""
    (shift, other), (dtype, mode) = pair(study), settings(study)[0]
    wanted = {"dtype": dtype, "mode": mode, "level": main_level(study), "length": lengths(study)[-1]}
    rows = study.heads(against="shift", shift=shift, other=other, **wanted)
    rows = sorted(rows, key=lambda row: -row.values["mass_first"])[:TOP_HEADS]
    return [_head(row) for row in rows]


def _head(row: Row) -> list[str]:
    v = row.values
    masses = [f"{v[name]:.1%}" if name in v else "–" for name in ("mass_first", "mass_top")]
    return [row.layer, row.head, *masses, *_against_others(v), f"{v['share_first']:.1%}"]


def _facts(study: Study) -> list[tuple[str, str]]:
    """Return (name, value) of the facts about how the study was made."""
    f, every = study.facts, lengths(study)
    counts = {row.setting.length: (row.setting.texts, row.setting.queries) for row in study.totals()}
    detail = ", ".join(f"{length:,}: {counts[length][0]} × {counts[length][1]}" for length in every)
    return [
        ("stored in", str(f.get("stored", "?"))),
        ("its own RoPE equals", str(f.get("detected") or "no named level")),
        ("layers × heads", f"{f.get('layers', '?')} × {f.get('heads', '?')}"),
        ("texts", str(f.get("text", "?"))),
        ("first token", str(f.get("anchor", "?") or "none in front")),
        ("length: texts × query rows", detail),
        ("positions of the model", _window(study)),
        ("damaged frequencies", ", ".join(f.get("damaged", [])) or "none"),
        ("weights sha256", str(f.get("weights_sha256", "?"))[:16]),
    ]


def _window(study: Study) -> str:
    window = study.facts.get("window")
    return f"{window:,}{'; exceeded, see above' if beyond(study) else ''}" if window else "not stated"
