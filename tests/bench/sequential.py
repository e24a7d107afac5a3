"""`bench sequential`: how often `run --until` is wrong, and how many samples it takes, on simulated right/wrong."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from anchoreval.stats.intervals import SAME, Z80, Z95
from anchoreval.stats.sequential import Until, bets

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

WORDS = ("undecided", "worse", "better", "equivalent")
SIMULATIONS, SEED, LOOK = 1_000, 42, 16
CASES = (  # (share of pairs in which only the baseline is right, share in which only the arm is right, margin)
    (0.000, 0.000, 0.01),
    (0.050, 0.050, 0.02),
    (0.055, 0.045, 0.01),
    (0.060, 0.040, 0.02),
    (0.075, 0.025, 0.01),
    (0.075, 0.025, 0.02),
    (0.150, 0.100, 0.02),
    (0.125, 0.025, 0.01),
)


@dataclass(frozen=True, slots=True)
class Figures:
    """The results of the simulated runs of one case: share of each word, share of false words, mean samples used.

    `fixed` is the number of pairs that a fixed design needs for 80% power at the margin, `fixed_effect` the number that
    it needs at the true effect (None for no effect).
    """

    effect: float
    discordant: float
    margin: float
    shares: tuple[float, ...]
    false: float
    used: float
    fixed: int
    fixed_effect: int | None


def simulate(
    worse: float,
    better: float,
    rule: Until,
    cap: int,
    *,
    simulations: int = SIMULATIONS,
    look: int = LOOK,
    seed: int = SEED,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return for each simulated run the index of its verdict in WORDS and the pairs used.

    A run looks after every `look` pairs, up to `cap`. A pair is -1 with probability `worse`, +1 with `better`, else 0.
    """
    import numpy as np

    rng, alpha = np.random.default_rng(seed), 1 - rule.level
    word, used = np.zeros(simulations, np.int64), np.full(simulations, cap)
    live, counts = np.arange(simulations), np.zeros((simulations, 3), np.int64)
    above, below = np.zeros(simulations, bool), np.zeros(simulations, bool)
    for n in range(look, cap + 1, look):
        counts[live] += rng.multinomial(look, [worse, better, 1 - worse - better], size=len(live))
        down, up, same = counts[live].T
        is_better = _log_capital(up, down, same, 0.0) >= math.log(2 / alpha)
        is_worse = _log_capital(down, up, same, 0.0) >= math.log(2 / alpha)
        above[live] |= _log_capital(up, down, same, -rule.margin) >= math.log(1 / alpha)
        below[live] |= _log_capital(down, up, same, -rule.margin) >= math.log(1 / alpha)
        verdicts = np.select([is_worse, is_better, above[live] & below[live]], [1, 2, 3], 0)
        word[live], used[live[verdicts > 0]] = verdicts, n
        live = live[verdicts == 0]
        if not len(live):
            break
    return word, used


def _log_capital(
    up: NDArray[np.int64], down: NDArray[np.int64], same: NDArray[np.int64], m: float
) -> NDArray[np.float64]:
    """Return the log of sequential.Capital for many runs at once; `up`, `down`, `same` count the +1, -1 and 0."""
    import numpy as np

    grid = np.array(bets())
    with np.errstate(divide="ignore"):
        steps = [np.maximum(np.log(np.maximum(1 + grid[:, 0] * (d - m), 0)), -1e6) for d in (1, -1, 0)]
    logs = np.outer(up, steps[0]) + np.outer(down, steps[1]) + np.outer(same, steps[2])
    top = logs.max(axis=1, keepdims=True)
    capital: NDArray[np.float64] = top[:, 0] + np.log(np.exp(logs - top) @ grid[:, 1])
    return capital


def false_words(effect: float, margin: float) -> tuple[str, ...]:
    """Return the verdicts that are false if `effect` is the true mean difference."""
    if abs(effect) < SAME:
        return ("worse", "better")
    wrong = "better" if effect < 0 else "worse"
    return (wrong,) if abs(effect) < margin - SAME else (wrong, "equivalent")


def figures(worse: float, better: float, margin: float) -> Figures:
    """Simulate one case; a run takes at most the pairs with which a fixed design has 80% power at the margin."""
    effect, discordant = better - worse, worse + better

    def fixed(size: float) -> int:
        return math.ceil((Z95 + Z80) ** 2 * max(discordant - effect**2, size * (1 - size)) / size**2)

    cap = fixed(margin)
    word, used = simulate(worse, better, Until(margin, 0.95), cap)
    shares = tuple(float((word == i).mean()) for i in range(len(WORDS)))
    false = sum(shares[WORDS.index(name)] for name in false_words(effect, margin))
    known = fixed(abs(effect)) if abs(effect) > SAME else None
    return Figures(effect, discordant, margin, shares, false, float(used.mean()), cap, known)


def report_sequential() -> str:
    """Return a table of all cases, and what its columns mean."""
    heads = (f"{'effect':>7}", f"{'differ':>7}", f"{'margin':>7}", *(f"{word:>11}" for word in WORDS))
    lines = ["".join((*heads, f"{'false':>7}{'samples':>9}{'fixed':>7}{'ratio':>7}{'fixed for effect':>18}"))]
    for row in (figures(*case) for case in CASES):
        place = f"{100 * row.effect:+7.1f}{100 * row.discordant:6.0f}%{100 * row.margin:7.0f}"
        shares = "".join(f"{share:11.1%}" for share in row.shares)
        size = f"{row.used:9.0f}{row.fixed:7d}{row.fixed / row.used:6.1f}x{row.fixed_effect or '-':>18}"
        lines.append(f"{place}{shares}{row.false:7.1%}{size}")
    return "\n".join(
        [
            *lines,
            f"{SIMULATIONS:,} simulated cells each, a look after every {LOOK} pairs, level 95%. fixed: pairs for 80%",
            "power at the margin, which is also where the sequential run gives up; ratio: fixed / samples.",
            "fixed for effect: pairs for 80% power had the very effect been known beforehand.",
        ]
    )
