"""The paragraph of the page: what the numbers show for one level, and no more. Imports no torch."""

from __future__ import annotations

import math

from anchoreval.diagnostics.probe.sheet import ALL, RANDOM, Mode, Row, Study

#: A ratio within this factor of one, either way, is written as "about the same".
LEVEL_FACTOR = 1.25
#: The smallest share of a head's weight on a key with which the key is called sink-like.
SINK = 0.3
MODE_WORDS: dict[str, str] = {"end-to-end": "end to end", "one-layer": "one layer on shared hidden states"}


def number(value: float) -> str:
    """Return a value with two significant digits."""
    if value == 0:
        return "0"
    return f"{value:.1e}" if not 0.001 <= abs(value) < 1000 else f"{value:.2g}"


def spread(value: float, half: float | None) -> str:
    """Return a mean over texts with half the width of its interval, if it has one."""
    return number(value) if half is None else f"{number(value)} ± {number(half)}"


def dtype_words(study: Study, dtype: str) -> str:
    """Return `bf16 model`, or `fp32 copy` if the checkpoint is stored in another dtype."""
    return f"{dtype} model" if dtype == study.facts.get("stored", dtype) else f"{dtype} copy"


def main_level(study: Study) -> str:
    """Return the level that the paragraph is about: `native`, else the first."""
    names = levels(study)
    return "native" if "native" in names else names[0]


def levels(study: Study) -> list[str]:
    """Return the levels in the order in which they were asked for, random weights last."""
    return sorted(dict.fromkeys(row.setting.level for row in study.rows), key=lambda level: level == RANDOM)


def lengths(study: Study) -> list[int]:
    """Return the lengths, ascending."""
    return sorted({row.setting.length for row in study.rows})


def settings(study: Study) -> list[tuple[str, Mode]]:
    """Return the (dtype, mode) that the page shows: every dtype end to end, then the last on shared hidden states.

    The latter is there only if it was measured.
    """
    dtypes = list(dict.fromkeys(row.setting.dtype for row in study.rows))
    shown: list[tuple[str, Mode]] = [(dtype, "end-to-end") for dtype in dtypes]
    if any(row.setting.mode == "one-layer" for row in study.rows):
        shown.append((dtypes[-1], "one-layer"))
    return shown


def pair(study: Study) -> tuple[int, int]:
    """Return the two shifts that were asked for, which are those of the rows by head or key."""
    setting = next(row.setting for row in study.select(against="shift") if (row.head, row.key) != (ALL, ALL))
    return setting.shift, setting.other


def total(study: Study, **wanted: object) -> Row | None:
    """Return the only row over all layers and heads with this setting, or None."""
    return next(iter(study.totals(**wanted)), None)


def reading(study: Study) -> str:
    """Return the paragraph: first key against others before and after softmax, growth, sinks, ladder, oracle."""
    level = main_level(study)
    models = [_of_setting(study, level, dtype, mode) for dtype, mode in settings(study) if mode == "end-to-end"]
    rest = (_sinks(study, level), _random(study, level), _ladder(study), _bound(study))
    return " ".join(filter(None, (*models, *rest)))


def _of_setting(study: Study, level: str, dtype: str, mode: Mode) -> str:
    """Return the sentences on the first key and on growth in one model."""
    shift, other = pair(study)
    longest = lengths(study)[-1]
    wanted = {"dtype": dtype, "mode": mode, "level": level, "shift": shift}
    row = total(study, against="shift", other=other, length=longest, **wanted)
    if row is None:
        return ""
    v, heads = row.values, study.heads(against="shift", other=other, length=longest, **wanted)
    more = sum(head.values["logit_first"] > head.values["logit_other"] for head in heads)
    start = (
        f"In the {dtype_words(study, dtype)}, {MODE_WORDS[mode]}, at {longest:,} tokens under {level}, a shift of "
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
    return f"{start} {_growth(study, wanted, other)}"


def _than(first: float, rest: float) -> str:
    """Return "larger", "smaller" or "about the same", with the ratio."""
    if rest == 0:
        return "zero as well" if first == 0 else "larger (the other is zero)"
    ratio = first / rest
    if 1 / LEVEL_FACTOR <= ratio <= LEVEL_FACTOR:
        return f"about the same ({number(ratio)} times)"
    return f"{'larger' if ratio > 1 else 'smaller'} ({number(ratio)} times)"


def _growth(study: Study, wanted: dict[str, object], other: int) -> str:
    """Return the sentence on how D_logit changes from the shortest to the longest length."""
    rows = study.totals(against="shift", other=other, **wanted)
    points = sorted((row.setting.length, row.values["D_logit"]) for row in rows)
    if len(points) < 2 or points[0][1] <= 0 or points[-1][1] <= 0:
        return ""
    (short, low), (long, high) = points[0], points[-1]
    ratio, halves = high / low, {row.setting.length: row.halves.get("D_logit") for row in rows}
    word = "grows" if ratio > LEVEL_FACTOR else "falls" if ratio < 1 / LEVEL_FACTOR else "stays about the same"
    return (
        f"D_logit {word} from {short:,} to {long:,} tokens: {spread(low, halves[short])} to "
        f"{spread(high, halves[long])} "
        f"(as length to the power {slope(points):+.2f})."
    )


def slope(points: list[tuple[int, float]]) -> float:
    """Return the least-squares slope of log y over log x."""
    xs, ys = [math.log(x) for x, _ in points], [math.log(y) for _, y in points if y > 0]
    if len(xs) != len(ys):
        return math.nan
    mx, my = math.fsum(xs) / len(xs), math.fsum(ys) / len(ys)
    rise = math.fsum((x - mx) * (y - my) for x, y in zip(xs, ys, strict=True))
    return rise / math.fsum((x - mx) ** 2 for x in xs)


def _sinks(study: Study, level: str) -> str:
    """Return the sentences on how many heads have a sink-like first key, at the longest length."""
    dtype, mode = settings(study)[0]
    shift, other = pair(study)
    heads = study.heads(
        dtype=dtype, mode=mode, against="shift", level=level, length=lengths(study)[-1], shift=shift, other=other
    )
    many = sum(head.values["mass_first"] >= SINK for head in heads)
    most = max((head.values["mass_first"] for head in heads), default=0.0)
    rest = sum(head.values.get("mass_top", 0.0) >= SINK for head in heads)
    counted = f"{many} of {len(heads)} heads put {SINK:.0%} or more of their weight on the first key"
    return f"{counted}; the most is {most:.1%}. On a single other key {rest} {'does' if rest == 1 else 'do'}."


def _random(study: Study, level: str) -> str:
    """Return the sentence that compares D with that of random weights, in the model as stored."""
    (shift, other), (dtype, mode) = pair(study), settings(study)[0]
    wanted = {"dtype": dtype, "mode": mode, "against": "shift", "length": lengths(study)[-1], "shift": shift}
    trained, random = (total(study, level=name, other=other, **wanted) for name in (level, RANDOM))
    if not (trained and random):
        return ""
    measures = ", ".join(
        f"{n} {number(trained.values[n])} against {number(random.values[n])}" for n in ("D", "D_logit")
    )
    return f"With its own weights against random ones in {dtype}: {measures}."


def _ladder(study: Study) -> str:
    """Return the sentence on D_logit of every level on shared hidden states, where only the level differs."""
    dtype, mode = settings(study)[-1]
    shift, other = pair(study)
    wanted = {"dtype": dtype, "mode": mode, "length": lengths(study)[-1], "shift": shift}
    parts, far = [], []
    for level in levels(study):
        row = total(study, against="shift", other=other, level=level, **wanted)
        oracle = total(study, against="oracle", level=level, **wanted)
        if row and oracle:
            parts.append(f"{level} {number(row.values['D_logit'])}")
            far.append(f"{level} {number(oracle.values['D'])}")
    if not parts:
        return ""
    words = f"{dtype_words(study, dtype)}, {MODE_WORDS[mode]}"
    return f"In the {words}, D_logit is {', '.join(parts)}; the distance D to the fp64 oracle is {', '.join(far)}."


def _bound(study: Study) -> str:
    """Return the sentences on the texts, query rows and positions that the numbers rest on."""
    row = next(row for row in study.totals(length=lengths(study)[-1]))
    texts, queries = row.setting.texts, row.setting.queries
    rests = f"The longest length rests on {texts} text{'s' if texts > 1 else ''} and {queries} query rows of each."
    return f"{rests} {beyond(study)}".strip()


def beyond(study: Study) -> str:
    """Return the sentence on lengths that, at the larger shift, use more positions than the model has, or ""."""
    window = study.facts.get("window")
    highest = max(row.setting.length + max(row.setting.shift, row.setting.other) for row in study.rows)
    if not window or highest <= window:
        return ""
    over = [f"{n:,}" for n in lengths(study) if n + max(pair(study)) > window]
    where = (
        f"{', '.join(over)} tokens at shift {max(pair(study))}" if over else "part of the curve of D against the shift"
    )
    return f"The model has {window:,} positions, and these go beyond: {where}."
