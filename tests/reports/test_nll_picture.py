"""nll.svg: what is told from none, the floor and the interval are drawn where they are."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from anchoreval.reports.nll.picture import floor_of, picture
from anchoreval.reports.nll.rows import Row
from anchoreval.reports.page import CURVES
from anchoreval.reports.plots import Axis, Curve, Even, Signed, both_signs, chart, decades

SPANS = ((1, 63), (64, 127), (1, 127))


def rows(arm: str, value: float, half: float, baseline: str | None = "fp32") -> list[Row]:
    return [Row(128, *span, arm, baseline, value, value - half, value + half, 0.5, 381, 3, "text") for span in SPANS]


TABLE = [
    *rows("fp32", 3.0, 0.5, None),
    *rows("bf16", 3.0, 0.5, None),
    *rows("bf16-angle", 3.8, 0.5, None),
    *rows("fp32~placebo", 3.0, 0.5, None),
    *rows("bf16", 2e-4, 3e-4),
    *rows("bf16-angle", 0.8, 0.1),
    *rows("fp32~placebo", 0.0, 2e-6),
]


def test_the_picture_says_what_its_axes_bars_and_grey_are() -> None:
    text = picture("smollm2", "float32", TABLE)
    ElementTree.fromstring(text)
    said = " ".join(re.findall(r"<text[^>]*>([^<]*)</text>", text))
    for words in (
        "Loss, 128 tokens", "Loss minus that of fp32, 128 tokens", "nats per token", "position in the text, in tokens",
        "95% interval over 3 texts", "fp32~placebo", "2.0e-06", "bf16-angle", "smollm2, float32",
    ):  # fmt: skip
        assert words in said, words
    assert text.count('<polygon class="floor"') == 1
    assert "<script" not in text and text.count("http") == 1  # the name space alone
    assert "prefers" not in text and "light-dark(" in text


def test_what_is_not_told_from_none_is_hollow() -> None:
    differences = picture("m", "float32", TABLE).split("Loss minus that of", 1)[1]
    drawn = re.findall(r"<g [^>]*><title>([^<]*)</title>(.*?)</g>", differences, re.DOTALL)
    assert {name: part.count('class="hollow"') for name, part in drawn} == {"bf16": 2, "bf16-angle": 0}


def test_the_floor_is_the_largest_that_a_placebo_shows_with_its_interval() -> None:
    assert floor_of(TABLE) == pytest.approx(2e-6)
    none = [row for row in TABLE if not row.arm.endswith("~placebo")]
    assert floor_of(none) == 0.0
    assert "No placebo was measured" in picture("m", "float32", none)
    same = [*none, *(replace(row, value=0.0, low=None, high=None) for row in rows("fp32~placebo", 0, 0))]
    assert "gave the same bits" in picture("m", "float32", same)


def test_both_sides_of_zero_have_the_same_steps_and_every_value_fits() -> None:
    curve = Curve("a", 0, ((1, 1e-5, -3e-4, 2e-3), (2, 0.5)))
    scale = both_signs([curve], 2e-6)
    assert scale == Signed(-6, -3, 0)
    places = [scale.place(y) for y in (-1e-3, -1e-4, -1e-5, -1e-6, 0.0, 1e-6, 1e-5)]
    assert places[0] == 0.0 and scale.place(1.0) == 1.0
    steps = [b - a for a, b in itertools.pairwise([float(place or 0) for place in places])]
    assert steps == pytest.approx([steps[0]] * len(steps))
    assert next(text for _, text in scale.ticks()) == "0"


@pytest.mark.parametrize(("low", "high"), [(3.1, 4.4), (-0.02, 0.5), (0.0, 1200.0)])
def test_even_axes_have_round_ticks_within_their_ends(low: float, high: float) -> None:
    ticks = list(Even(low, high).ticks())
    assert 3 <= len(ticks) <= 8 and all(low - 1e-9 <= at <= high + 1e-9 for at, _ in ticks)
    assert all(float(text) == pytest.approx(at, abs=1e-9) for at, text in ticks)


def test_an_axis_with_ends_keeps_what_is_drawn_between_them() -> None:
    curve = Curve("a", 0, ((8, 1.0), (90, 10.0)))
    drawn = chart([curve], Axis("x", ((128, "128"),), ends=(4.0, 128.0)), decades([curve]), "label")
    xs = [float(point.split(",")[0]) for point in re.findall(r'polyline points="([^"]+)"', drawn)[0].split()]
    tick = float(re.findall(r'<text class="tick" x="([\d.]+)"[^>]*middle', drawn)[0])
    assert 46 < xs[0] < xs[1] < tick == 342.0


def test_the_style_of_the_probe_is_that_of_the_picture() -> None:
    style = CURVES.read_text("utf-8")
    assert ".hollow" in style and ".floor" in style
