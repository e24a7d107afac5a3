from __future__ import annotations

from random import Random

import pytest

from anchoreval.errors import LengthError
from anchoreval.texts.draft import Draft, Piece
from anchoreval.texts.filling import PATIENCE, Draws, Fit, Impossible, Unlucky


class Lines:
    """A task of lines of ten tokens, plus up to `noise` random ones; keeps the sizes it was asked for."""

    def __init__(self, room: int, step: int, least: int = 1, noise: int = 0) -> None:
        self.rng, self.noise, self.asked, self.drawn = Random(0), noise, list[int](), list[int]()
        self.fit = Fit(self.make, self.count, room, 0, step, least, Draws(self.rng))

    def make(self, units: int) -> Draft:
        self.asked.append(units)
        extra = self.rng.randint(0, self.noise)
        self.drawn.append(extra)
        return Draft([], [[Piece("x" * (10 * units + extra))]], [], Piece(""), ())

    @staticmethod
    def count(pieces: list[Piece]) -> int:
        return sum(len(piece.text) for piece in pieces)


def test_the_search_finds_the_most_units_that_fit() -> None:
    assert Lines(room=1234, step=25).fit.search() == 123
    assert Lines(room=1234, step=25).fit.search(extra=500) == 73


def test_the_search_never_goes_below_its_step() -> None:
    assert Lines(room=100, step=25).fit.search() == 25


def test_a_sample_that_overflows_loses_whole_steps_as_upstream() -> None:
    fitted = Lines(room=1000, step=25).fit.sample(110)
    assert (fitted.units, fitted.how, fitted.tokens) == (85, "upstream", 850)


def test_where_upstream_would_never_end_the_sample_is_fitted_to_the_unit() -> None:
    task = Lines(room=137, step=25)
    fitted = task.fit.sample(40)
    assert (fitted.units, fitted.how) == (13, "refined")
    assert len(task.asked) < PATIENCE + 20


def test_luck_at_the_smallest_size_is_waited_for_as_upstream_does() -> None:
    fitted = Lines(room=252, step=25, noise=20).fit.sample(25)
    assert (fitted.units, fitted.how) == (25, "upstream")


def test_every_size_is_tried_with_the_same_random_numbers() -> None:
    task = Lines(room=200, step=25, noise=9)
    fitted = task.fit.refine(40)
    assert fitted.tokens <= 200 < fitted.tokens + 10
    assert len(task.drawn) > 3 and len(set(task.drawn)) == 1


def test_texts_that_grow_evenly_are_fitted_alike_in_fewer_draws() -> None:
    for room in (70, 71, 137, 5_000, 12_345, 49_999):
        plain, even = (Lines(room=room, step=25, least=7) for _ in range(2))
        even.fit.evenly = True
        for smaller in (0, 30):  # another text, whose search begins at the size of the last
            for task in (plain, even):
                task.fit.room = max(70, room - smaller)
            assert even.fit.refine(5_000).units == plain.fit.refine(5_000).units == max(70, room - smaller) // 10
        assert len(even.asked) < len(plain.asked) - 8


def test_nothing_fitting_is_an_error_with_the_length_that_is_needed() -> None:
    with pytest.raises(LengthError) as caught:
        Lines(room=30, step=5, least=7).fit.sample(5)
    assert caught.value.smallest == 70


def test_draws_that_fail_are_drawn_again_and_sizes_that_cannot_be_are_too_long() -> None:
    task = Lines(room=1000, step=10)
    make, calls = task.make, iter(range(10_000))

    def sometimes(units: int) -> Draft:
        if units > 50:
            raise Impossible
        if next(calls) % 3 == 0:
            raise Unlucky
        return make(units)

    task.fit.make = sometimes
    assert task.fit.search(200) == 50
    assert task.fit.sample(50).units in {50, 40}
