"""Shared by the balanced tasks: samples that fill their length, are drawn one by one, and spread answers over depth.

A sample follows from seed, task, length and its index. It does not depend on the number of samples or on other samples.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from random import Random

from anchoreval.errors import LengthError, TooLong
from anchoreval.schema import Json, Sample, Wrap
from anchoreval.suites.recipe import Make, Recipe
from anchoreval.texts.draft import Draft, Piece, Tally
from anchoreval.texts.filling import Fitted, fullest

FILL = 0.99
FEW = 3  # attempts after the first, after which a sample is given up if no draw fits, or every draw uses up all texts
ATTEMPTS = 64  # draws of one sample; the first that fills its length is taken
STRATA = 10

Sampler = Callable[[int], Sample]  # index -> that sample


class Text(ABC):
    """A sample whose random draws are made and whose size is still open.

    Its size is a number of whole units (lines, sentences, documents, words) plus words of one more unit, which is cut.
    """

    unit: str
    least = 1
    most: int

    @abstractmethod
    def draft(self, units: int, words: int) -> Draft:
        """Return the prompt of that size."""

    def words(self, units: int) -> int:
        """Return the most words of one more unit that `draft` accepts behind `units` units."""
        return 0

    def finish(self, draft: Draft, units: int) -> Mapping[str, Json]:
        """Return facts about the finished draft of `units` units; set its marks here if `draft` would be slow to."""
        return {}


def depths(recipe: Recipe, index: int, count: int) -> list[float]:
    """Return the aimed depths of the `count` answers of a sample, 0..1, ascending; each answer has a series of its own.

    In a series, any ten samples from a multiple of ten on fall once into each tenth of the depth, and any hundred once
    into each hundredth, in an order that the seed decides. All lengths of a task share the depths.
    """
    aims, (block, place) = [], divmod(index, STRATA)
    group, row = divmod(block, STRATA)
    for which in range(count):  # points of a scrambled two-digit sequence in base ten, with a random remainder
        series = f"depth/{recipe.seed}/{recipe.task}/{which}"
        tenth = Random(f"{series}/{block}").sample(range(STRATA), STRATA)[place]
        hundredth = Random(f"{series}/{group}/{tenth}").sample(range(STRATA), STRATA)[row]
        aims.append((tenth + (hundredth + Random(f"{series}/rest/{index}").random()) / STRATA) / STRATA)
    return sorted(aims)


def sample(
    recipe: Recipe,
    tally: Tally,
    index: int,
    draw: Callable[[Random, Sequence[float]], Text],
    answers: int,
    facts: Mapping[str, Json],
) -> Sample:
    """Return sample `index`: the first draw that takes at least 99% and at most all of the length.

    Raise LengthError if no draw does, TooLong if the draws use up all texts and still do not.
    """
    aims, smallest = depths(recipe, index, answers), None
    whole: list[int] = []  # tokens of draws that have used up all units
    for attempt in range(ATTEMPTS):
        text = draw(Random(f"{recipe.seed}/{recipe.task}/{recipe.length}/{index}/{attempt}"), aims)
        fitted, over = filled(recipe, tally, text)
        smallest = smallest or over
        if fitted is not None and recipe.tokens(fitted.tokens) >= FILL * recipe.length:
            of_text = {"unit": text.unit, **text.finish(fitted.draft, fitted.units)}
            of_fit = {"tokens": recipe.counted(fitted.tokens), "units": fitted.units, "fit": fitted.how}
            of_depths = {"aimed_depths": [round(aim, 4) for aim in aims], **fitted.draft.positions(tally)}
            segments, references = fitted.draft.segments(), fitted.draft.references
            return recipe.sample(index, segments, references, {**of_fit, **facts, **of_text, **of_depths})
        if fitted is not None and fitted.units == text.most:
            every = wrapped(text.draft(text.most, text.words(text.most)), recipe.wrap)
            if tally.count(every.pieces()) <= recipe.room:
                whole.append(recipe.tokens(fitted.tokens))
        if attempt == FEW and (fitted is None or len(whole) > FEW):
            break
    if len(whole) > FEW:
        raise TooLong("there are no more texts to fill it with", max(whole))
    least = None if smallest is None else smallest + recipe.reserved
    raise LengthError(f"no sample fills {recipe.length} tokens", max(recipe.length + 1, least or 0))


def filled(recipe: Recipe, tally: Tally, text: Text) -> tuple[Fitted | None, int | None]:
    """Return the text with as many units as fit, then as many words of the next unit; None if no size fits.

    The second value is the tokens of the smallest text seen that was too long, or None.
    """
    room = recipe.room

    def probe(units: int, words: int = 0) -> Fitted:
        draft = wrapped(text.draft(units, words), recipe.wrap)
        return Fitted(draft, tally.count(draft.pieces()), units, "filled")

    best, over = fullest(probe, room, text.least, text.most)
    if best is None or best.tokens == room:
        return best, over
    units = best.units
    finer, _ = fullest(lambda words: probe(units, words), room, 0, text.words(units))
    return finer or best, over


def wrapped(draft: Draft, wrap: Wrap) -> Draft:
    """Return the draft as one user turn of a chat template, with its example inside the turn."""
    draft.opening = [Piece(wrap.opening)] if wrap.opening else []
    draft.query = [*draft.query, Piece(wrap.closing)] if wrap.closing else draft.query
    return draft


def mark_words(draft: Draft, items: Sequence[str], slots: Sequence[int]) -> None:
    """Mark the items in these slots, ascending, in the draft's only document, which is `items` joined by spaces."""
    places = [0, *slots, len(items)]
    parts = [items[start:end] for start, end in pairwise(places)]
    pieces = [
        Piece((" " if start else "") + " ".join(part)) for start, part in zip(places, parts, strict=False) if part
    ]
    draft.documents = [pieces]
    skipped = 0 if parts[0] else 1  # a word in the first slot has nothing before it
    draft.marks = [(0, which + 1 - skipped) for which in range(len(slots))]


def spread(
    fixed: Sequence[str], aims: Sequence[float], others: Sequence[str], rng: Random
) -> tuple[list[str], list[int]]:
    """Shuffle `others` and put the shuffled words of `fixed` at the shares `aims` of the list, or next to them.

    Return the list, and the slots of the words of `fixed`, ascending.
    """
    size = len(fixed) + len(others)
    slots: set[int] = set()
    for aim in aims:
        slots.add(next(slot for slot in _outwards(int(aim * size), size) if slot not in slots))
    placed = dict(zip(sorted(slots), rng.sample(fixed, len(fixed)), strict=True))
    rest = iter(rng.sample(others, len(others)))
    return [placed[slot] if slot in placed else next(rest) for slot in range(size)], sorted(slots)


def _outwards(middle: int, size: int) -> Iterator[int]:
    """Yield every slot of 0..size, the nearest to the middle first."""
    for step in range(size):
        yield from {slot for slot in (middle - step, middle + step) if 0 <= slot < size}


def one_by_one(sampler: Callable[[Recipe], Sampler]) -> Make:
    """Return the generator of a task whose samples can be made alone."""

    def generate(recipe: Recipe) -> Iterator[Sample]:
        return map(sampler(recipe), range(recipe.count))

    return generate
