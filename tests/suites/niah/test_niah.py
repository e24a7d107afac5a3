"""Needle in a haystack: depths and placement against upstream's arithmetic, exact lengths, drawn answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anchoreval.cards import load_tasks
from anchoreval.errors import CardError, LengthError
from anchoreval.prompt import reference_text
from anchoreval.schema import Sample, Wrap
from anchoreval.suites import generators, scorers
from anchoreval.suites.niah import needles
from anchoreval.suites.niah.generate import Grid, Maker, spaced, split
from anchoreval.suites.recipe import Recipe
from anchoreval.texts.draft import Tally
from anchoreval.texts.sources import Sources
from anchoreval.tokenizer import TextTokenizer

TASKS = {task.name: task for task in load_tasks()[0].values() if task.suite == "niah"}
Ask = Callable[..., list[Sample]]


def recipe_of(name: str, length: int, tokenizer: TextTokenizer, sources: Sources, **args: Any) -> Recipe:
    task = TASKS[name]
    every = dict(task.args) | args
    return Recipe(task.address, length, task.max_new_tokens, 10**6, every, tokenizer, sources)


@pytest.fixture
def ask(tokenizer: TextTokenizer, generated: Sources) -> Ask:
    def made(name: str, length: int, **args: Any) -> list[Sample]:
        return list(generators()["niah"](recipe_of(name, length, tokenizer, generated, **args)))

    return made


def document(sample: Sample) -> str:
    (text,) = [segment.text for segment in sample.segments if segment.role == "document"]
    return text


def needles_of(sample: Sample) -> list[str]:
    """The sentences that hold an answer, by the wording of each task."""
    text = document(sample)
    if sample.task == "niah/passkey":
        return [f"The pass key is {sample.references[0]}. Remember it. {sample.references[0]} is the pass key."]
    found = []
    for answer in sample.references:
        at = text.lower().index(answer.lower())
        start = max(text.rfind(mark, 0, at) for mark in (". ", "! ")) + 2 if at else 0
        found.append(text[0 if start < 2 else start : text.index(".", at) + 1])
    return found


def bare(sample: Sample) -> str:
    """The haystack without its needles."""
    text = document(sample)
    for needle in needles_of(sample):
        assert text.count(needle) == 1
        text = text.replace(f"{needle} ", "") if f"{needle} " in text else text.replace(f" {needle}", "")
    return text


# upstream at 7b90d28, llm_needle_haystack_tester.py, transcribed --------------------------------------------------


def upstream_logistic(x: float, L: int = 100, x0: int = 50, k: float = 0.1) -> float:
    if x in [0, 100]:
        return x
    x = -k * (x - x0)
    return float(np.round(L * (1 / (1 + np.exp(-x))), 3))


def upstream_depths(intervals: int, kind: str) -> list[float]:
    if kind == "linear":
        return [float(x) for x in np.round(np.linspace(0, 100, num=intervals, endpoint=True)).astype(int)]
    return [float(upstream_logistic(x)) for x in np.linspace(0, 100, intervals)]


def upstream_place(haystack: str, depth_percent: float, tokenizer: TextTokenizer) -> int:
    """Characters of haystack before the needle; "!" ends a sentence as "." does."""
    tokens = tokenizer.encode(haystack)
    if depth_percent == 100:
        return len(haystack)
    insertion_point = int(len(tokens) * (depth_percent / 100))
    tokens_new_context = tokens[:insertion_point]
    period_tokens = [*tokenizer.encode("."), *tokenizer.encode("!")]
    while tokens_new_context and tokens_new_context[-1] not in period_tokens:
        insertion_point -= 1
        tokens_new_context = tokens[:insertion_point]
    return len(tokenizer.decode(tokens_new_context))


# ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [*range(1, 42), 51, 100, 101])
def test_depths_are_upstreams_in_ascending_order(count: int) -> None:
    assert list(spaced(count, "linear")) == upstream_depths(count, "linear")
    sigmoid = spaced(count, "sigmoid")
    ends = {0.0, 100.0} if count > 1 else {0.0}
    # upstream's inner depths descend between ends that stay where they are: as a set they are these
    assert np.allclose(sorted(upstream_depths(count, "sigmoid")), sigmoid, atol=1e-9)
    assert list(sigmoid) == sorted(set(sigmoid)) and ends <= set(sigmoid)


@pytest.mark.parametrize("name", ["single", "number", "passkey"])
@pytest.mark.parametrize("spacing", ["linear", "sigmoid"])
def test_a_needle_stands_where_upstream_puts_it(ask: Ask, tokenizer: TextTokenizer, name: str, spacing: str) -> None:
    samples = ask(name, 900, depths=11, depth_spacing=spacing)
    for sample, depth in zip(samples, spaced(11, spacing), strict=True):  # type: ignore[arg-type]
        (needle,), text = needles_of(sample), bare(sample)
        start = document(sample).index(needle)
        assert max(0, start - 1 if start else 0) == upstream_place(text, depth, tokenizer), depth
        assert sample.facts["depth_percent"] == depth
        assert sample.facts["depths"] == [pytest.approx(start / len(document(sample)), abs=0.003)]
        before = sample.prompt[: sample.prompt.index(needle)].rstrip(" ")
        assert sample.facts["token_positions"] == [tokenizer.count(before)]
    assert document(samples[0]).startswith(needles_of(samples[0])[0])
    assert document(samples[-1]).endswith(needles_of(samples[-1])[0])


def test_several_needles_are_spread_from_the_first_depth_to_the_end(ask: Ask, tokenizer: TextTokenizer) -> None:
    for sample in ask("multi", 1500, depths=5, needles=4):
        text, depth = bare(sample), sample.facts["depth_percent"]
        wanted = [upstream_place(text, depth + at * (100 - depth) / 4, tokenizer) for at in range(4)]
        before = [document(sample).index(needle) for needle in needles_of(sample)]
        taken = [len(" ".join(needles_of(sample)[:at])) + (at > 0) for at in range(4)]
        places = [max(0, start - gone - (start > 0)) for start, gone in zip(before, taken, strict=True)]
        assert places == wanted and len(sample.facts["depths"]) == 4


@pytest.mark.parametrize("kind", ["byte-level", "llama-2", "metaspace", "wordpiece", "crossing", "unknown"])
@pytest.mark.parametrize("name", sorted(TASKS))
def test_every_prompt_fills_its_length_and_never_exceeds_it(
    kinds: dict[str, TextTokenizer], generated: Sources, kind: str, name: str
) -> None:
    tokenizer = kinds[kind]
    for length in (512, 701):
        for sample in generators()["niah"](recipe_of(name, length, tokenizer, generated, depths=3)):
            used = tokenizer.count(sample.prompt) + sample.max_new_tokens
            assert 0.99 * length <= used <= length and used == sample.facts["tokens"], (kind, name, length)


def test_a_chat_template_counts_and_closes_before_the_answer_prefix(
    tokenizer: TextTokenizer, generated: Sources
) -> None:
    wrap = Wrap("<user> {x} ", " <assistant>")
    for name in TASKS:
        recipe = replace(recipe_of(name, 512, tokenizer, generated, depths=2), wrap=wrap)
        for sample in generators()["niah"](recipe):
            *_, query, prefix = sample.segments
            assert sample.prompt.startswith(wrap.opening) and query.text.endswith(f"? {wrap.closing.strip()}")
            assert prefix.role == "answer_prefix" and prefix.text[0] == " " and prefix.text[-1] != " "
            assert 507 <= tokenizer.count(sample.prompt) + sample.max_new_tokens <= 512


@pytest.mark.parametrize("name", sorted(TASKS))
def test_own_references_score_1_an_empty_answer_0_and_part_of_them_a_share(ask: Ask, name: str) -> None:
    scorer = scorers()[TASKS[name].scorer]
    for sample in ask(name, 600, depths=4):
        said = reference_text(sample.references, TASKS[name].reference)
        assert scorer(said, sample.references, sample.facts).value == 1
        assert scorer("", sample.references, sample.facts).value == 0
        assert scorer(sample.references[0], sample.references, sample.facts).value == 1 / len(sample.references)


@pytest.mark.parametrize("name", sorted(TASKS))
def test_answers_differ_from_cell_to_cell_and_stand_in_their_needle_alone(ask: Ask, name: str) -> None:
    samples = [sample for length in (512, 640) for sample in ask(name, length, depths=11, repeats=2)]
    assert len({sample.references for sample in samples}) >= len(samples) - 1
    for sample in samples:
        rest = sample.prompt
        for needle in needles_of(sample):
            rest = rest.replace(needle, "")
        assert not any(answer.lower() in rest.lower() for answer in sample.references)


def test_an_answer_that_the_haystack_holds_is_drawn_again(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    real, drawn = needles.draw, []
    known = needles.Hidden(("It was to borrow the heavy boat.",), ("Borrowed the heavy BOAT",), "What?", "It was to")

    def fixed(kind: Any, rng: Any, count: int = 1, near: int = 0) -> needles.Hidden:
        drawn.append(kind)
        return known if len(drawn) % 2 == 0 else real(kind, rng, count, near)

    monkeypatch.setattr("anchoreval.suites.niah.generate.hidden.draw", fixed)
    for sample in ask("single", 600, depths=3):
        assert sample.references != known.answers
    assert len(drawn) > 6
    monkeypatch.setattr("anchoreval.suites.niah.generate.hidden.draw", lambda *_: known)
    with pytest.raises(CardError, match="every one occurs in the haystack"):
        ask("single", 600, depths=3)


@pytest.mark.parametrize("name", sorted(TASKS))
def test_a_sample_made_alone_is_the_one_made_among_others(
    ask: Ask, tokenizer: TextTokenizer, generated: Sources, name: str
) -> None:
    among = ask(name, 600, depths=3, repeats=2)
    size = generators()["niah"].size
    assert size is not None
    assert len(among) == size(f"niah/{name}", TASKS[name].args | {"depths": 3, "repeats": 2}) == 6
    recipe = recipe_of(name, 600, tokenizer, generated, depths=3, repeats=2)
    for index in (4, 1, 5):
        alone = Maker(recipe, Grid(**recipe.args), Tally(tokenizer)).sample(index)
        assert alone == among[index]
    assert document(among[0]) != document(among[3])


def test_the_needles_stand_in_one_document_between_instruction_and_question(ask: Ask) -> None:
    for name in TASKS:
        for sample in ask(name, 512, depths=2):
            roles = [segment.role for segment in sample.segments]
            assert roles == ["preamble", "document", "query", "answer_prefix"]


def test_near_misses_share_the_wording_and_never_the_number(ask: Ask) -> None:
    for sample in ask("distractors", 900, depths=3):
        (answer,), text = sample.references, document(sample)
        near = [part for part in split(text) if part.startswith("The special") and answer not in part]
        assert len(near) == 6 and len({part.split(": ")[1] for part in near}) == 6
        place = needles_of(sample)[0].split()[3]
        assert sum(f" {place} number is:" in part for part in near) == 3
        assert sum(part.startswith("The special magic ") for part in near) == 3


@pytest.mark.parametrize("name", sorted(TASKS))
def test_a_length_that_is_too_short_is_an_error_that_names_the_smallest(
    ask: Ask, tokenizer: TextTokenizer, generated: Sources, name: str
) -> None:
    with pytest.raises(LengthError, match=rf"niah/{name} cannot be made at 40 tokens: the smallest is \d+") as caught:
        ask(name, 40)
    smallest = caught.value.smallest
    assert smallest and len(ask(name, smallest)) == 11
    with pytest.raises(LengthError):  # other lengths have other needles, of a few tokens more or less
        next(generators()["niah"](recipe_of(name, smallest - 40, tokenizer, generated)))


@pytest.mark.parametrize("name", ["single", "multi"])
def test_a_length_that_the_first_sample_fits_all_others_fit_too(
    tokenizer: TextTokenizer, generated: Sources, name: str
) -> None:
    with pytest.raises(LengthError) as caught:
        next(generators()["niah"](recipe_of(name, 40, tokenizer, generated)))
    smallest, refused = caught.value.smallest or 0, 0
    for length in range(smallest - 20, smallest + 20, 4):
        samples = generators()["niah"](recipe_of(name, length, tokenizer, generated, depths=15))
        try:
            next(samples)
        except LengthError:
            refused += 1
        else:
            assert len(list(samples)) == 14
    assert 0 < refused < 10


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ({"depths": 0}, "args.depths: 0 is not positive"),
        ({"depths": -3}, "args.depths: -3 is not positive"),
        ({"depths": "eleven"}, "args.depths: 'eleven' is not a whole number"),
        ({"depths": True}, "args.depths: True is not a whole number"),
        ({"depths": 102}, "depths: 102 are more than 101"),
        ({"repeats": 0}, "args.repeats: 0 is not positive"),
        ({"depth_spacing": "log"}, "'log' is not one of linear, sigmoid"),
        ({"needles": 33}, "needles: 33 are more than 32"),
        ({"depth": 3}, "unknown argument 'depth'"),
    ],
)
def test_a_grid_that_cannot_be_is_one_line_that_names_the_argument(ask: Ask, args: dict[str, Any], says: str) -> None:
    with pytest.raises(CardError) as caught:
        ask("multi", 600, **args)
    assert says in str(caught.value) and "\n" not in str(caught.value)


def essays(folder: Path, count: int) -> Sources:
    lines = [f"Essay sentence {chr(97 + at % 26)}{'x' * (at // 26)} is about startups." for at in range(count)]
    (folder / "PaulGrahamEssays.json").write_text(json.dumps({"text": "\n\n".join(lines)}), encoding="utf-8")
    return Sources(folder, "published", cache=folder, offline=True)


def test_essays_are_taken_in_order_once_and_a_haystack_that_must_repeat_says_so(
    tmp_path: Path, tokenizer: TextTokenizer
) -> None:
    sources = essays(tmp_path, 60)
    first, second = generators()["niah"](recipe_of("number", 512, tokenizer, sources, depths=1, repeats=2))
    inside = [part for part in split(document(first)) if part.startswith("Essay")]
    assert inside[:2] == ["Essay sentence a is about startups.", "Essay sentence b is about startups."]
    assert len(set(inside)) == len(inside) and "haystack_repeats" not in first.facts
    assert first.facts["haystack"] == "published" and document(second)[:400] != document(first)[:400]
    (long,) = generators()["niah"](recipe_of("number", 4096, tokenizer, sources, depths=1))
    inside = [part for part in split(document(long)) if part.startswith("Essay")]
    assert long.facts["haystack_repeats"] == pytest.approx(len(inside) / 60, abs=0.02) and len(inside) > 60


def test_the_haystack_of_a_repeat_is_a_source_where_there_are_several(ask: Ask) -> None:
    found = {
        (name, length): ask(name, length, depths=3, repeats=2) for name in ("single", "number") for length in (512, 640)
    }
    for samples in found.values():
        assert [one.facts["source"] for one in samples] == ["niah haystack 0"] * 3 + ["niah haystack 1"] * 3
    begins = {
        (document(one)[:40] if one.facts["depth_percent"] else "", one.facts["source"]) for one in found["single", 512]
    }
    assert len({text for text, _ in begins if text}) == 2, "a text for each source"
    assert all("source" not in one.facts for one in ask("single", 512, depths=3, repeats=1))
    assert all("source" not in one.facts for one in ask("passkey", 512, depths=3, repeats=2)), "one noise for all"
