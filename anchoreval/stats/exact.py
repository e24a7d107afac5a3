"""Whole distributions in place of random throws, for differences that are all multiples of one step.

Scores that count right parts are such: k of q references. None comes out where values are not, or the distribution is
too long to be cheaper than throwing.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Numbers = NDArray[np.float64]

FINEST = 2520  # steps in 1: every share of up to ten parts is a whole number of them
LONGEST = 4096  # values of a sum that are kept


def in_steps(values: Numbers) -> tuple[NDArray[np.int64], float] | None:
    """The values as whole multiples of the largest common step, and that step; None where there is none."""
    import numpy as np

    fine = np.rint(values * FINEST)
    if not fine.any() or np.abs(values * FINEST - fine).max() > 1e-6:
        return None
    whole = fine.astype(np.int64)
    step = int(np.gcd.reduce(whole))
    return whole // step, step / FINEST


def flipped(sizes: Numbers, counts: NDArray[np.int64], observed: float) -> float | None:
    """The share of all ways to sign `counts` times each size whose sum is at least `observed` away from 0."""
    import numpy as np

    found = in_steps(sizes)
    if found is None or int(found[0] @ counts) >= LONGEST:
        return None
    units, step = found
    plus = np.ones(1)  # the probability of each sum of those with a plus
    for unit, count in zip(units.tolist(), counts.tolist(), strict=True):
        spaced = np.zeros(unit * count + 1)
        spaced[::unit] = _fair(count)
        plus = np.convolve(plus, spaced)
    sums = 2 * np.arange(len(plus)) - (len(plus) - 1)
    return min(1.0, float(plus[np.abs(sums) >= round(observed / step)].sum()))


def _fair(count: int) -> Numbers:
    """The probabilities of 0..count heads in so many fair throws."""
    import numpy as np
    from scipy.special import gammaln

    heads = np.arange(count + 1)
    ways = gammaln(count + 1) - gammaln(heads + 1) - gammaln(count - heads + 1)
    return np.asarray(np.exp(ways - count * math.log(2)))
