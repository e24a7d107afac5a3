"""p values of paired differences, and Holm's correction over tests that are made together."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

from anchoreval.stats.exact import flipped
from anchoreval.stats.intervals import SAME, SEED, standard_error

FLIPS = 9_999
ENUMERATED = 12  # up to so many clusters that differ, all sign patterns are enumerated


def sign_test(up: int, down: int) -> float:
    """Return the two-sided exact p of `up` against `down` fair coin throws; 1.0 without throws."""
    from scipy.special import bdtr

    return 1.0 if up + down == 0 else min(1.0, 2 * float(bdtr(min(up, down), up + down, 0.5)))


def mcnemar(up: int, down: int) -> float:
    """Return the two-sided mid-p of `up` against `down` right/wrong pairs that differ; 1.0 if none does.

    It is the exact p less half the probability of exactly this outcome (Fagerland, Lydersen & Laake 2013). Its size is
    under 5% in every cell of docs/statistics.md, where the exact test has 1 to 4%, and up to 7.7% if almost all pairs
    differ (`by_mid_p`).
    """
    from scipy.special import bdtr

    few, n = min(up, down), up + down
    if up == down:
        return 1.0
    return float(bdtr(few, n, 0.5) + (bdtr(few - 1, n, 0.5) if few else 0.0))


def sign_flip(differences: Sequence[float], clusters: Sequence[Hashable] | None = None) -> float:
    """Return the two-sided p of "the arms are exchangeable" by flipping the sign of each cluster's sum (Fisher 1935).

    It is exact for up to 12 clusters that differ, and if all sums are multiples of one step (exact.py). Otherwise it
    comes from 9,999 random flips with a fixed seed, and the observed sum is counted too.
    """
    import numpy as np

    named = clusters if clusters is not None else range(len(differences))
    sums: dict[Hashable, float] = dict.fromkeys(named, 0.0)
    for difference, cluster in zip(differences, named, strict=True):
        sums[cluster] += difference
    sizes, counts = np.unique(
        [round(abs(value), 12) for value in sums.values() if abs(value) > SAME], return_counts=True
    )
    observed, units = abs(math.fsum(sums.values())), int(counts.sum())
    if units == 0:
        return 1.0
    if units <= ENUMERATED:
        signs = 1 - 2 * (np.arange(2**units)[:, None] >> np.arange(units) & 1)
        return float(np.mean(np.abs(signs @ np.repeat(sizes, counts)) >= observed - 1e-9))
    if (exact := flipped(sizes, counts, observed)) is not None:
        return exact
    thrown = np.random.default_rng(SEED).binomial(counts, 0.5, size=(FLIPS, len(sizes)))
    reached = int((np.abs((2 * thrown - counts) @ sizes) >= observed - 1e-9).sum())
    return (1 + reached) / (1 + FLIPS)


def mean_p(
    values: Sequence[float], clusters: Sequence[Hashable] | None = None, strata: Sequence[Hashable] | None = None
) -> float | None:
    """Return the two-sided p of a mean against 0 by a cluster-robust t test; None if the values do not vary."""
    from scipy.special import stdtr

    error, df = standard_error(values, clusters, strata)
    return None if error is None else float(2 * stdtr(df, -abs(math.fsum(values) / len(values)) / error))


def holm(ps: Sequence[float | None]) -> list[float | None]:
    """Return Holm's step-down adjusted p values in the given order; None (no test) stays None and is not counted.

    The k-th smallest of m values is multiplied by m - k + 1, cut to 1 and made monotone (Holm 1979).
    """
    order = sorted((p, i) for i, p in enumerate(ps) if p is not None)
    adjusted: list[float | None] = [None] * len(ps)
    highest = 0.0
    for rank, (p, i) in enumerate(order):
        highest = max(highest, min(1.0, p * (len(order) - rank)))
        adjusted[i] = highest
    return adjusted
