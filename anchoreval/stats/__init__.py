"""Records -> scores -> differences of subjects -> verdicts; the sequential test. Pure: no files, no model, no torch.

Values are fractions 0..1 (differences -1..1); boards multiply by 100. numpy and scipy are imported when needed.

cells      records as columns of numbers, and the figures of these
paired     the scores of two subjects -> their difference
verdicts   a difference -> words
contrasts  subjects, and differences that are tested together -> rows with verdicts; every page takes its rows from here
"""

from anchoreval.stats.cells import (
    Asked,
    Cell,
    Place,
    Sampled,
    Scores,
    average_ends,
    by_arm,
    cells,
    cluster_of,
    counted,
    figures,
    per_token,
    sampled,
    scores_of,
    single_depth,
    source_of,
)
from anchoreval.stats.contrasts import (
    MARGIN,
    Cells,
    Compared,
    Comparison,
    Contrast,
    Row,
    Slots,
    Subject,
    Trained,
    family,
    labels,
    paired,
    variant_names,
)
from anchoreval.stats.intervals import Method, difference_interval, mean_interval, t_test
from anchoreval.stats.paired import (
    ALONE,
    UNSCORED,
    Difference,
    holm,
    judged,
    matched,
    mcnemar,
    sign_flip,
    sign_test,
    why_lost,
    with_logprobs,
)
from anchoreval.stats.verdicts import NoiseFloor, equivalent, logprob_word, noise_floor, pairs_needed, verdict

__all__ = [
    "ALONE", "MARGIN", "UNSCORED", "Asked", "Cell", "Cells", "Compared", "Comparison", "Contrast", "Difference",
    "Method", "NoiseFloor", "Place", "Row", "Sampled", "Scores", "Slots", "Subject", "Trained", "average_ends",
    "by_arm", "cells", "cluster_of", "counted", "difference_interval", "equivalent", "family", "figures", "holm",
    "judged", "labels", "logprob_word", "matched", "mcnemar", "mean_interval", "noise_floor", "paired",
    "pairs_needed", "per_token", "sampled", "scores_of", "sign_flip", "sign_test", "single_depth", "source_of",
    "t_test", "variant_names", "verdict", "why_lost", "with_logprobs",
]  # fmt: skip
