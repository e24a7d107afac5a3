"""LongBench's prompts, from prompts.yaml. They are filled with str.format, so braces in a record are safe."""

from __future__ import annotations

from functools import cache
from pathlib import Path


@cache
def prompts() -> dict[str, str]:
    """Return data set -> prompt."""
    from anchoreval.cards.strict_yaml import read_yaml

    texts: dict[str, str] = read_yaml(Path(__file__).with_suffix(".yaml"))
    return texts
