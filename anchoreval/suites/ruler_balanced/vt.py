"""RULER's variable tracking, balanced: assignments are stratified over depth, each name occurs in one chain only."""

from __future__ import annotations

import string
from collections.abc import Sequence
from random import Random

from anchoreval.schema import Json, Sample, Tokenizer
from anchoreval.suites.recipe import Recipe, options
from anchoreval.suites.ruler.niah import NOISE
from anchoreval.suites.ruler.vt import EXAMPLE_TOKENS, NOISE_TOKENS, ChainTask, ChainWording, assignments
from anchoreval.suites.ruler_balanced.balanced import Sampler, Text, sample
from anchoreval.suites.ruler_balanced.niah import NOISE_WORDS, noise, places
from anchoreval.texts.draft import Draft, Piece, Tally
from anchoreval.texts.filling import Fitted, fullest, new

SHOWN = {"full": EXAMPLE_TOKENS, "short": 300, "no noise": 0}  # most tokens of the example (0: only what it needs)
SHARE = 0.5  # of the prompt that an example may take


class Chains:
    """Draws names and values for the example and the chain of one sample; none is drawn twice or part of another."""

    def __init__(self, rng: Random) -> None:
        self._rng, self._names = rng, list[str]()
        self.values = list(map(str, rng.sample(range(10000, 99999), 2)))  # each for one chain

    def names(self, count: int, letters: int) -> list[str]:
        """Draw `count` new variable names."""
        first = len(self._names)

        def drawn() -> str:
            return "".join(self._rng.choices(string.ascii_uppercase, k=letters))

        def apart(name: str) -> bool:
            return not any(name in each or each in name for each in ("VAR", *self._names))

        for _ in range(count):
            self._names.append(new(drawn, apart, f"names of {letters} letters"))
        return self._names[first:]


class Example:
    """The worked example at the head of a prompt, with the same number of `lines` of noise in every sample.

    `lines` is None for a prompt without an example.
    """

    def __init__(self, name: str, wording: ChainWording, variables: int, lines: int | None) -> None:
        self.name, self._wording, self._variables, self.lines = name, wording, variables, lines

    def text(self, chains: Chains, rng: Random) -> str:
        """Return an example with its own names and value, and its answer."""
        if self.lines is None:
            return ""
        names, units = chains.names(self._variables, 3), max(1, self.lines)
        where = sorted(rng.choices(range(units), k=self._variables))
        draft = self._wording.draft(names, chains.values.pop(), where, units, NOISE)
        return "".join(piece.text for piece in draft.pieces()) + f" {' '.join(names)}\n\n"


class Chain(Text):
    """A chain of assignments among lines of noise; the last line is cut."""

    unit = "lines"

    def __init__(
        self, names: Sequence[str], value: str, aims: Sequence[float], wording: ChainWording, example: str, most: int
    ) -> None:
        self._names, self._value, self._aims, self._wording = names, value, aims, wording
        self._example, self.most = example, most

    def draft(self, units: int, words: int) -> Draft:
        """Return the draft; units are lines."""
        last = noise(words) if words else NOISE
        before = units if words else units - 1
        starts = range(0, (before + 1) * (len(NOISE) + 1), len(NOISE) + 1)
        total = starts[-1] + len(last)
        sizes = [len(line) + 1 for line in assignments(self._names, self._value)]
        where = places(starts, total, self._aims, sizes)
        draft = self._wording.draft(self._names, self._value, where, before + 1, last)
        draft.example = [Piece(self._example)] if self._example else []
        return draft

    def words(self, units: int) -> int:
        """Return the number of words of a line."""
        return len(NOISE_WORDS)

    def finish(self, draft: Draft, units: int) -> dict[str, Json]:
        """Return the name of the haystack."""
        return {"haystack": "noise"}


def sampler(recipe: Recipe) -> Sampler:
    """Return the function that makes one sample of variable tracking by its index.

    The example is the longest that leaves the task half the prompt.
    """
    task = options(recipe, ChainTask)
    tally = Tally(recipe.tokenizer)
    wording = ChainWording(tally)
    room = recipe.room
    example = _example(wording, recipe.tokenizer, task.hops + 1, SHARE * room)

    def draw(rng: Random, aims: Sequence[float]) -> Text:
        chains = Chains(rng)
        shown = example.text(chains, rng)
        names = chains.names(task.hops + 1, 5)
        return Chain(names, chains.values.pop(), aims, wording, shown, max(1, room // NOISE_TOKENS))

    def make(index: int) -> Sample:
        return sample(recipe, tally, index, draw, task.hops + 1, {"example": example.name})

    return make


def _example(wording: ChainWording, tokenizer: Tokenizer, variables: int, allowed: float) -> Example:
    """Return the first kind of example that takes up to `allowed` tokens; its size is measured on a separate draw."""

    def tokens(lines: int) -> int:
        example = Example("", wording, variables, lines)
        return tokenizer.count(example.text(Chains(Random(lines)), Random(lines)))

    for name, most in SHOWN.items():
        best, _ = fullest(lambda lines: Fitted(_NOTHING, tokens(lines), lines, ""), most, 1, most // NOISE_TOKENS)
        lines = best.units if best else 1 if most == 0 else None
        if lines is not None and tokens(lines) <= allowed:
            return Example(name, wording, variables, lines)
    return Example("none", wording, variables, None)


_NOTHING = Draft([], [], [], Piece(""), ())
