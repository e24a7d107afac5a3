"""Fill a text to its length: find how many units fit, redraw lines to close the gap, draw depths from strata."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from random import Random

from anchoreval.errors import TooLong
from anchoreval.schema import Tokenizer

STRATA = 10
PATIENCE = 6  # estimates before the search becomes a plain bisection
DRAWS = 800  # draws in all to top up a text, spread over its lines
DRAWS_EACH = 8  # draws of each line at least
PATIENCE_FOR_NEW = 10_000  # draws before `new` gives up; for all of its callers about one draw in two is new


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
        at = wanted if not high else min(wanted, high - 1) if calls < PATIENCE else (low + high) // 2
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
