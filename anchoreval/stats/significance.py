"""p values of paired differences, and Holm's correction over the questions that are asked together."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

from anchoreval.stats.exact import flipped
from anchoreval.stats.intervals import SAME, SEED, standard_error

FLIPS = 9_999
ENUMERATED = 12  # so many clusters that differ are flipped in every possible way


def sign_test(up: int, down: int) -> float:
    """Two-sided exact p of `up` against `down` fair coin throws; 1.0 when there are none."""
    from scipy.special import bdtr

    return 1.0 if up + down == 0 else min(1.0, 2 * float(bdtr(min(up, down), up + down, 0.5)))


def mcnemar(up: int, down: int) -> float:
    """Two-sided mid-p of `up` against `down` right/wrong pairs that differ; 1.0 when there are none.

    The exact p less half the chance of just this outcome (Fagerland, Lydersen & Laake 2013): its size is under 5% in
    every cell of docs/statistics.md, where the exact test's is 1 to 4, and up to 7.7% where almost all pairs differ
    (`by_mid_p`).
    """
    from scipy.special import bdtr

    few, n = min(up, down), up + down
    if up == down:
        return 1.0
    return float(bdtr(few, n, 0.5) + (bdtr(few - 1, n, 0.5) if few else 0.0))


def sign_flip(differences: Sequence[float], clusters: Sequence[Hashable] | None = None) -> float:
    """Two-sided p of "the arms are exchangeable": the sum of differences against those with the sign of each cluster
    thrown (Fisher 1935).

    Exact up to 12 clusters that differ and where all are multiples of one step (`exact`), else from 9,999 throws with a
    fixed seed, the observed one counted.
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
    """Two-sided p of a mean against 0, Student's t, cluster-robust; None where the values do not vary."""
    from scipy.special import stdtr

    error, df = standard_error(values, clusters, strata)
    return None if error is None else float(2 * stdtr(df, -abs(math.fsum(values) / len(values)) / error))


def holm(ps: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down adjusted p values, in the order given; None (no test was made) stays None and is not counted.

    Source: Holm 1979; the k-th smallest of m is multiplied by m - k + 1, cut to 1 and made monotone.
    """
    order = sorted((p, i) for i, p in enumerate(ps) if p is not None)
    found: list[float | None] = [None] * len(ps)
    highest = 0.0
    for rank, (p, i) in enumerate(order):
        highest = max(highest, min(1.0, p * (len(order) - rank)))
        found[i] = highest
    return found
