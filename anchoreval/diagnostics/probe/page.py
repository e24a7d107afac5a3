"""probe.html: one self-contained page without scripts, with the paper's three panels and a summary in words.

The summary (`reading`) says what the numbers show for one level, and no more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import linear_regression

from anchoreval.diagnostics.probe.sheet import RANDOM, Mode, Row, Study
from anchoreval.reports.page import CURVES, render
from anchoreval.reports.plots import Axis, Curve, Drawing, Floor, Point, chart, decades, sheet, swatch

TEMPLATES = Path(__file__).parent / "templates"
TOP_HEADS = 12
#: The first of these levels that was measured is the floor: the differences that remain if RoPE rounds in float32 only.
FLOORS = ("fp32-qk", "fp32")
#: A ratio within this factor of one, either way, is written as "about the same".
LEVEL_FACTOR = 1.25
#: The smallest share of a head's weight on a key with which the key is called sink-like.
SINK = 0.3
MODE_WORDS: dict[str, str] = {"end-to-end": "end to end", "one-layer": "one layer on shared hidden states"}


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
        legend=[(name, swatch(at)) for at, name in enumerate(study.levels)],
        floor=_floor(study)[1],
        panels=_panels(study),
        table=_table(study),
        heads=_heads(study),
        level=_main_level(study),
        length=f"{study.lengths[-1]:,}",
    )
    return "".join(parts)


def picture(study: Study) -> str:
    """Return the text of probe.svg: the paper's three panels of the model as stored, in one stand-alone drawing."""
    shift, _, weight, length, _ = _panels(study)
    drawings = [Drawing(panel.title, panel.note, panel.charts[0][1]) for panel in (shift, weight, length)]
    words = _words(study, *study.settings[0])
    head = f"{study.model}: what a shift of all positions does to attention, by RoPE level ({words})"
    counts = {row.setting.length: row.setting.texts for row in study.totals()}
    texts = ", ".join(f"{counts[length]} at {length:,}" for length in study.lengths)
    notes = [f"Vertical bars: 95% interval over the texts; tokens and texts: {texts}.", _floor(study)[1]]
    return sheet(head, drawings, study.levels, [*filter(None, notes)])


def _floor(study: Study) -> tuple[str | None, str]:
    """Return the level of the floor, and in words what the grey area of a chart is; None and "" if no level can be."""
    level = next((level for level in FLOORS if level in study.levels), None)
    return level, f"Grey: at or below the floor {level}, where RoPE rounds in float32 alone." if level else ""


def _words(study: Study, dtype: str, mode: Mode) -> str:
    """Return `bf16 model, end to end`, or `fp32 copy` where the checkpoint is stored in another dtype."""
    kind = "model" if dtype == study.facts.get("stored", dtype) else "copy"
    return f"{dtype} {kind}, {MODE_WORDS[mode]}"


def _main_level(study: Study) -> str:
    """Return the level that the summary is about: `native`, else the first."""
    return "native" if "native" in study.levels else study.levels[0]


def _panels(study: Study) -> list[Panel]:
    """Return the panels by shift, by key before and after softmax, by length, and of the distance to the oracle."""
    (shift, other), longest = study.pair, study.lengths[-1]
    keys = f"{longest:,} tokens, shift {shift} against {other}. y: change of the "
    bins = " Keys from 4 on are means of bins that double."
    return [
        _shift_panel(study),
        _key_panel(
            study, "key_logit", "Difference per key, before softmax",
            f"{keys}score in logits, mean over queries, summed over layers and heads.{bins}",
        ),
        _key_panel(
            study, "key_weight", "Difference per key, after softmax",
            f"{keys}key's weight, Equation 4 without its sum over keys.{bins}",
        ),
        _length_panel(
            study, "shift", "D_logit", "D_logit against the length",
            "y: D_logit, Equation 5: change of the first key's score in logits, mean over queries, summed over layers "
            "and heads; with the model's 1/√d.",
        ),
        _length_panel(
            study, "oracle", "D", "Distance to the oracle against the length",
            "y: D, Equation 4 between the level and the fp64-angle oracle of the same model, at the first shift.",
        ),
    ]  # fmt: skip


def _panel(
    study: Study, title: str, note: str, axis: Axis, points: Callable[[str, Mode, str], Iterable[Point]]
) -> Panel:
    """Return a chart per setting with a curve per level; `points` takes (dtype, mode, level)."""
    by_setting = [
        (
            _words(study, dtype, mode),
            [Curve(name, at, tuple(points(dtype, mode, name))) for at, name in enumerate(study.levels)],
        )
        for dtype, mode in study.settings
    ]
    scale = decades([curve for _, curves in by_setting for curve in curves])
    charts, (floor, _) = [], _floor(study)
    for words, curves in by_setting:
        below = next((curve.points for curve in curves if curve.name == floor), ())
        area = Floor(tuple((x, None, y) for x, y, *_ in below if y > 0)) if below else None
        charts.append((words, chart(curves, axis, scale, f"{title}: {words}", area)))
    return Panel(title, note, tuple(charts))


def _shift_panel(study: Study) -> Panel:
    shift, other = study.pair
    swept = [row.setting for row in study.rows if row.setting.against == "shift" and row.setting.shift != shift]
    length = swept[0].length if swept else study.lengths[-1]

    def points(dtype: str, mode: Mode, level: str) -> list[Point]:
        rows = study.totals(dtype=dtype, mode=mode, level=level, against="shift", length=length, other=other)
        return sorted(_point(row.setting.shift, row, "D") for row in rows)

    starts = sorted({s.shift for s in swept} | {shift})
    ticks = [at for at in (0, 8, other, 100, 1000) if starts[0] <= at <= starts[-1]]
    axis = Axis(f"first shift (second: {other})", tuple((at, str(at)) for at in ticks), from_zero=True)
    note = f"{length:,} tokens. y: D, Equation 4 of the paper, a sum of weight changes over layers and heads."
    return _panel(study, "D against the shift", note, axis, points)


def _key_panel(study: Study, measure: str, title: str, note: str) -> Panel:
    (shift, other), longest = study.pair, study.lengths[-1]
    wanted = {"against": "shift", "length": longest, "shift": shift, "other": other}

    def points(dtype: str, mode: Mode, level: str) -> list[Point]:
        found = []
        for row in study.keys(dtype=dtype, mode=mode, level=level, **wanted):
            low, _, high = row.key.partition("-")  # of a bin, the geometric middle
            found.append(_point((float(low) * float(high)) ** 0.5 if high else float(low), row, measure))
        return found

    at = [0, *(4**power for power in range(1, 12) if 4**power < longest)]
    axis = Axis("key", tuple((key, _short(key)) for key in at[:1] + at[1:][-7:]), from_zero=True)
    return _panel(study, title, note, axis, points)


def _length_panel(study: Study, against: str, measure: str, title: str, note: str) -> Panel:
    shift, other = study.pair
    wanted = {"against": against, "shift": shift, "other": other if against == "shift" else shift}

    def points(dtype: str, mode: Mode, level: str) -> list[Point]:
        rows = study.totals(dtype=dtype, mode=mode, level=level, **wanted)
        return sorted((row.setting.length, row.values[measure]) for row in rows)

    every = study.lengths
    axis = Axis("tokens", tuple((length, _short(length)) for length in every[:: max(1, (len(every) + 4) // 6)]))
    return _panel(study, title, note, axis, points)


def _point(x: float, row: Row, measure: str) -> Point:
    """Return a mean over the texts with its interval; without one if it reaches zero, which the axis does not have."""
    value, half = row.values[measure], row.halves.get(measure, 0.0)
    return (x, value, value - half, value + half) if 0 < half < value else (x, value)


def _short(length: int) -> str:
    return f"{length // 1024}k" if length >= 1024 and length % 1024 == 0 else str(length)


def _table(study: Study) -> list[tuple[str, list[list[str]]]]:
    """Return for each setting a line per level, with the numbers at the longest length."""
    (shift, other), tables = study.pair, []
    for dtype, mode in study.settings:
        lines = []
        for level in study.levels:
            wanted = {"dtype": dtype, "mode": mode, "level": level, "length": study.lengths[-1], "shift": shift}
            row, oracle = study.total(against="shift", other=other, **wanted), study.total(against="oracle", **wanted)
            if row and oracle:
                numbers = [
                    spread(of.values[name], of.halves.get(name)) for of in (row, oracle) for name in ("D", "D_logit")
                ]
                lines.append([level, row.setting.applied, *numbers, *_against_others(row.values)])
        tables.append((_words(study, dtype, mode), lines))
    return tables


def _heads(study: Study) -> list[list[str]]:
    """Return the heads with most weight on the first key, under the main level, in the model as stored."""
    (shift, other), (dtype, mode) = study.pair, study.settings[0]
    wanted = {"dtype": dtype, "mode": mode, "level": _main_level(study), "length": study.lengths[-1]}
    rows = study.heads(against="shift", shift=shift, other=other, **wanted)
    lines = []
    for row in sorted(rows, key=lambda row: -row.values["mass_first"])[:TOP_HEADS]:
        masses = [f"{row.values[n]:.1%}" if n in row.values else "–" for n in ("mass_first", "mass_top")]
        lines.append([row.layer, row.head, *masses, *_against_others(row.values)])
    return lines


def _against_others(v: dict[str, float]) -> list[str]:
    """Return the ratios of first and top key to the mean other, of scores and of weights, and the first key's share."""
    ratios = []
    for what in ("logit", "weight"):
        rest = v[f"{what}_other"]
        for name in (f"{what}_first", f"{what}_top"):
            ratios.append("–" if name not in v or rest == 0 else f"{number(v[name] / rest)}×")
    return [*ratios, f"{v['share_first']:.1%}"]


def _facts(study: Study) -> list[tuple[str, str]]:
    """Return (name, value) of the facts about how the study was made."""
    f = study.facts
    counts = {row.setting.length: (row.setting.texts, row.setting.queries) for row in study.totals()}
    window = f.get("window")
    return [
        ("stored in", str(f.get("stored", "?"))),
        ("its own RoPE equals", str(f.get("detected") or "no named level")),
        ("layers × heads", f"{f.get('layers', '?')} × {f.get('heads', '?')}"),
        ("texts", str(f.get("text", "?"))),
        ("first token", str(f.get("anchor", "?") or "none in front")),
        (
            "length: texts × query rows",
            ", ".join(f"{length:,}: {counts[length][0]} × {counts[length][1]}" for length in study.lengths),
        ),
        (
            "positions of the model",
            f"{window:,}{'; exceeded, see above' if beyond(study) else ''}" if window else "not stated",
        ),
        ("damaged frequencies", ", ".join(f.get("damaged", [])) or "none"),
        ("weights sha256", str(f.get("weights_sha256", "?"))[:16]),
    ]


def number(value: float) -> str:
    """Return a value with two significant digits."""
    if value == 0:
        return "0"
    return f"{value:.1e}" if not 0.001 <= abs(value) < 1000 else f"{value:.2g}"


def spread(value: float, half: float | None) -> str:
    """Return a mean over texts with half the width of its interval, if it has one."""
    return number(value) if half is None else f"{number(value)} ± {number(half)}"


def reading(study: Study) -> str:
    """Return the paragraph: first key against others before and after softmax, growth, sinks, ladder, oracle."""
    level, (shift, other), longest = _main_level(study), study.pair, study.lengths[-1]
    models = [_of_setting(study, level, dtype, mode) for dtype, mode in study.settings if mode == "end-to-end"]
    dtype, mode = study.settings[0]
    wanted = {"dtype": dtype, "mode": mode, "against": "shift", "length": longest, "shift": shift, "other": other}

    # How many heads have a sink-like key.
    heads = [head.values for head in study.heads(level=level, **wanted)]
    many = sum(values["mass_first"] >= SINK for values in heads)
    most = max((values["mass_first"] for values in heads), default=0.0)
    rest = sum(values.get("mass_top", 0.0) >= SINK for values in heads)
    counted = f"{many} of {len(heads)} heads put {SINK:.0%} or more of their weight on the first key"
    sinks = f"{counted}; the most is {most:.1%}. On a single other key {rest} {'does' if rest == 1 else 'do'}."

    # The same numbers of random weights, in the model as stored.
    trained, random = (study.total(level=name, **wanted) for name in (level, RANDOM))
    without = ""
    if trained and random:
        pairs = ((name, trained.values[name], random.values[name]) for name in ("D", "D_logit"))
        measures = ", ".join(f"{name} {number(own)} against {number(drawn)}" for name, own, drawn in pairs)
        without = f"With its own weights against random ones in {dtype}: {measures}."

    # What the numbers rest on.
    setting = study.totals(length=longest)[0].setting
    rests = (
        f"The longest length rests on {setting.texts} text{'s' if setting.texts > 1 else ''} and {setting.queries} "
        "query rows of each."
    )
    return " ".join(filter(None, (*models, sinks, without, _ladder(study), rests, beyond(study))))


def _of_setting(study: Study, level: str, dtype: str, mode: Mode) -> str:
    """Return the sentences on the first key and on growth in one model."""
    (shift, other), longest = study.pair, study.lengths[-1]
    wanted = {"dtype": dtype, "mode": mode, "level": level, "against": "shift", "shift": shift, "other": other}
    row = study.total(length=longest, **wanted)
    if row is None:
        return ""
    v, heads = row.values, study.heads(length=longest, **wanted)
    more = sum(head.values["logit_first"] > head.values["logit_other"] for head in heads)
    start = (
        f"In the {_words(study, dtype, mode)}, at {longest:,} tokens under {level}, a shift of "
        f"all positions from {shift} to {other} changes the first key's score by {number(v['logit_first'])} and "
        f"another key's by {number(v['logit_other'])} on average: before softmax the first key's is "
        f"{_than(v['logit_first'], v['logit_other'])}, and the larger one in {more} of {len(heads)} heads. "
        f"After softmax its weight changes by {number(v['weight_first'])} and another key's by "
        f"{number(v['weight_other'])}: the first key's is {_than(v['weight_first'], v['weight_other'])}. It makes up "
        f"{v['share_first']:.1%} of all weight change and holds {v['mass_first']:.1%} of the weight."
    )
    if "mass_top" in v:
        start += (
            f" The key that draws most weight beside it, head by head, holds {v['mass_top']:.1%}; its score changes by "
            f"{number(v['logit_top'])}, its weight by {number(v['weight_top'])}."
        )
    return f"{start} {_growth(study.totals(**wanted))}"


def _than(first: float, rest: float) -> str:
    """Return "larger", "smaller" or "about the same", with the ratio."""
    if rest == 0:
        return "zero as well" if first == 0 else "larger (the other is zero)"
    ratio = first / rest
    if 1 / LEVEL_FACTOR <= ratio <= LEVEL_FACTOR:
        return f"about the same ({number(ratio)} times)"
    return f"{'larger' if ratio > 1 else 'smaller'} ({number(ratio)} times)"


def _growth(rows: list[Row]) -> str:
    """Return the sentence on how D_logit changes from the shortest to the longest length."""
    points = sorted((row.setting.length, row.values["D_logit"]) for row in rows)
    if len(points) < 2 or points[0][1] <= 0 or points[-1][1] <= 0:
        return ""
    (short, low), (long, high) = points[0], points[-1]
    ratio, halves = high / low, {row.setting.length: row.halves.get("D_logit") for row in rows}
    word = "grows" if ratio > LEVEL_FACTOR else "falls" if ratio < 1 / LEVEL_FACTOR else "stays about the same"
    ends = f"{spread(low, halves[short])} to {spread(high, halves[long])}"
    return f"D_logit {word} from {short:,} to {long:,} tokens: {ends} (as length to the power {slope(points):+.2f})."


def slope(points: list[tuple[int, float]]) -> float:
    """Return the least-squares slope of log y over log x; not a number where a y is not above zero."""
    if any(y <= 0 for _, y in points):
        return math.nan
    return linear_regression([math.log(x) for x, _ in points], [math.log(y) for _, y in points]).slope


def _ladder(study: Study) -> str:
    """Return the sentence on D_logit of every level on shared hidden states, where only the level differs."""
    (dtype, mode), (shift, other) = study.settings[-1], study.pair
    wanted = {"dtype": dtype, "mode": mode, "length": study.lengths[-1], "shift": shift}
    near, far = [], []
    for level in study.levels:
        row = study.total(against="shift", other=other, level=level, **wanted)
        oracle = study.total(against="oracle", level=level, **wanted)
        if row and oracle:
            near.append(f"{level} {number(row.values['D_logit'])}")
            far.append(f"{level} {number(oracle.values['D'])}")
    words = f"In the {_words(study, dtype, mode)}, D_logit is {', '.join(near)}"
    return f"{words}; the distance D to the fp64 oracle is {', '.join(far)}." if near else ""


def beyond(study: Study) -> str:
    """Return the sentence on lengths that, at the larger shift, use more positions than the model has, or ""."""
    window, larger = study.facts.get("window"), max(study.pair)
    highest = max(row.setting.length + max(row.setting.shift, row.setting.other) for row in study.rows)
    if not window or highest <= window:
        return ""
    over = ", ".join(f"{n:,}" for n in study.lengths if n + larger > window)
    where = f"{over} tokens at shift {larger}" if over else "part of the curve of D against the shift"
    return f"The model has {window:,} positions, and these go beyond: {where}."
