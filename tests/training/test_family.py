"""examples/family: a whole family of a step, on a random model; a kill resumes, a second call does nothing."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest
from tiny_training import write_base

from anchoreval.training.recipes import recipe_of

FOLDER = Path(__file__).parents[2] / "examples" / "family"


@pytest.fixture(scope="module")
def driver() -> ModuleType:
    sys.path.insert(0, str(FOLDER))
    try:
        import family
    finally:
        sys.path.remove(str(FOLDER))
    return family


@pytest.fixture(scope="module")
def small(driver: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> object:
    place = tmp_path_factory.mktemp("family")
    base = write_base(place / "base", max_position_embeddings=512)
    numbers = {"length": 512, "batch_tokens": 512, "save_every": 1, "corpus_tokens": 4000, "steps": 1}
    sizes = driver.Sizes(
        equal_tokens=1, equal_time=2, lengths=(512,), questions=2, control_seeds=1, more_seeds=0, long_seeds=1,
        upsample=(400, 0.5), first_token_tokens=64, ruler_samples=1, nll_texts=2,
    )  # fmt: skip
    card = recipe_of("variants-cpu").model_copy(update=numbers)
    return driver.Family(place / "out", place / "results", sizes, str(base), card)


def test_a_family_is_whole(driver: ModuleType, small: object) -> None:
    driver.run(small, 1, 1)
