"""RULER's variable tracking, byte-exact with NVIDIA/RULER c3f5e3b scripts/data/synthetic/variable_tracking.py."""

from __future__ import annotations

import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from random import Random
from typing import Literal

from anchoreval.errors import AnchorEvalError, LengthError
from anchoreval.schema import Sample, Wrap
from anchoreval.suites.recipe import BASE, Recipe, options
from anchoreval.suites.ruler.niah import NOISE
from anchoreval.texts.draft import VT, VT_PREFIX, Draft, Piece, Tally, Template, interleaved
from anchoreval.texts.filling import Draws, Fit, Numpy, Unlucky

EXAMPLE_TOKENS = 500
EXAMPLE_STEP = 5
REMEDIES = 1000  # names drawn at most to replace equal names; upstream draws them without end
EXAMPLE_VALUE = "12345"
NOISE_TOKENS = 10  # fewer than a line of noise has


@dataclass(frozen=True, slots=True)
class ChainTask:
    """The `args` of a task card; upstream's RULER task is one chain of four hops."""

    hops: int = 4
    chains: Literal[1] = 1


def legacy_numpy(seed: int) -> Numpy:
    """Return numpy's legacy Mersenne twister, which RULER draws values from.

    Raise AnchorEvalError for a seed that the twister does not take.
    """
    from numpy.random import RandomState

    if not 0 <= seed < 2**32:
        raise AnchorEvalError(f"seed {seed}: RULER's vt takes one from 0 to {2**32 - 1}: name another --seed")
    return RandomState(seed)


def names(rng: Random, count: int, letters: int) -> list[str]:
    """Draw variable names; raise Unlucky if two are equal, because upstream's remedy for that fails with an error."""
    drawn = ["".join(rng.choices(string.ascii_uppercase, k=letters)) for _ in range(count)]
    if len(set(drawn)) == count:
        return drawn
    for _ in range(REMEDIES):
        drawn.append("".join(rng.choices(string.ascii_uppercase, k=letters)))
        if len(set(drawn)) == count:
            break
    raise Unlucky


def value(numbers: Numpy) -> str:
    """Draw a value to assign (99999 is never drawn)."""
    return str(numbers.randint(10000, 99999))


def assignments(variables: Sequence[str], assigned: str) -> list[str]:
    """Return the lines of a chain: the first variable gets the value, each other variable that of its predecessor."""
    return [f"VAR {variables[0]} = {assigned}", *(f"VAR {new} = VAR {old} " for old, new in pairwise(variables))]


class ChainWording:
    """The prompt around lines of noise with a chain of assignments between them."""

    def __init__(self, tally: Tally, wrap: Wrap = BASE) -> None:
        self._template = Template.of(wrap, VT, VT_PREFIX)
        self._tally, self._noise = tally, Piece(NOISE + "\n")

    def draft(self, variables: Sequence[str], assigned: str, places: Sequence[int], units: int, last: str) -> Draft:
        """Return a text of `units` lines with assignment i before line `places[i]`; the last line is `last`."""
        pieces, marks, start = interleaved(assignments(variables, assigned), places, self._lines)
        pieces += [*self._lines(start, units - 1), Piece(last)]
        before, after, prefix = self._template.fill(query=assigned, count=str(len(variables)))
        answers, places_of = tuple(variables), [(0, mark) for mark in marks]
        return Draft([Piece(before)], [pieces], [Piece(after)], Piece(prefix), answers, places_of, lines=True)

    def _lines(self, start: int, end: int) -> list[Piece]:
        return [self._tally.repeat(self._noise, end - start)] if end > start else []


@dataclass
class ChainMaker:
    """Draws texts of the task. `example` is the one-shot example that comes first, or None."""

    task: ChainTask
    draws: Draws
    tally: Tally
    wrap: Wrap = BASE
    example: str | None = None

    def __post_init__(self) -> None:
        self._wording = ChainWording(self.tally, self.wrap)

    def make(self, units: int) -> Draft:
        """Draw a new text with `units` lines of noise, without the example."""
        assert self.draws.numpy is not None
        try:
            variables = names(self.draws.python, self.task.hops + 1, 5)
        except Unlucky:  # uses up the values that upstream draws before its error, too
            value(self.draws.numpy)
            value(self.draws.numpy)
            raise
        return self._compose(variables, value(self.draws.numpy), units)

    def make_with_example(self, units: int) -> Draft:
        """Draw a new text; its example gets new names and a new value."""
        draft = self.make(units)
        if self.example is not None:
            opening = self.wrap.opening
            draft.opening = [Piece(opening)]
            assert self.draws.numpy is not None
            text, rng = self.example, self.draws.python  # replaced one after the other, as upstream does
            for name in text.strip().split()[-self.task.hops - 1 :]:
                text = text.replace(name, "".join(rng.choices(string.ascii_uppercase, k=len(name))))
            draft.example = [Piece(text.replace(EXAMPLE_VALUE, value(self.draws.numpy)) + "\n")]
            draft.preamble = [Piece(draft.preamble[0].text[len(opening) :])]
        return draft

    def make_example(self, units: int) -> Draft:
        """Draw a text that can become the example: it has three-letter names and a value to be replaced."""
        return self._compose(names(self.draws.python, self.task.hops + 1, 3), EXAMPLE_VALUE, units)

    def _compose(self, variables: list[str], assigned: str, units: int) -> Draft:
        if units < len(variables):
            raise Unlucky
        places = sorted(self.draws.python.sample(range(units), len(variables)))
        return self._wording.draft(variables, assigned, places, units, NOISE)


def example_text(task: ChainTask, draws: Draws, tally: Tally, lines: int | None = None) -> str:
    """Return the one-shot example with its answer; `lines` of noise, or else as many as upstream takes."""
    maker = ChainMaker(task, draws, tally)
    fit = Fit(maker.make_example, tally.count, EXAMPLE_TOKENS, 0, EXAMPLE_STEP, task.hops + 1, draws)
    fitted = fit.sample(fit.search()) if lines is None else fit.refine(lines)
    return f"{''.join(piece.text for piece in fitted.draft.pieces())} {' '.join(fitted.draft.references)}\n"


def generate(recipe: Recipe) -> Iterator[Sample]:
    """Yield samples of variable tracking.

    If upstream's example of up to 500 tokens leaves no room for the task, a short example is used, or else none. Raise
    LengthError if the length is too short even without an example.
    """
    task = options(recipe, ChainTask)
    tally = Tally(recipe.tokenizer)
    draws = Draws(Random(recipe.seed), legacy_numpy(recipe.seed))
    maker = ChainMaker(task, draws, tally, recipe.wrap, example_text(task, draws, tally))
    step = 5 if recipe.length < 4096 else 10
    fit = Fit(maker.make, tally.count, recipe.room, recipe.reserved, step, task.hops + 1, draws)
    units = fit.search(extra=recipe.tokenizer.count(maker.example or ""))
    fit.make = maker.make_with_example
    shown = "upstream"
    for index in range(recipe.count):
        while True:
            try:
                fitted = fit.sample(units) if shown == "upstream" else fit.refine(fit.room // NOISE_TOKENS)
                break
            except LengthError:
                if shown == "none":
                    raise
                maker.example, shown = None, "none" if shown == "short" else "short"
                if shown == "short":
                    maker.example = example_text(task, draws, tally, task.hops + 1)
        facts = {"haystack": "noise", "example": shown, **fitted.draft.positions(tally)}
        yield recipe.fitted(index, fitted, "lines", facts)
