"""Every generated task at 131,072 tokens, and with `make test-long` at 1,048,576: made at all, and full."""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from types import ModuleType

import pytest
from babilong_files import write_babi

from anchoreval.cards import Task, load_tasks
from anchoreval.errors import TooLong
from anchoreval.runs.prompts import LengthRule
from anchoreval.schema import Sample
from anchoreval.suites import generator_of, generators
from anchoreval.suites.recipe import Recipe
from anchoreval.suites.ruler import words as ruler_words
from anchoreval.suites.ruler.qa import QuestionMaker
from anchoreval.suites.ruler.words import PAIRS
from anchoreval.suites.ruler_balanced import words as balanced_words
from anchoreval.suites.ruler_balanced.balanced import sample
from anchoreval.suites.ruler_balanced.qa import AmongDocuments
from anchoreval.texts import prose
from anchoreval.texts.draft import Tally
from anchoreval.texts.filling import new
from anchoreval.texts.questions import Question, Questions
from anchoreval.texts.sources import Sources
from anchoreval.texts.wordlists import distinct_words
from anchoreval.tokenizer import TextTokenizer, load_tokenizer

CARDS = load_tasks()[0]
SUITES = ("ruler", "ruler-balanced", "niah", "recall")
TASKS = [address for address, task in CARDS.items() if task.suite in SUITES] + ["babilong/qa1"]
#: Upstream's steps, which leave more of a length than the others do: coded words in steps of a 32nd.
LEAST = {"ruler/fwe": 0.75, "ruler/niah_multikey_3": 0.98}
FULL = 0.99
MOST_AT_ONCE = 1 << 20


@pytest.fixture(scope="module")
def tiny() -> TextTokenizer:
    return load_tokenizer(Path(__file__).parents[2] / "models" / "anchor-tiny")


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    folder = write_babi(tmp_path_factory.mktemp("babi"))
    return Sources(folder, haystack="generated", cache=folder / "none", offline=True)


def first(task: Task, length: int, tokenizer: TextTokenizer, sources: Sources) -> Sample:
    """The first sample of a task as a run makes it."""
    rule = LengthRule()
    recipe = Recipe(
        task.address, length, task.max_new_tokens, 1, task.args, tokenizer, sources,
        outside=rule.anchor + rule.template, uncounted=rule.anchor if generator_of(task).published else 0,
    )  # fmt: skip
    (made,) = generators()[task.generator](recipe)
    return rule.settled(made, task, tokenizer, None)


def full(address: str, length: int, tokenizer: TextTokenizer, sources: Sources) -> Sample:
    made = first(CARDS[address], length, tokenizer, sources)
    assert tokenizer.count(made.prompt) + made.max_new_tokens == made.facts["tokens"] < length
    assert made.facts["tokens"] >= LEAST.get(address, FULL) * length
    return made


@pytest.mark.parametrize("address", TASKS)
def test_every_generated_task_fills_131072_tokens(address: str, tiny: TextTokenizer, sources: Sources) -> None:
    full(address, 131_072, tiny, sources)


@pytest.mark.long
@pytest.mark.parametrize("address", TASKS)
def test_every_generated_task_fills_1048576_tokens(address: str, tiny: TextTokenizer, sources: Sources) -> None:
    full(address, MOST_AT_ONCE, tiny, sources)


@pytest.mark.parametrize(("address", "module"), [("ruler/cwe", ruler_words), ("ruler-balanced/cwe", balanced_words)])
def test_common_words_go_on_behind_their_list_and_the_record_says_so(
    address: str, module: ModuleType, tiny: TextTokenizer, sources: Sources, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = distinct_words("3.0.1")[::20]
    plain = first(CARDS[address], 16_384, tiny, sources)
    monkeypatch.setattr(module, "distinct_words", lambda _: short)
    made = full(address, 16_384, tiny, sources)
    assert made.facts["words"] == PAIRS and made.facts["units"] > len(short) and "words" not in plain.facts
    assert set(made.references) <= set(short), "the answers are words of the list"


def test_names_of_towns_are_the_short_ones_until_all_are_given_and_then_longer_ones_that_hold_none() -> None:
    short = {"".join(parts) for parts in itertools.product(*prose.SYLLABLES)}
    rng = random.Random(3)
    names = prose._Names(rng, people=False)
    given = [names.new() for _ in range(len(short) + 500)]
    again, plain = random.Random(3), list[str]()
    while len(plain) < 900:  # as names were drawn before there were longer ones
        drawn = "".join(again.choice(part) for part in prose.SYLLABLES)
        plain += [drawn] if drawn not in plain else []
    assert given[:900] == plain
    assert set(given[: len(short)]) == short and len(set(given)) == len(given)
    lowered = {name.lower() for name in short}
    for name in given[len(short) :]:
        inner = itertools.combinations(range(len(name) + 1), 2)
        assert not any(name[start:end].lower() in lowered for start, end in inner)


def test_a_quiz_of_ten_thousand_documents_has_every_name_once() -> None:
    titles = prose.quiz(1, hops=2, size=10_000).titles
    assert len(set(titles)) == len(titles) == 10_000


def test_nothing_new_to_draw_is_an_error_and_no_endless_loop() -> None:
    with pytest.raises(TooLong, match="there are no more pebbles"):
        new(lambda: "pebble", lambda drawn: drawn != "pebble", "pebbles")


def test_a_balanced_task_without_more_texts_says_about_the_longest_length(tiny: TextTokenizer) -> None:
    texts = tuple(f"The lamp number {at} stood beside the {word}." for at, word in enumerate(("oak", "elm", "ash")))
    maker = QuestionMaker(
        Questions(texts, [Question("What stood beside the oak?", ("lamp number 0",), (0,))]), random.Random()
    )
    recipe = Recipe("own/qa", 4096, 32, 1, {}, tiny, Sources(haystack="generated", offline=True))
    with pytest.raises(TooLong) as caught:
        sample(recipe, Tally(tiny), 0, lambda rng, aims: AmongDocuments(maker, 0, rng, aims, recipe.room), 1, {})
    assert caught.value.longest is not None and 100 < caught.value.longest < 300
