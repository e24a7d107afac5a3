"""What the probe measures of one layer, by name. Imports no torch, so that code that writes tables can read the names.

Shape letters: H query heads, L keys. Source of D and D_logit: arXiv 2411.13476, equations 4 and 5.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Difference:
    """The differences between two computations of one layer; each tensor is [H], those by key are [L], all fp64.

    D             equation 4: sum over keys of the mean |weight difference| over the queries that see the key
    D_logit       equation 5: mean over queries of the |score difference| of the first key
    logit_first   the same over queries that also see another key; logit_other: per other key, same queries
    logit_top     the same for the top key. The top key is not the first key and must be seen by at least half of the
                  measured queries; it has the largest mean weight over the queries that see it. If the head has a
                  second sink-like key, this is it
    weight_first, weight_other, weight_top   the same for weights
    share_first   the first key's part of the sum of all |weight differences|
    mass_first, mass_top   mean weight of the first key and of the top key, in the first of the two computations
    key_logit, key_weight  per key: mean over the queries that see it, summed over heads
    """

    D: Tensor
    D_logit: Tensor
    logit_first: Tensor
    logit_other: Tensor
    logit_top: Tensor
    weight_first: Tensor
    weight_other: Tensor
    weight_top: Tensor
    share_first: Tensor
    mass_first: Tensor
    mass_top: Tensor
    key_logit: Tensor
    key_weight: Tensor


MEASURES = tuple(field.name for field in fields(Difference))
#: The measures with one value per key, and those with one value per head.
BY_KEY = tuple(name for name in MEASURES if name.startswith("key_"))
BY_HEAD = tuple(name for name in MEASURES if name not in BY_KEY)
