"""The anytime-valid test: against exact rational arithmetic, and on simulated data that is looked at all the time."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from bench.sequential import WORDS, false_words, report_sequential, simulate

from anchoreval.errors import AnchorEvalError
from anchoreval.stats.sequential import Capital, Until, Watcher, bets, confidence_sequence, log_capital, parse_until

RULE = Until(0.02, 0.95)


def exact(differences: list[Fraction], m: Fraction) -> Fraction:
    """The capital by its definition, without rounding."""
    total = Fraction(0)
    for bet, weight in bets():
        product = Fraction(weight)
        for d in differences:
            product *= 1 + Fraction(bet) * (d - m)
        total += product
    return total


def log(value: Fraction) -> float:
    return math.log(value.numerator) - math.log(value.denominator)


@pytest.mark.parametrize("m", [Fraction(0), Fraction(-1, 100), Fraction(-1, 3)])
def test_the_capital_is_that_of_exact_rational_arithmetic(m: Fraction) -> None:
    rng = np.random.default_rng(1)
    differences = [Fraction(int(x), 4) for x in rng.integers(-3, 5, 40)]
    capital = Capital(float(m))
    for i, d in enumerate(differences):
        capital.add(float(d))
        if i % 13 == 0 or i == 39:
            assert capital.log == pytest.approx(log(exact(differences[: i + 1], m)), abs=1e-9)
    assert log_capital(np.array([float(d) for d in differences]), float(m)) == pytest.approx(capital.log, abs=1e-9)


def test_the_capital_is_a_fair_game_exactly() -> None:
    """One step multiplies it by 1 on average when the mean is m, for every two-valued difference."""
    for m in (Fraction(0), Fraction(-1, 50)):
        for low, high in ((Fraction(-1), Fraction(1)), (Fraction(-1, 2), Fraction(1, 4))):
            p = (m - low) / (high - low)
            before = [Fraction(1, 2), Fraction(-1)]
            mean = p * exact([*before, high], m) + (1 - p) * exact([*before, low], m)
            assert mean == exact(before, m)
    assert sum(Fraction(weight) for _, weight in bets()) == pytest.approx(1)
    assert all(0 < bet <= 1 for bet, _ in bets())


@pytest.mark.parametrize(
    ("worse", "better", "margin"),
    [(0.1, 0.1, 0.02), (0.02, 0.02, 0.05), (0.035, 0.015, 0.02), (0.02, 0.0, 0.02), (0.15, 0.1, 0.05)],
)
def test_false_verdicts_stay_within_5_percent_when_looked_at_after_every_pair(
    worse: float, better: float, margin: float
) -> None:
    word, _ = simulate(worse, better, Until(margin, 0.95), 600, look=1, simulations=1000)
    false = np.isin(word, [WORDS.index(name) for name in false_words(better - worse, margin)]).sum()
    assert false <= 50


def test_a_fixed_test_that_is_looked_at_after_every_pair_is_wrong_far_more_often() -> None:
    """What the sequential test is there for: peeking at McNemar's p."""
    from scipy.special import bdtr

    steps = np.random.default_rng(2).choice([-1, 1, 0], (1000, 600), p=[0.1, 0.1, 0.8])
    up, down = (steps > 0).cumsum(1), (steps < 0).cumsum(1)
    p = 2 * bdtr(np.minimum(up, down), np.maximum(up + down, 1), 0.5)
    assert (p.min(1) < 0.05).mean() > 0.15


def test_the_watcher_says_what_the_simulation_says() -> None:
    for seed, (worse, better) in enumerate([(0.3, 0.05), (0.0, 0.0), (0.05, 0.3), (0.1, 0.1)]):
        (word,), (used,) = simulate(worse, better, RULE, 480, simulations=1, seed=seed)
        rng, watcher = np.random.default_rng(seed), Watcher(RULE)
        for _ in range(30):
            ((down, up, same),) = rng.multinomial(16, [worse, better, 1 - worse - better], size=1)
            watcher.add([-1.0] * int(down) + [1.0] * int(up) + [0.0] * int(same))
        assert (watcher.word, watcher.result.pairs) == (WORDS[word], used)


def test_graded_differences_give_false_verdicts_at_most_at_the_level() -> None:
    rng, false = np.random.default_rng(3), 0
    values = rng.choice([-0.5, -0.25, 0.0, 0.5, 1.0], (200, 160), p=[0.1, 0.1, 0.7, 0.09, 0.01])  # mean -0.02
    for row in values:
        watcher = Watcher(RULE)
        for d in row:
            watcher.add([float(d)])
        false += watcher.word in {"better", "equivalent"}
    assert false <= 200 * 0.05


def test_a_large_effect_is_found_in_a_handful_of_rounds_and_the_verdict_then_stays() -> None:
    watcher = Watcher(RULE)
    watcher.add([-1.0] * 16)
    assert watcher.word == "worse"
    watcher.add([1.0] * 500)
    assert (watcher.word, watcher.result.pairs) == ("worse", 16)


def test_the_confidence_sequence_covers_the_truth_at_all_times() -> None:
    rng, missed = np.random.default_rng(4), 0
    for _ in range(150):
        d = rng.choice([-1.0, 1.0, 0.0], 320, p=[0.2, 0.1, 0.7])
        bounds = [confidence_sequence(d[:n].tolist()) for n in range(32, 321, 96)]
        missed += any(not low <= -0.1 <= high for low, high in bounds)
    assert missed <= 150 * 0.05
    assert confidence_sequence([]) == (-1.0, 1.0)


def test_the_confidence_sequence_excludes_zero_when_the_verdict_is_worse() -> None:
    watcher = Watcher(RULE)
    while watcher.word == "undecided":
        watcher.add([-1.0, 0.0, 0.0, 1.0, -1.0])
    found = watcher.result
    assert found.word == "worse" and found.high <= 1e-8 and found.low < found.difference < found.high  # type: ignore[operator]


def test_the_rule_is_read_and_printed_back() -> None:
    assert parse_until("1pt@95%") == Until(0.01, 0.95) and str(parse_until("0.5 pts @ 99%")) == "0.5pt@99%"
    for text in ("", "1pt", "95%", "1@95", "0pt@95%", "100pt@95%", "1pt@100%", "1pt@5%", "-1pt@95%", "nanpt@95%"):
        with pytest.raises(AnchorEvalError, match="--until"):
            parse_until(text)


def test_the_printed_table_has_three_times_fewer_samples_for_five_points_and_no_case_over_5_percent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("bench.sequential.CASES", ((0.05, 0.05, 0.05), (0.075, 0.025, 0.02)))
    rows = [line.split() for line in report_sequential().splitlines()[1:3]]
    assert all(float(row[7].rstrip("%")) <= 5 for row in rows)
    assert float(rows[1][0]) == -5.0 and float(rows[1][10].rstrip("x")) >= 3


@pytest.mark.parametrize(("worse", "better"), [(0.060, 0.040), (0.07, 0.05), (0.15, 0.13)])
def test_equivalent_at_exactly_the_margin_counts_as_false(worse: float, better: float) -> None:
    assert false_words(better - worse, 0.02) == ("better", "equivalent")
    assert false_words(better - worse, 0.03) == ("better",)
