"""Every task: never over its length, never without end, and what it says about itself is true."""

from __future__ import annotations

import pytest
from ruler_tasks import TASKS, recipe, samples

from anchoreval.errors import LengthError
from anchoreval.schema import Wrap
from anchoreval.suites import generators
from anchoreval.texts.sources import Sources
from anchoreval.tokenizer import TextTokenizer

ESSAYS = ("niah_single_2", "niah_single_3", "niah_multikey_1", "niah_multivalue", "niah_multiquery")
CHAT = Wrap("<|user|>\n{are} all ", "<|end|>\n")


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("length", [1024, 2048, 4096])
def test_prompts_fit_their_length_and_say_how_long_they_are(
    task: str, length: int, tokenizer: TextTokenizer, generated: Sources
) -> None:
    budget = TASKS[task][2]
    for wrap in (Wrap(), CHAT):
        made = samples(task, length, 6, tokenizer, generated, wrap)
        assert [sample.index for sample in made] == list(range(6))
        for sample in made:
            assert tokenizer.count(sample.prompt) + budget == sample.facts["tokens"] <= length
            assert sample.references and all(sample.references)
            assert sample.facts["haystack"] and sample.facts["units"] > 0


@pytest.mark.parametrize("task", [task for task in TASKS if task not in {"niah_multikey_3"}])
def test_every_task_can_be_made_at_640_tokens_of_a_small_vocabulary(
    task: str, tokenizer: TextTokenizer, generated: Sources
) -> None:
    made = samples(task, 640, 4, tokenizer, generated)
    assert all(tokenizer.count(sample.prompt) + TASKS[task][2] <= 640 for sample in made)


@pytest.mark.parametrize("kind", ["llama-2", "wordpiece", "crossing", "unknown"])
@pytest.mark.parametrize("task", ["niah_multikey_2", "niah_multivalue", "vt", "cwe", "fwe", "qa_2"])
def test_counts_are_exact_for_other_kinds_of_tokenizer(
    kind: str, task: str, kinds: dict[str, TextTokenizer], generated: Sources
) -> None:
    for sample in samples(task, 1536, 3, kinds[kind], generated):
        assert kinds[kind].count(sample.prompt) + TASKS[task][2] == sample.facts["tokens"] <= 1536


@pytest.mark.parametrize("task", TASKS)
def test_a_length_that_is_too_short_names_one_that_works(
    task: str, tokenizer: TextTokenizer, generated: Sources
) -> None:
    generator, _, budget = TASKS[task]
    with pytest.raises(LengthError, match=rf"ruler/{task} cannot be made at 60 tokens: the smallest is \d+") as caught:
        list(generators()[generator](recipe(task, 60, 3, tokenizer, generated)))
    smallest = caught.value.smallest
    assert smallest is not None and smallest > budget + 10
    assert len(samples(task, smallest, 3, tokenizer, generated)) == 3
    with pytest.raises(LengthError):
        samples(task, smallest - 60, 3, tokenizer, generated)


@pytest.mark.parametrize("task", [*ESSAYS, "qa_1", "qa_2"])
@pytest.mark.parametrize("length", [1024, 4096])
def test_generated_haystacks_fill_their_length(
    task: str, length: int, tokenizer: TextTokenizer, generated: Sources
) -> None:
    filled = [sample.facts["tokens"] / length for sample in samples(task, length, 8, tokenizer, generated)]
    assert min(filled) > 0.94 and sum(filled) / len(filled) >= 0.97


@pytest.mark.parametrize("task", TASKS)
def test_the_same_seed_gives_the_same_samples_and_another_gives_others(
    task: str, tokenizer: TextTokenizer, generated: Sources
) -> None:
    first = samples(task, 1024, 3, tokenizer, generated)
    assert samples(task, 1024, 3, tokenizer, generated) == first
    other = list(generators()[TASKS[task][0]](recipe(task, 1024, 3, tokenizer, generated, seed=43)))
    assert [sample.prompt for sample in other] != [sample.prompt for sample in first]


def test_samples_are_made_one_at_a_time(tokenizer: TextTokenizer, generated: Sources) -> None:
    endless = generators()["ruler_niah"](recipe("niah_single_1", 1024, 10**9, tokenizer, generated))
    assert [next(endless).index for _ in range(3)] == [0, 1, 2]
