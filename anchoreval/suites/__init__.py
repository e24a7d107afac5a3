"""What is asked and how it is judged: a `Suite` for each folder, and one from each card that a user names."""

from __future__ import annotations

import importlib
from functools import cache
from typing import TYPE_CHECKING

from anchoreval.suites.recipe import Recipe
from anchoreval.suites.suite import Average, Generator, Scorer, Setting, Suite

if TYPE_CHECKING:
    from anchoreval.cards import Task

#: The folders of the package's suites, in reading order: a line each.
FOLDERS = (
    "ruler",
    "ruler_balanced",
    "longbench",
    "longbench_v2",
    "niah",
    "babilong",
    "recall",
    "general",
    "nll",
)
#: Haystacks, as a sample's facts name them, that are made of words: another source text does not change them.
MADE_OF_WORDS = frozenset({"noise", "needle", "coded words"})


@cache
def suites() -> dict[str, Suite]:
    """Return the suites of the package by the names of their folders."""
    return {name: importlib.import_module(f"{__name__}.{name}").SUITE for name in FOLDERS}


@cache
def generators() -> dict[str, Generator]:
    """Return the generators of the package by the names that task cards use."""
    return {name: generator for suite in suites().values() for name, generator in suite.generators.items()}


@cache
def scorers() -> dict[str, Scorer]:
    """Return the scorers of the package by the names that task cards use."""
    return {name: scorer for suite in suites().values() for name, scorer in suite.scorers.items()}


@cache
def settings() -> dict[str, Setting]:
    """Return the settings of all suites by name."""
    return {name: setting for suite in suites().values() for name, setting in suite.settings.items()}


@cache
def averages() -> dict[str, Average]:
    """Return the published averages of all suites by the names of their columns."""
    return {name: average for suite in suites().values() for name, average in suite.averages.items()}


def generator_of(task: Task) -> Generator:
    """Return the generator that a task's card names."""
    return generators()[task.generator]


def scorer_of(task: Task) -> Scorer:
    """Return the scorer that a task's card names."""
    return scorers()[task.scorer]


__all__ = ["MADE_OF_WORDS", "Average", "Generator", "Recipe", "Scorer", "Setting", "Suite"]
