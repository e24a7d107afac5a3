"""Texts that fill their length: how many units fit, lines redrawn until nothing is left over, depths in strata."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from random import Random

from anchoreval.errors import TooLong
from anchoreval.schema import Tokenizer

STRATA = 10
PATIENCE = 6  # estimates before the search only halves
DRAWS = 800  # of lines of a text that is topped up, spread over them; eight each at least
DRAWS_EACH = 8
PATIENCE_FOR_NEW = 10_000  # draws, of which one in two is new wherever this is asked


def most(tokens: Callable[[int], int], room: int, least: int, guess: int, highest: int = 0) -> int | None:
    """The most units (`least` or more) whose text has at most `room` tokens; None when `least` has more.

    `tokens` says what so many units take and grows with them, without end unless there are `highest` units at most (0:
    any number); where it grows evenly it is asked about five times.
    """
    first = tokens(least)
    if first > room:
        return None
    low, high, asked = least, highest + 1 if highest else 0, 0
    at = max(min(guess, highest or guess), least + 1)
    while not high or high - low > 1:
        found, asked = tokens(at), asked + 1
        if found <= room:
            low = at
        else:
            high = at
        each = max((found - first) / (at - least), 1e-6)
        wanted = max(low + 1, at + math.floor((room - found) / each))
        at = wanted if not high else min(wanted, high - 1) if asked < PATIENCE else (low + high) // 2
    return low


def new(draw: Callable[[], str], is_new: Callable[[str], bool], what: str) -> str:
    """The first text drawn that is new. TooLong where no draw is: there are no more of `what`."""
    for _ in range(PATIENCE_FOR_NEW):
        drawn = draw()
        if is_new(drawn):
            return drawn
    raise TooLong(f"there are no more {what}")


def depth(seed: int, name: str, index: int) -> float:
    """Where sample `index` hides what is asked for, 0 (first) to 1 (last).

    Any ten samples from a multiple of ten on have one depth in each tenth, in random order; a sample's depth depends on
    nothing but its index, the seed and the name.
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
    """The lines, some of those at `free` drawn again so that together they come closer to `room` tokens, never over it.

    `tokens` counts the whole text; a line's own count only says which draw is worth a try.
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
