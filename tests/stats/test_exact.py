"""Exact distributions of graded differences against scipy's enumeration."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats as reference

from anchoreval import stats
from anchoreval.stats.paired import flipped


def counted(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    found, counts = np.unique(np.round(values, 12), return_counts=True)
    return found, counts


@pytest.mark.parametrize("parts", [2, 3, 4, 5])
def test_the_flips_of_graded_differences_are_scipys_whole_enumeration(parts: int) -> None:
    values = np.random.default_rng(parts).integers(1, parts + 1, 14) / parts * np.where(np.arange(14) < 10, 1, -1)
    found = reference.permutation_test((values,), np.sum, permutation_type="samples", n_resamples=np.inf)
    assert flipped(*counted(abs(values)), abs(float(values.sum()))) == pytest.approx(found.pvalue, rel=1e-9)
    assert stats.sign_flip(values.tolist()) == pytest.approx(found.pvalue, rel=1e-9)


def test_values_without_a_common_step_are_thrown_as_before() -> None:
    values = np.random.default_rng(1).normal(0.1, 0.4, 40)
    assert flipped(*counted(abs(values)), 1.0) is None
    assert flipped(np.array([0.5, 0.75, 1.0]), np.array([1, 1, 1]), 2.25) == 2 / 2**3  # in steps of 0.25
    assert 0 < stats.sign_flip(values.tolist()) <= 1
