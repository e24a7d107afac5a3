"""Exact sign-flip distributions in place of random flips, for differences that are all multiples of one step.

Scores that count right parts (k of q references) have such differences. The functions return None for other values, and
if the distribution is so long that random flips are cheaper.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Numbers = NDArray[np.float64]

FINEST = 2520  # steps in 1: a share k/q with q up to 10 is a whole number of steps
LONGEST = 4096  # largest number of values in the distribution of a sum


def in_steps(values: Numbers) -> tuple[NDArray[np.int64], float] | None:
    """Return the values as whole multiples of the largest common step, and that step; None if there is no step."""
    import numpy as np

    fine = np.rint(values * FINEST)
    if not fine.any() or np.abs(values * FINEST - fine).max() > 1e-6:
        return None
    whole = fine.astype(np.int64)
    step = int(np.gcd.reduce(whole))
    return whole // step, step / FINEST


def flipped(sizes: Numbers, counts: NDArray[np.int64], observed: float) -> float | None:
    """Return the share of all sign patterns whose sum is at least `observed` away from 0.

    There are `counts[i]` values of size `sizes[i]`.
    """
    import numpy as np

    multiples = in_steps(sizes)
    if multiples is None or int(multiples[0] @ counts) >= LONGEST:
        return None
    units, step = multiples
    plus = np.ones(1)  # the probability of each sum of those with a plus
    for unit, count in zip(units.tolist(), counts.tolist(), strict=True):
        spaced = np.zeros(unit * count + 1)
        spaced[::unit] = _fair(count)
        plus = np.convolve(plus, spaced)
    sums = 2 * np.arange(len(plus)) - (len(plus) - 1)
    return min(1.0, float(plus[np.abs(sums) >= round(observed / step)].sum()))


def _fair(count: int) -> Numbers:
    """Return the probabilities of 0..count heads in `count` fair throws."""
    import numpy as np
    from scipy.special import gammaln

    heads = np.arange(count + 1)
    ways = gammaln(count + 1) - gammaln(heads + 1) - gammaln(count - heads + 1)
    return np.asarray(np.exp(ways - count * math.log(2)))
