"""The first samples of a task do not depend on how many are asked for, but where the task says so: a run may grow."""

from __future__ import annotations

from pathlib import Path

import pytest

from anchoreval.cards import load_tasks
from anchoreval.errors import LengthError, SourceError
from anchoreval.schema import Sample
from anchoreval.suites import Recipe, generators
from anchoreval.texts.sources import Sources
from anchoreval.tokenizer import load_tokenizer

TOKENIZER = load_tokenizer(Path(__file__).parents[2] / "models" / "anchor-tiny")
TASKS = {task.generator: task for task in reversed(load_tasks()[0].values())}
FEW, MANY = 2, 5


def recipe(generator: str, count: int, length: int) -> Recipe:
    task = TASKS[generator]
    sources = Sources(haystack="generated", offline=True)
    return Recipe(task.address, length, task.max_new_tokens, count, task.args, TOKENIZER, sources)


def samples(generator: str, count: int, length: int) -> list[Sample]:
    return list(generators()[generator](recipe(generator, count, length)))


@pytest.mark.parametrize("generator", sorted(TASKS))
def test_the_first_samples_are_the_same_however_many_are_asked_for(generator: str) -> None:
    length = 1024
    try:
        few = samples(generator, FEW, length)
    except LengthError as error:
        length = error.smallest or 4096
        few = samples(generator, FEW, length)
    except SourceError:
        pytest.skip("made of files, in the order of their lines")
    assert few == samples(generator, MANY, length)[:FEW]


@pytest.mark.parametrize("count", [3, 17, 40])
def test_a_pool_that_stays_gives_the_same_samples_and_one_that_grows_others(count: int) -> None:
    (pool,) = [generator.pool for generator in generators().values() if generator.pool]
    same = samples("ruler_qa", FEW, 512) == samples("ruler_qa", count, 512)[:FEW]
    assert same == (pool(recipe("ruler_qa", FEW, 512)) == pool(recipe("ruler_qa", count, 512)))
