"""Fill a text to its length: find how many units fit, redraw lines to close the gap, draw depths from strata.

`Fit` is NVIDIA's search for RULER, with a finer search for texts with which NVIDIA's would never end. Upstream finds
one number of units for all samples by a binary search on newly drawn texts. Then, sample by sample, it takes `step`
units away while the text does not fit. It stops taking away at `step` units and draws for ever if they do not fit. Here
these draws are bounded; after them the sample is fitted to the unit, from the same draws.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Protocol

from anchoreval.errors import LengthError, TooLong
from anchoreval.schema import Tokenizer
from anchoreval.texts.draft import Draft, Piece

STRATA = 10
MOST_ESTIMATES = 6  # in `most`, before the search becomes a plain bisection
DRAWS = 800  # draws in all to top up a text, spread over its lines
DRAWS_EACH = 8  # draws of each line at least
PATIENCE_FOR_NEW = 10_000  # draws before `new` gives up; for all of its callers about one draw in two is new
ESTIMATES = 8  # of how much fits, before the search becomes a plain bisection
PATIENCE = 40  # draws at upstream's smallest size before the finer search takes over


def most(tokens: Callable[[int], int], room: int, least: int, guess: int, highest: int = 0) -> int | None:
    """Return the most units (`least` or more) whose text has at most `room` tokens, or None if `least` has more.

    `tokens` returns the tokens of a number of units. It must grow with the number, and without bound unless there are
    at most `highest` units (0: any number). If it grows evenly, it is called about five times.
    """
    first = tokens(least)
    if first > room:
        return None
    low, high, calls = least, highest + 1 if highest else 0, 0
    at = max(min(guess, highest or guess), least + 1)
    while not high or high - low > 1:
        taken, calls = tokens(at), calls + 1
        if taken <= room:
            low = at
        else:
            high = at
        each = max((taken - first) / (at - least), 1e-6)
        wanted = max(low + 1, at + math.floor((room - taken) / each))
        at = wanted if not high else min(wanted, high - 1) if calls < MOST_ESTIMATES else (low + high) // 2
    return low


def new(draw: Callable[[], str], is_new: Callable[[str], bool], what: str) -> str:
    """Return the first drawn text that is new; raise TooLong if no draw is, so that there are no more `what`."""
    for _ in range(PATIENCE_FOR_NEW):
        drawn = draw()
        if is_new(drawn):
            return drawn
    raise TooLong(f"there are no more {what}")


def depth(seed: int, name: str, index: int) -> float:
    """Return the depth at which sample `index` hides its answer, from 0 (first) to 1 (last).

    Any ten samples from a multiple of ten on have one depth in each tenth, in random order. A sample's depth depends
    only on its index, the seed and the name.
    """
    order = Random(f"{seed}-{name}-strata-{index // STRATA}").sample(range(STRATA), STRATA)
    return (order[index % STRATA] + Random(f"{seed}-{name}-depth-{index}").random()) / STRATA


def topped_up(
    lines: list[str],
    free: Sequence[int],
    redraw: Callable[[int], str],
    tokens: Callable[[list[str]], int],
    room: int,
    tokenizer: Tokenizer,
) -> list[str]:
    """Redraw some of the lines at `free` so that all lines together come closer to `room` tokens, and return all lines.

    They never take more than `room`. `tokens` counts the whole text; the count of a single line only serves to choose
    the draw to try.
    """
    tries = max(DRAWS_EACH, DRAWS // max(1, len(free)))
    best, before, spare = list(lines), list[tuple[int, str]](), room - tokens(lines)
    for at in free:
        if spare <= 0:
            break
        now = tokenizer.count(best[at])
        drawn = [(tokenizer.count(text) - now, text) for text in (redraw(at) for _ in range(tries))]
        gain, text = max((each for each in drawn if 0 < each[0] <= spare), default=(0, ""))
        if gain:
            before.append((at, best[at]))
            best[at], spare = text, spare - gain
            spare = spare or room - tokens(best)
    while before and tokens(best) > room:
        at, text = before.pop()
        best[at] = text
    return best


class Unlucky(Exception):
    """A draw on which upstream's generator fails (it swallows the error and draws again)."""


class Impossible(Exception):
    """A number of units with which every draw fails; upstream swallows the error and tries the same number again."""


class Numpy(Protocol):
    """The part of numpy's legacy generator that RULER uses."""

    def randint(self, low: int, high: int) -> int: ...
    def get_state(self) -> Any: ...
    def set_state(self, state: Any) -> None: ...


@dataclass(slots=True)
class Draws:
    """The random numbers of one data file: Python's generator and, for tasks that need it, numpy's legacy one."""

    python: Random
    numpy: Numpy | None = None

    def save(self) -> tuple[Any, Any]:
        """Return the state, from which the same numbers can be drawn again."""
        return self.python.getstate(), self.numpy.get_state() if self.numpy else None

    def load(self, state: tuple[Any, Any]) -> None:
        """Go back to a saved state."""
        self.python.setstate(state[0])
        if self.numpy:
            self.numpy.set_state(state[1])


Make = Callable[[int], Draft]  # units -> a newly drawn text
Count = Callable[[Iterable[Piece]], int]


@dataclass(slots=True)
class Fitted:
    """A text that fits: `tokens` excludes the answer budget, `how` is "upstream", "refined" or "filled"."""

    draft: Draft
    tokens: int
    units: int
    how: str


@dataclass(slots=True)
class Fit:
    """The fit of one task at one length, all in tokens.

    `room` is what the prompt may take; `answer` is the rest of the length, which is mostly the answer budget; `step` is
    upstream's step and `least` the fewest units that make sense, both in units. With `evenly`, a text of more units has
    more tokens and draws as many numbers; `last` is then the units of the text before.
    """

    make: Make
    count: Count
    room: int
    answer: int
    step: int
    least: int
    draws: Draws
    evenly: bool = False
    last: int = 0

    def search(self, highest: int | None = None, extra: int = 0) -> int:
        """Return upstream's number of units; `highest` replaces its 3x estimate, each text has `extra` more tokens."""
        if highest is None:
            highest = int(((self.room + self.answer) / (self.measure(self.step) / self.step)) * 3)
        low, high, best = self.step, max(highest, self.step * 2), 0
        while low <= high:
            middle = (low + high) // 2
            if self.measure(middle) + extra <= self.room:
                best, low = middle, middle + 1
            else:
                high = middle - 1
        return best or self.step

    def measure(self, units: int) -> int:
        """Return the tokens of a newly drawn text; a size that cannot be drawn counts as too long."""
        for _ in range(PATIENCE):
            try:
                return self.count(self.make(units).pieces())
            except Unlucky:
                continue
            except Impossible:
                break
        return self.room + 1

    def sample(self, units: int) -> Fitted:
        """Return a text that fits; raise LengthError if even the fewest units do not fit."""
        used, idle, overflow = units, 0, units + 1
        while idle < PATIENCE:
            try:
                draft = self.make(used)
                tokens = self.count(draft.pieces())
                if tokens <= self.room:
                    return Fitted(draft, tokens, used, "upstream")
                overflow = min(overflow, used)
            except Unlucky:
                pass
            except Impossible:
                idle = PATIENCE if used <= self.step else idle
            if used > self.step:
                used -= self.step
            else:
                idle += 1
        return self.refine(overflow - 1)

    def refine(self, most: int) -> Fitted:
        """Return the text with the most units (least..most) that fits; all sizes use the same random numbers.

        If texts grow `evenly`, the search begins at the size of the last text.
        """
        state = self.draws.save()
        guess = (self.last or most // 3) if self.evenly else 0
        best, smallest = fullest(lambda units: self._probe(state, units), self.room, self.least, most, guess)
        if best is None:
            raise too_short(self.room + self.answer, None if smallest is None else smallest + self.answer)
        self.last = best.units
        return best

    def _probe(self, state: tuple[Any, Any], units: int) -> Fitted | None:
        self.draws.load(state)
        for _ in range(PATIENCE):
            try:
                draft = self.make(units)
                return Fitted(draft, self.count(draft.pieces()), units, "refined")
            except Unlucky:
                continue
            except Impossible:
                return None
        return None


def fullest(
    probe: Callable[[int], Fitted | None], room: int, least: int, most: int, guess: int = 0
) -> tuple[Fitted | None, int | None]:
    """Return the text of the most units (least..most) within `room` tokens, and the tokens of the smallest one above.

    Each is None if the search met no such text. With a `guess` the search goes on from there by estimates before it
    bisects; it then finds the same text if texts of more units have more tokens.
    """
    low, high, best = least, max(most, least), None
    smallest: int | None = None
    estimates = ESTIMATES if guess else 0
    while low <= high:
        middle = max(low, min(guess, high)) if estimates > 0 else (low + high) // 2
        fitted, estimates = probe(middle), estimates - 1
        if fitted is not None and fitted.tokens <= room:
            best, low = fitted, middle + 1
        else:
            smallest = fitted.tokens if fitted else smallest
            high = middle - 1
        guess = middle + (room - fitted.tokens) * middle // max(fitted.tokens, 1) if fitted else 0
    return best, smallest


def too_short(length: int, smallest: int | None) -> LengthError:
    """Return the error for a length at which a task cannot be made; `smallest` is a length that works, if known."""
    known = f"; the smallest is {smallest}" if smallest else ""
    return LengthError(f"cannot be made at {length} tokens{known}", smallest)
