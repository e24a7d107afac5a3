"""What is asked and how it is judged: a `Suite` for each folder, and one from each card that a user names."""

from __future__ import annotations

import importlib
from functools import cache
from typing import TYPE_CHECKING, Protocol

from anchoreval.errors import UnknownName
from anchoreval.suites.recipe import Recipe
from anchoreval.suites.suite import Average, Generator, Scorer, Setting, Suite

if TYPE_CHECKING:
    from anchoreval.cards import Origin, Task

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


def averages() -> dict[str, Average]:
    """Return the averages of all suites, those from outside that were named too, by the names of their columns."""
    from anchoreval.suites.outside import named_suites

    known = [*(named.suite for named in reversed(named_suites())), *suites().values()]
    return {name: average for suite in known for name, average in suite.averages.items()}


def select_tasks(names: str) -> tuple[list[Task], frozenset[str]]:
    """Return the tasks that `names` stand for, and which of them were named singly, as `cards.select_tasks` does.

    A card from outside the package and the suite of an installed package are run if they are named (outside.py).
    """
    from anchoreval.cards import load_tasks, pick

    tasks, sets = load_tasks()
    try:
        return pick(names, tasks, sets)
    except UnknownName:
        from anchoreval.suites.outside import pick_outside

        return pick_outside(names, tasks, sets)


class Asked(Protocol):
    """A task as its card or a header has it."""

    @property
    def address(self) -> str: ...
    @property
    def generator(self) -> str: ...
    @property
    def scorer(self) -> str: ...
    @property
    def outside(self) -> Origin | None: ...


def suite_of(task: Asked) -> Suite | None:
    """Return the suite of a task from outside the package; raise CardError if the user did not name it."""
    if task.outside is None:
        return None
    from anchoreval.suites.outside import named

    return named(task.outside, task.address).suite


def generator_of(task: Asked) -> Generator:
    """Return the generator that a task's card names; raise CardError as `suite_of` does."""
    own = suite_of(task) if task.outside else None
    return own.generators[task.generator] if own and task.generator in own.generators else generators()[task.generator]


def scorer_of(task: Asked) -> Scorer:
    """Return the scorer that a task's card names; raise CardError as `suite_of` does."""
    own = suite_of(task) if task.outside else None
    return own.scorers[task.scorer] if own and task.scorer in own.scorers else scorers()[task.scorer]


__all__ = ["MADE_OF_WORDS", "Average", "Generator", "Recipe", "Scorer", "Setting", "Suite"]
