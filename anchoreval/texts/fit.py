"""How much haystack fits: NVIDIA's search, and a finer search for texts with which NVIDIA's would never end.

Upstream finds one number of units for all samples by a binary search on newly drawn texts. Then, sample by sample, it
takes `step` units away while the text does not fit. It stops taking away at `step` units and draws for ever if they do
not fit. Here these draws are bounded; after them the sample is fitted to the unit, from the same draws.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from random import Random
from typing import Any, Protocol

from anchoreval.errors import LengthError
from anchoreval.texts.draft import Draft
from anchoreval.texts.tally import Piece

PATIENCE = 40  # draws at upstream's smallest size before the finer search takes over


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
    upstream's step and `least` the fewest units that make sense, both in units.
    """

    make: Make
    count: Count
    room: int
    answer: int
    step: int
    least: int
    draws: Draws

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
        """Return the text with the most units (least..most) that fits; all sizes use the same random numbers."""
        state = self.draws.save()
        best, smallest = fullest(lambda units: self._probe(state, units), self.room, self.least, most)
        if best is None:
            raise too_short(self.room + self.answer, None if smallest is None else smallest + self.answer)
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
    probe: Callable[[int], Fitted | None], room: int, least: int, most: int
) -> tuple[Fitted | None, int | None]:
    """Return the text of the most units (least..most) within `room` tokens, and the tokens of the smallest one above.

    Each is None if the search met no such text.
    """
    low, high, best = least, max(most, least), None
    smallest: int | None = None
    while low <= high:
        middle = (low + high) // 2
        fitted = probe(middle)
        if fitted is not None and fitted.tokens <= room:
            best, low = fitted, middle + 1
        else:
            smallest = fitted.tokens if fitted else smallest
            high = middle - 1
    return best, smallest


def too_short(length: int, smallest: int | None) -> LengthError:
    """Return the error for a length at which a task cannot be made; `smallest` is a length that works, if known."""
    known = f"; the smallest is {smallest}" if smallest else ""
    return LengthError(f"cannot be made at {length} tokens{known}", smallest)
