"""How many units fit, lines drawn again, depths in strata."""

from __future__ import annotations

from random import Random

import pytest

from anchoreval.texts.filling import STRATA, depth, most, topped_up
from anchoreval.tokenizer import TextTokenizer


@pytest.mark.parametrize("seed", range(30))
def test_the_most_units_that_fit_are_those_that_a_count_from_below_finds(seed: int) -> None:
    rng = Random(seed)
    sizes = [rng.choice((0, 1, 7, 30)) for _ in range(400)] + [1] * 10_000
    totals = [5 + sum(sizes[:n]) for n in range(500)]
    room, least = rng.randint(0, totals[300]), rng.randint(0, 5)
    asked: list[int] = []

    def tokens(units: int) -> int:
        asked.append(units)
        return 5 + sum(sizes[:units])

    expected = max((n for n in range(least, 500) if totals[n] <= room), default=None)
    assert most(tokens, room, least, rng.randint(0, 400)) == expected
    assert len(asked) < 40


def test_it_is_asked_five_times_where_units_are_alike() -> None:
    asked: list[int] = []

    def tokens(units: int) -> int:
        asked.append(units)
        return 60 + 57 * units

    assert most(tokens, 131_072, 3, 2000) == (131_072 - 60) // 57 and len(asked) <= 5


@pytest.mark.parametrize("highest", [1, 2, 36])
def test_units_that_come_to_an_end_are_all_taken_where_they_fit(highest: int) -> None:
    def tokens(units: int) -> int:
        return 10 + min(units, highest)

    assert most(tokens, 1000, 0, 18, highest) == highest
    assert most(tokens, 10, 0, 18, highest) == 0


def test_redrawn_lines_fill_the_room_and_never_more(tokenizer: TextTokenizer) -> None:
    rng = Random(1)

    def line(_: int) -> str:
        return " ".join(rng.choice(("ship", "lantern", "harbourmaster")) for _ in range(rng.randint(3, 9)))

    def tokens(lines: list[str]) -> int:
        return tokenizer.count("\n".join(lines))

    lines = [line(0) for _ in range(20)]
    for spare in (0, 1, 5, 40):
        room = tokens(lines) + spare
        found = topped_up(lines, range(1, 20), line, tokens, room, tokenizer)
        assert room - 1 <= tokens(found) <= room and found[0] == lines[0] and len(found) == 20


def test_any_ten_samples_have_one_depth_in_each_tenth_drawn_anew_each_time() -> None:
    depths = [depth(42, "x", index) for index in range(100)]
    orders = [tuple(int(each * STRATA) for each in depths[at : at + STRATA]) for at in range(0, 100, STRATA)]
    assert all(sorted(order) == list(range(STRATA)) for order in orders) and len(set(orders)) > 5
    assert depths[37] == depth(42, "x", 37) and depths != [depth(43, "x", index) for index in range(100)]
