"""The balanced tasks: full, spread over depth, without a second key, each sample for itself."""

from __future__ import annotations

import re
from collections import Counter
from itertools import chain, pairwise
from pathlib import Path

import pytest

from anchoreval.cards import load_tasks
from anchoreval.errors import LengthError, SourceError
from anchoreval.model import Model
from anchoreval.prompt import to_request
from anchoreval.runs.dealing import source
from anchoreval.runs.prompts import Cell, Prompts, Spec
from anchoreval.schema import Sample, Tokenizer, Wrap
from anchoreval.stats.cells import QA_BLOCK
from anchoreval.suites import Recipe, generators, scorers
from anchoreval.suites.recipe import BASE
from anchoreval.suites.ruler.niah import NOISE
from anchoreval.suites.ruler.words import appearances
from anchoreval.suites.ruler_balanced import _SAMPLERS
from anchoreval.suites.ruler_balanced.balanced import FILL, depths
from anchoreval.suites.ruler_balanced.qa import BLOCK
from anchoreval.suites.ruler_balanced.words import least_clear
from anchoreval.texts.sources import Sources
from anchoreval.tokenizer import TextTokenizer, load_tokenizer

CARDS = {task.name: task for task in load_tasks()[0].values() if task.suite == "ruler-balanced"}
LINES = ("niah_single_1", "niah_multikey_2", "niah_multikey_3")
ESSAYS = ("niah_single_2", "niah_single_3", "niah_multikey_1", "niah_multivalue", "niah_multiquery")
LISTS = ("cwe", "fwe")
TINY = Path(__file__).parents[3] / "models" / "anchor-tiny"


def recipe(
    task: str, length: int, count: int, tokenizer: Tokenizer, sources: Sources, wrap: Wrap = BASE, seed: int = 42
) -> Recipe:
    card = CARDS[task]
    return Recipe(card.address, length, card.max_new_tokens, count, card.args, tokenizer, sources, wrap, seed)


def made(asked: Recipe) -> list[Sample]:
    return list(generators()[CARDS[asked.task.split("/")[1]].generator](asked))


@pytest.fixture(scope="module")
def tiny() -> TextTokenizer:
    return load_tokenizer(TINY)


def document(sample: Sample) -> str:
    """The haystack, the worked example left out."""
    start = max(place for place, segment in enumerate(sample.segments) if segment.role == "preamble")
    return "".join(segment.text for segment in sample.segments[start + 1 :] if segment.role in {"document", "line"})


def test_the_suite_has_rulers_tasks_with_their_arguments_budgets_and_scorers() -> None:
    upstream = {task.name: task for task in load_tasks()[0].values() if task.suite == "ruler"}
    assert list(CARDS) == list(upstream)
    for name, task in CARDS.items():
        same = {"args", "scorer", "reference", "max_new_tokens", "samples", "lengths"}
        assert task.model_dump(include=same) == upstream[name].model_dump(include=same)


@pytest.mark.parametrize("task", CARDS)
@pytest.mark.parametrize("length", [512, 1024, 2048, 4096])
def test_every_sample_fills_its_length_and_is_never_over_it(
    task: str,
    length: int,
    golden_tokenizer: TextTokenizer,
    golden_sources: Sources,
    tiny: TextTokenizer,
    generated: Sources,
) -> None:
    chat = Wrap("<|user|>\nYou are {kind}. ", "<|end|>\n")
    for tokenizer, sources, wrap in (
        (golden_tokenizer, golden_sources, BASE),
        (golden_tokenizer, generated, chat),
        (tiny, generated, BASE),
    ):
        for sample in made(recipe(task, length, 4, tokenizer, sources, wrap)):
            tokens = tokenizer.count(sample.prompt) + CARDS[task].max_new_tokens
            assert tokens == sample.facts["tokens"] and FILL * length <= tokens <= length
            assert sample.prompt.startswith(wrap.opening) and sample.prompt.count("You are {kind}.") == bool(
                wrap.opening
            )


@pytest.mark.parametrize("task", CARDS)
def test_a_sample_is_the_same_alone_and_among_others(
    task: str, tiny: TextTokenizer, generated: Sources, golden_sources: Sources
) -> None:
    for sources in (generated, golden_sources):
        if sources is golden_sources and task not in {*ESSAYS, "qa_1", "qa_2"}:
            continue
        among = made(recipe(task, 1024, 20, tiny, sources))
        alone = _SAMPLERS[CARDS[task].generator](recipe(task, 1024, 1, tiny, sources))
        assert alone(7) == among[7] and alone(3) == among[3]
        assert made(recipe(task, 1024, 8, tiny, sources)) == among[:8]
        assert [sample.id for sample in among] == [f"ruler-balanced/{task}@1024#{index}" for index in range(20)]
        assert len({sample.prompt for sample in among}) == 20


@pytest.mark.parametrize("task", CARDS)
def test_another_seed_gives_other_samples(task: str, tiny: TextTokenizer, generated: Sources) -> None:
    first = made(recipe(task, 1024, 3, tiny, generated))
    other = made(recipe(task, 1024, 3, tiny, generated, seed=43))
    assert not {sample.prompt for sample in first} & {sample.prompt for sample in other}
    assert all(one.facts["aimed_depths"] != two.facts["aimed_depths"] for one, two in zip(first, other, strict=True))


@pytest.mark.parametrize("answers", [1, 5])
def test_ten_samples_aim_once_at_each_tenth_and_a_hundred_once_at_each_hundredth(
    answers: int, tiny: TextTokenizer, generated: Sources
) -> None:
    asked = recipe("vt", 1024, 1, tiny, generated)
    for start in (0, 10, 370):
        tenths = Counter(
            int(10 * depth) for index in range(start, start + 10) for depth in depths(asked, index, answers)
        )
        assert tenths == dict.fromkeys(range(10), answers)
    for start in (0, 300):
        aimed = chain.from_iterable(depths(asked, index, answers) for index in range(start, start + 100))
        assert Counter(int(100 * depth) for depth in aimed) == dict.fromkeys(range(100), answers)
    assert [depths(asked, index, 1) for index in range(10)] != [depths(asked, index + 10, 1) for index in range(10)]


@pytest.mark.parametrize("task", [task for task in CARDS if not task.startswith("qa")])
def test_every_tenth_of_the_depth_holds_as_many_answers(
    task: str, golden_tokenizer: TextTokenizer, generated: Sources
) -> None:
    samples = made(recipe(task, 4096, 20, golden_tokenizer, generated))
    answers = len(samples[0].facts["aimed_depths"])
    tenths = Counter(int(10 * depth) for sample in samples for depth in sample.facts["depths"])
    off = 2 if task in LISTS else 0  # two common words that aim at the same slot stand beside each other
    assert all(abs(tenths[tenth] - 2 * answers) <= off for tenth in range(10))


@pytest.mark.parametrize("task", ["qa_1", "qa_2"])
def test_the_documents_that_answer_stand_at_every_place_as_often(
    task: str, golden_tokenizer: TextTokenizer, golden_sources: Sources
) -> None:
    for sample in made(recipe(task, 4096, 20, golden_tokenizer, golden_sources)):
        sizes = [len(segment.text) for segment in sample.segments if segment.role == "document"]
        free = 1 - sum(sizes[_place(sample, depth)] for depth in sample.facts["depths"]) / sum(sizes)
        for aimed, depth in zip(sample.facts["aimed_depths"], sample.facts["depths"], strict=True):
            assert abs(aimed * free - depth) < 1 - free + max(sizes) / sum(sizes)
    places = Counter(
        int(5 * _place(sample, depth) / sample.facts["documents"])
        for sample in made(recipe(task, 4096, 40, golden_tokenizer, golden_sources))
        for depth in sample.facts["depths"]
    )
    expected = sum(places.values()) / 5
    assert all(0.6 * expected <= places[fifth] <= 1.4 * expected for fifth in range(5))


def _place(sample: Sample, depth: float) -> int:
    """The document that begins at a depth."""
    sizes = [len(segment.text) for segment in sample.segments if segment.role == "document"]
    starts = [sum(sizes[:place]) / sum(sizes) for place in range(len(sizes))]
    return min(range(len(starts)), key=lambda place: abs(starts[place] - depth))


@pytest.mark.parametrize("task", CARDS)
def test_depths_and_token_positions_are_those_of_the_prompt(
    task: str, golden_tokenizer: TextTokenizer, generated: Sources
) -> None:
    for sample in made(recipe(task, 2048, 4, golden_tokenizer, generated, Wrap("<|user|> ", " <|end|>"))):
        text = document(sample)
        begins = sample.prompt.rindex(text)
        for place, depth, position in zip(
            _answer_places(sample, text), sample.facts["depths"], sample.facts["token_positions"], strict=True
        ):
            assert depth == pytest.approx(place / len(text), abs=1e-4)
            assert position == golden_tokenizer.count(sample.prompt[: begins + place])


def _answer_places(sample: Sample, text: str) -> list[int]:
    """Characters of the document before each answer, ascending, found in the text."""
    kind = sample.task.split("/")[1]
    if kind.startswith("niah"):
        found = [text.index(f" is: {value}.") for value in sample.references]
        starts = [text.rindex("One of the special", 0, place) for place in found]
        return sorted(start - 1 if kind in ESSAYS and start else start for start in starts)
    if kind == "vt":
        return sorted(text.index(f"VAR {name} = ") for name in sample.references)
    if kind.startswith("qa"):
        documents = [segment.text for segment in sample.segments if segment.role == "document"]
        clues = {*sample.references, *re.findall(r"the town where (.+) was born", sample.segments[-2].text)}
        gold = [at for at, text in enumerate(documents) if any(re.search(rf"\b{clue}\b", text) for clue in clues)]
        return [sum(map(len, documents[:at])) for at in gold]
    near = [int(depth * len(text)) for depth in sample.facts["depths"]]
    words = [match.start() for name in sample.references for match in re.finditer(rf" {re.escape(name)}(?= |$)", text)]
    if kind == "cwe":
        words = [text.rindex(" ", 0, place) if " " in text[:place] else 0 for place in words]
    if text.startswith(tuple(sample.references)):
        words.append(0)
    return [min(words, key=lambda place: abs(place - wanted)) for wanted in near]


@pytest.mark.parametrize("task", [task for task in CARDS if task.startswith("niah")])
def test_no_key_and_no_value_occurs_twice(task: str, tiny: TextTokenizer, generated: Sources) -> None:
    for sample in made(recipe(task, 4096, 3, tiny, generated)):
        text, question = document(sample), sample.segments[-2].text
        needles = re.findall(r"One of the special magic \w+ for (.+?) is: (.+?)\.", text)
        asked = [key for key in dict.fromkeys(key for key, _ in needles) if f" {key}" in question.split("text?")[0]]
        values = CARDS[task].args.get("values", 1)
        assert len(asked) == CARDS[task].args.get("queries", 1)
        assert all(often == values for often in Counter(key for key, _ in needles).values())
        assert max(Counter(value for _, value in needles).values()) == 1
        assert sorted(value for key, value in needles if key in asked) == sorted(sample.references)
        assert all(text.count(key) == values for key in asked)
        assert all(text.count(value) == 1 for value in sample.references)


def test_names_and_values_of_a_chain_occur_in_no_other(tiny: TextTokenizer, generated: Sources) -> None:
    for sample in made(recipe("vt", 2048, 10, tiny, generated)):
        text = document(sample)
        assert sample.facts["example"] == "full"
        names = re.findall(r"VAR (\w+) =", sample.prompt)
        values = re.findall(r"VAR \w+ = (\d+)\n", sample.prompt)
        assert len(names) == len(set(names)) == 10 and len(set(values)) == 2
        assert not any(one in other for one in names for other in names if one != other)
        assert f"VAR {sample.references[0]} = {values[1]}\n" in text
        places = [text.index(f"VAR {new} = VAR {old} ") for old, new in pairwise(sample.references)]
        assert places == sorted(places)
        assert f"the value {values[1]}, they are: " in sample.segments[-1].text


def test_common_words_are_no_part_of_other_words_nor_in_the_example(
    golden_tokenizer: TextTokenizer, generated: Sources
) -> None:
    for length, form, repeats in ((2048, "short", (6, 1)), (4096, "long", (30, 3))):
        for sample in made(recipe("cwe", length, 3, golden_tokenizer, generated)):
            said = [sample.facts[name] for name in ("form", "common_repeats", "other_repeats")]
            assert said == [form, *repeats]
            counts = Counter(re.findall(r"\d+\. (.+?)(?= \d+\. |$)", document(sample)))
            assert {word for word, often in counts.items() if often == repeats[0]} == set(sample.references)
            assert {often for word, often in counts.items() if word not in sample.references} == {repeats[1]}
            assert not any(one in other for one in sample.references for other in counts if one != other)
            shown = "".join(segment.text for segment in sample.segments[:-4])
            assert shown.count("10 most common words") == 1
            assert not any(f". {word} " in shown for word in counts)


def test_the_third_coded_word_is_clearly_more_frequent_than_the_next(
    golden_tokenizer: TextTokenizer, generated: Sources
) -> None:
    for length in (512, 2048):
        for sample in made(recipe("fwe", length, 10, golden_tokenizer, generated)):
            counts = Counter(document(sample).split())
            ranked = [often for _, often in counts.most_common()]
            assert [word for word, _ in counts.most_common(4)] == ["...", *sample.references] and ranked[3] > ranked[4]


def test_no_number_of_coded_words_leaves_the_third_answer_level_with_the_next() -> None:
    least = least_clear(2.0)
    assert all(third > following for *_, third, following in (appearances(n, 5) for n in range(least, least + 500)))
    assert any(third == following > 0 for *_, third, following in (appearances(n, 5) for n in range(1, least)))


@pytest.mark.parametrize("task", ["qa_1", "qa_2"])
def test_documents_that_answer_stand_once_and_no_other_has_the_answer(
    task: str, golden_tokenizer: TextTokenizer, golden_sources: Sources, generated: Sources
) -> None:
    for sources in (golden_sources, generated):
        for sample in made(recipe(task, 4096, 8, golden_tokenizer, sources)):
            bodies = [segment.text.split("\n", 1)[1] for segment in sample.segments if segment.role == "document"]
            assert len(set(bodies)) == len(bodies)
            gold = {_place(sample, depth) for depth in sample.facts["depths"]}
            assert len(gold) == len(sample.facts["depths"])
            others = "\n".join(body for place, body in enumerate(bodies) if place not in gold)
            if sample.references[0] not in {"yes", "no"}:
                assert any(sample.references[0] in bodies[place] for place in gold)
                assert not any(
                    re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", others, re.I) for answer in sample.references
                )


def test_questions_come_from_all_over_the_file(golden_tokenizer: TextTokenizer, golden_sources: Sources) -> None:
    asked = [sample.facts["question"] for sample in made(recipe("qa_1", 1024, 40, golden_tokenizer, golden_sources))]
    assert len(set(asked)) == 40 and max(asked) - min(asked) > len(golden_sources.squad.questions) // 2


@pytest.mark.parametrize("task", ["qa_1", "qa_2"])
def test_generated_questions_of_one_number_ask_of_other_people(
    task: str, tiny: TextTokenizer, generated: Sources
) -> None:
    samples = made(recipe(task, 512, BLOCK + 4, tiny, generated))
    alike = [(one, other) for one in samples for other in samples[one.index + 1 :]
             if one.facts["source"] == other.facts["source"]]  # fmt: skip
    assert [(one.index, other.index) for one, other in alike] == [(i, i + QA_BLOCK) for i in range(4)]
    assert not any(one.references == other.references for one, other in alike)
    assert len({source(sample) for sample in samples}) == len(samples)


@pytest.mark.parametrize("task", CARDS)
def test_own_references_score_one_and_an_empty_answer_nothing(
    task: str, tiny: TextTokenizer, generated: Sources
) -> None:
    score = scorers()[CARDS[task].scorer]
    for sample in made(recipe(task, 512, 3, tiny, generated)):
        assert score(", ".join(sample.references), sample.references, sample.facts).value == 1
        assert score("", sample.references, sample.facts).value == 0
        assert to_request(sample, tiny, CARDS[task].reference, 2048).max_new_tokens == CARDS[task].max_new_tokens


@pytest.mark.parametrize("task", CARDS)
def test_a_length_that_is_too_short_names_one_that_works(
    task: str, golden_tokenizer: TextTokenizer, generated: Sources
) -> None:
    with pytest.raises(LengthError, match=rf"ruler-balanced/{task} cannot be made at 60 tokens: the smallest is") as at:
        made(recipe(task, 60, 3, golden_tokenizer, generated))
    smallest = at.value.smallest
    assert smallest is not None and CARDS[task].max_new_tokens + 10 < smallest <= 512
    assert len(made(recipe(task, smallest, 3, golden_tokenizer, generated))) == 3


def test_more_samples_than_questions_is_an_error_that_says_how_many_there_are(
    golden_tokenizer: TextTokenizer, golden_sources: Sources
) -> None:
    with pytest.raises(SourceError, match="ruler-balanced/qa_2: there are only 100 questions, 101 were asked for"):
        made(recipe("qa_2", 4096, 101, golden_tokenizer, golden_sources))


def test_the_filler_is_rulers_own_noise(tiny: TextTokenizer, generated: Sources) -> None:
    for sample in made(recipe("niah_multikey_3", 1024, 5, tiny, generated)):
        rest = [line for line in document(sample).split("\n") if not line.startswith("One of the special magic uuids")]
        assert all(NOISE.startswith(line) for line in rest) and set(rest[:-1]) <= {NOISE}


def test_balanced_scores_are_never_called_comparable(
    tiny: TextTokenizer, generated: Sources, golden_sources: Sources
) -> None:
    for sources in (generated, golden_sources):
        spec = Spec((CARDS["vt"],), (1024,), (), None, 42, "base", sources)
        cell = Cell(CARDS["vt"], 1024, iter(()), 1)
        prompts = Prompts(spec, Model.of_tokenizer(tiny))
        assert prompts.incomparable([cell])[CARDS["vt"].address].startswith("prompts of this package")
