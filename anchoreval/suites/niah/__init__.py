"""Needle in a haystack: a grid of lengths and depths."""

from anchoreval.suites import Generator, Setting, Suite
from anchoreval.suites.niah import generate

SUITE = Suite(
    generators={"niah": Generator(generate.generate, size=generate.size)},
    settings={
        "depths": Setting("niah: depths of the grid (default: 11)"),
        "depth_spacing": Setting("niah: how the depths are spread (default: linear)", ("linear", "sigmoid")),
        "repeats": Setting("niah: samples of each length and depth (default: 1)"),
        "needles": Setting("niah/multi: needles in a prompt (default: 3)"),
    },
)
