"""Records -> cells, paired differences, verdicts and the sequential test. Pure: no files, no model, no torch.

Values are fractions 0..1 (differences -1..1); boards multiply by 100. numpy and scipy are imported when needed.
"""

from anchoreval.stats.averages import Sampled, sampled
from anchoreval.stats.cells import Asked, Cell, average_ends, cells, counted, per_token, per_token_of, put
from anchoreval.stats.contrasts import (
    MARGIN,
    Contrast,
    Row,
    Side,
    beyond_of,
    contrast,
    family,
    placebo_of,
    sides,
)
from anchoreval.stats.intervals import (
    Method,
    detectable,
    difference_interval,
    mean_interval,
    spread,
)
from anchoreval.stats.paired import (
    ALONE,
    UNSCORED,
    Comparison,
    Difference,
    Place,
    judged,
    left_out,
    paired,
    paired_sides,
    why_lost,
    with_logprobs,
)
from anchoreval.stats.significance import holm, mcnemar, mean_p, sign_flip, sign_test
from anchoreval.stats.sources import cluster_of, source_of, unit_of
from anchoreval.stats.verdicts import (
    NoiseFloor,
    Verdict,
    equivalent,
    logprob_word,
    noise_floor,
    pairs_needed,
    verdict,
)

__all__ = [
    "ALONE",
    "MARGIN",
    "UNSCORED",
    "Asked",
    "Cell",
    "Comparison",
    "Contrast",
    "Difference",
    "Method",
    "NoiseFloor",
    "Place",
    "Row",
    "Sampled",
    "Side",
    "Verdict",
    "average_ends",
    "beyond_of",
    "cells",
    "cluster_of",
    "contrast",
    "counted",
    "detectable",
    "difference_interval",
    "equivalent",
    "family",
    "holm",
    "judged",
    "left_out",
    "logprob_word",
    "mcnemar",
    "mean_interval",
    "mean_p",
    "noise_floor",
    "paired",
    "paired_sides",
    "pairs_needed",
    "per_token",
    "per_token_of",
    "placebo_of",
    "put",
    "sampled",
    "sides",
    "sign_flip",
    "sign_test",
    "source_of",
    "spread",
    "unit_of",
    "verdict",
    "why_lost",
    "with_logprobs",
]
