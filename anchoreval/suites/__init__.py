"""What is asked and how it is judged: a `Suite` for each folder, and one from each card that a user names.

The names of a suite's generators, scorers and settings are those that task cards use.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, Protocol

from anchoreval.errors import LengthError, TooLong, UnknownName
from anchoreval.schema import ChoiceScore, Json, Sample, Score
from anchoreval.suites.recipe import Make, Recipe

if TYPE_CHECKING:
    from anchoreval.cards import Origin, Task
    from anchoreval.texts.sources import Published, Sources

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

ATTEMPTS = 32  # lengths tried to find the smallest possible one
NO_REFERENCES = Score(None, "the sample has no reference answer")
NO_FACTS: Mapping[str, Json] = MappingProxyType({})
PER_TOKEN = "logprob per token"  # of a text that is scored, in nats


class Rule(Protocol):
    """Judges one answer; `facts` are those of the sample, for rules that need more than its references."""

    def __call__(self, answer: str, references: Sequence[str], facts: Mapping[str, Json] = ..., /) -> Score:
        """Return the score of an answer."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Generator:
    """Makes the samples of tasks, with the traits that a run asks about.

    `make`          yields the samples of a recipe
    `size`          the number of samples at a length under a task's address and arguments, if it is not the card's
    `in_files`      the number of samples at a length, if files decide it
    `left_out`      notices on files that are left out
    `pool`          the part of the number of samples that the samples depend on; None if the first are always the same
    `release`       the release of another package whose definitions make the prompts; None for the one that identities
                    do not name
    `follow_up`     makes the second prompt of a sample (`Sample.then`) from the answer to the first
    `context_free`  can make a prompt without its context
    `published`     prompts keep their published bytes, and therefore the published count of tokens, without an anchor
    `prose_free`    reads files only: neither a seed nor the kind of haystack changes a prompt
    `own_texts`     the origin of prompts for which no scores were published
    `one_document`  a sample is one document: attention and positions that act on several have no meaning
    `explained`     a LengthError is raised again with the task's name and the smallest length that works
    """

    make: Make
    size: Callable[[str, Mapping[str, Json]], int] | None = None
    in_files: Callable[[Recipe], int] | None = None
    left_out: Callable[[Recipe], list[str]] | None = None
    pool: Callable[[Recipe], int | None] | None = None
    release: Callable[[], str | None] | None = None
    follow_up: Callable[[Recipe, Sample, str], Sample] | None = None
    context_free: bool = False
    published: bool = False
    prose_free: bool = False
    own_texts: str = ""
    one_document: bool = False
    explained: bool = True

    def __call__(self, recipe: Recipe) -> Iterator[Sample]:
        """Yield the samples; a LengthError names the task and the smallest length that works, or the longest."""
        try:
            yield from self.make(recipe)
        except LengthError as error:
            if not self.explained:
                raise
            where = f"{recipe.task} cannot be made at {recipe.length} tokens"
            if isinstance(error, TooLong):
                hint = f"the longest is about {error.longest}" if error.longest else "try a shorter one"
                raise TooLong(f"{where}: {error}; {hint}", error.longest) from None
            smallest = self._smallest(recipe, error.smallest)
            hint = f"the smallest is {smallest}" if smallest else "try a longer one"
            raise LengthError(f"{where}: {hint}", smallest) from None

    def _smallest(self, recipe: Recipe, guess: int | None) -> int | None:
        """Return the first length from `guess` upwards that works, or None if no length was found."""
        for _ in range(ATTEMPTS):
            if guess is None:
                return None
            try:
                for _sample in self.make(replace(recipe, length=guess)):
                    pass
                return guess
            except TooLong:
                return None
            except LengthError as error:
                guess = max(guess + 1, error.smallest or 0)
        return None


def with_choices(
    facts: Mapping[str, Json], choices: Sequence[ChoiceScore], logprob: float | None = None
) -> Mapping[str, Json]:
    """Return the facts for a scorer: the sample's, plus the scores of its choices or its text's log-probability."""
    return {**facts, "choices": choices} if choices else facts if logprob is None else {**facts, PER_TOKEN: logprob}


def likeliest(choices: Sequence[ChoiceScore]) -> int:
    """Return the index of the choice with the highest log-probability; ties go to the first."""
    return max(range(len(choices)), key=lambda index: choices[index].logprob)


def gold_is_likeliest(_: str, __: Sequence[str], facts: Mapping[str, Json] = NO_FACTS) -> Score:
    """Return 1 if the right choice (fact `gold`) has the highest log-probability, else 0, as lm-eval's metric `acc`."""
    if not facts.get("choices"):
        return Score(None, "no choice was scored")
    return Score(float(likeliest(facts["choices"]) == facts["gold"]))


@dataclass(frozen=True, slots=True, eq=False)
class Scorer:
    """Judges answers by a rule.

    `needs`     the facts without which a record cannot be judged
    `packages`  returns the packages that the rule uses with their versions; raises MissingExtra if one is missing
    `refuse`    raises RunError for (task, facts) of a record that name code which the task's card does not name
    `heavy`     loads data sets: only `anchoreval verify` and `score` judge again, a run that goes on does not
    """

    rule: Rule
    needs: tuple[str, ...] = ()
    packages: Callable[[], dict[str, str]] = dict
    refuse: Callable[[str, Mapping[str, Json]], None] | None = None
    heavy: bool = False

    def __call__(self, answer: str, references: Sequence[str], facts: Mapping[str, Json] = NO_FACTS) -> Score:
        """Return the score of an answer."""
        return self.rule(answer, references, facts)


@dataclass(frozen=True, slots=True)
class Setting:
    """A setting of a suite: what it is for, and its values: one of `values`, else a whole number from 1 upwards."""

    about: str
    values: tuple[str, ...] | None = None

    @property
    def kind(self) -> type[str] | type[int]:
        """The type of the setting's value."""
        return str if self.values else int


@dataclass(frozen=True, slots=True)
class Average:
    """A published average: a column that any declared board may name.

    `tasks` are addresses with their weights, and `lengths` the lengths with theirs; None gives every length of the
    board the same weight.
    """

    title: str
    about: str
    tasks: Mapping[str, float]
    lengths: Mapping[int, float] | None = None

    def of(self, scores: Mapping[str, float | None]) -> float | None:
        """Return the weighted mean of scores by address, or None if a task has none."""
        values = [(score, weight) for task, weight in self.tasks.items() if (score := scores.get(task)) is not None]
        if len(values) < len(self.tasks):
            return None
        return math.fsum(score * weight for score, weight in values) / math.fsum(weight for _, weight in values)


@dataclass(frozen=True, slots=True)
class FileState:
    """The state of one file that a suite reads."""

    file: str
    state: Literal["published", "differs", "unpinned", "missing"]
    what: str


@dataclass(frozen=True, slots=True, eq=False)
class Suite:
    """A benchmark, or several that share their code.

    `files` are what `anchoreval data fetch` downloads, and `states` tells what of them is there; `fetch` takes the
    place of the download for files that have no address of their own.
    """

    generators: Mapping[str, Generator]
    scorers: Mapping[str, Scorer] = field(default_factory=dict)
    settings: Mapping[str, Setting] = field(default_factory=dict)
    averages: Mapping[str, Average] = field(default_factory=dict)
    files: tuple[Published, ...] = ()
    states: Callable[[Sources], Iterator[FileState]] | None = None
    fetch: Callable[[Path, Callable[[str], None]], None] | None = None


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
