"""Records -> scores -> differences of subjects -> verdicts; the sequential test. Pure: no files, no model, no torch.

Values are fractions 0..1 (differences -1..1); boards multiply by 100. numpy and scipy are imported when needed.

subject    what is compared: an arm of a model, in a form of prompts, on an engine
scores     records as columns of numbers
paired     the scores of two subjects -> their difference
contrasts  differences that are tested together -> rows with verdicts; every page and file takes its rows from here
"""

from anchoreval.stats.averages import Sampled, sampled
from anchoreval.stats.cells import Asked, Cell, average_ends, cells, counted, figures
from anchoreval.stats.contrasts import MARGIN, Cells, Compared, Comparison, Contrast, Row, Slots, family, paired
from anchoreval.stats.intervals import Method, detectable, difference_interval, mean_interval, spread
from anchoreval.stats.paired import ALONE, UNSCORED, Difference, judged, left_out, matched, why_lost, with_logprobs
from anchoreval.stats.scores import Place, Scores, by_arm, per_token, scores_of, single_depth
from anchoreval.stats.significance import holm, mcnemar, mean_p, sign_flip, sign_test
from anchoreval.stats.sources import cluster_of, source_of
from anchoreval.stats.subject import Subject, Trained, labels
from anchoreval.stats.verdicts import NoiseFloor, equivalent, logprob_word, noise_floor, pairs_needed, verdict

__all__ = [
    "ALONE", "MARGIN", "UNSCORED", "Asked", "Cell", "Cells", "Compared", "Comparison", "Contrast", "Difference",
    "Method", "NoiseFloor", "Place", "Row", "Sampled", "Scores", "Slots", "Subject", "Trained", "average_ends",
    "by_arm", "cells", "cluster_of", "counted", "detectable", "difference_interval", "equivalent", "family",
    "figures", "holm", "judged", "labels", "left_out", "logprob_word", "matched", "mcnemar", "mean_interval",
    "mean_p", "noise_floor", "paired", "pairs_needed", "per_token", "sampled", "scores_of", "sign_flip",
    "sign_test", "single_depth", "source_of", "spread", "verdict", "why_lost", "with_logprobs",
]  # fmt: skip
