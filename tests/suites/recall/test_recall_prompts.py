"""The prompts of recall against independent transcriptions of HELMET's and LongLoRA's, and what fills them."""

from __future__ import annotations

import json
import re
from collections import Counter
from itertools import pairwise
from typing import Any

import pytest

from anchoreval.cards import load_tasks
from anchoreval.errors import CardError, LengthError
from anchoreval.schema import Sample, Wrap
from anchoreval.suites import Recipe, generators, scorers
from anchoreval.suites.recall.icl import lexicons
from anchoreval.texts.sources import Sources
from anchoreval.tokenizer import TextTokenizer

TASKS = {name: load_tasks()[0][f"recall/{name}"] for name in ("json_kv", "icl_labels", "passkey")}
CHAT = Wrap("<user>", "</user>\n<model>")
UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"
# HELMET's data.py, load_json_kv and load_icl, filled in with str.format as its model_utils.py does.
HELMET_KV = (
    "{context}\n\nExtract the value corresponding to the specified key in the JSON object below.\n\n{demos}"
    "Key: {question}\nCorresponding value:"
)
HELMET_ICL = (
    'Use the provided mapping from the text to label to assign a label to the text. Only output "label: {{label}}" '
    "and nothing else. \n\n{context}\n\n{question}\nlabel:"
)


def samples(
    name: str, length: int, count: int, tokenizer: TextTokenizer, sources: Sources, **changes: Any
) -> list[Sample]:
    task = TASKS[name]
    args = changes.pop("args", task.args)
    recipe = Recipe(task.address, length, task.max_new_tokens, count, args, tokenizer, sources, **changes)
    return list(generators()[task.generator](recipe))


def pairs_of(sample: Sample) -> list[tuple[str, str]]:
    """The object as JSON reads it, which refuses a repeated key."""

    def unique(found: list[tuple[str, str]]) -> list[tuple[str, str]]:
        assert len({key for key, _ in found}) == len(found)
        return found

    text = "".join(segment.text for segment in sample.segments if segment.role == "line")
    return json.loads(text, object_pairs_hook=unique)  # type: ignore[no-any-return]


def test_a_json_prompt_is_helmets_around_an_object_written_as_in_lost_in_the_middle(
    tokenizer: TextTokenizer, generated: Sources
) -> None:
    for sample in samples("json_kv", 2048, 3, tokenizer, generated):
        pairs = pairs_of(sample)
        context = "".join(
            f'{"{" if at == 0 else " "}"{key}": "{value}"{"}" if at == len(pairs) - 1 else "," + chr(10)}'
            for at, (key, value) in enumerate(pairs)
        )
        keys = re.findall(rf"Key: ({UUID})\n", sample.prompt)
        shown = "".join(f"Key: {key}\nCorresponding value: {dict(pairs)[key]}\n\n" for key in keys[:2])
        assert len(set(keys)) == 3
        assert sample.prompt == HELMET_KV.format(context=context, demos=shown, question=keys[2])
        assert sample.references == (dict(pairs)[keys[2]],)


def test_every_line_of_an_object_is_a_line_and_the_answer_stands_where_the_facts_say(
    tokenizer: TextTokenizer, generated: Sources
) -> None:
    found = samples("json_kv", 3000, 10, tokenizer, generated)
    strata = []
    for sample in found:
        pairs = pairs_of(sample)
        at = [value for _, value in pairs].index(sample.references[0])
        assert sum(segment.role == "line" for segment in sample.segments) == len(pairs) == sample.facts["pairs"]
        assert sample.facts["depths"] == [round(at / (len(pairs) - 1), 4)]
        before = sample.prompt[: sample.prompt.index(f'"{pairs[at][0]}"') - 1]
        assert sample.facts["token_positions"] == [tokenizer.count(before)]
        strata.append(at / len(pairs))
    assert all(later - earlier < 0.2 for earlier, later in pairwise(sorted(strata))), "the whole depth is used"
    assert min(strata) < 0.1 and max(strata) > 0.85


def test_an_icl_prompt_is_helmets_around_balanced_rounds_of_distinct_texts(
    tokenizer: TextTokenizer, generated: Sources
) -> None:
    for sample in samples("icl_labels", 2048, 4, tokenizer, generated):
        examples = [segment.text.removesuffix("\n\n") for segment in sample.segments if segment.role == "document"]
        question = sample.segments[-2].text.strip()
        assert sample.prompt == HELMET_ICL.format(context="\n\n".join(examples), question=question)
        texts, labels = zip(*(example.split("\nlabel: ") for example in examples), strict=True)
        assert len({*texts, question}) == len(texts) + 1
        for at in range(0, len(labels) - 12, 12):
            assert sorted(map(int, labels[at : at + 12])) == list(range(12)), "every label once in each round"
        assert sample.facts["gold_examples"] == labels.count(sample.references[0])
        assert sample.facts["texts"] == "generated"


def test_only_the_examples_say_what_a_label_means(tokenizer: TextTokenizer, generated: Sources) -> None:
    things = lexicons()
    meanings: Counter[tuple[str, str]] = Counter()
    for sample in samples("icl_labels", 1024, 12, tokenizer, generated):
        own: dict[str, set[str]] = {}
        examples = [segment.text for segment in sample.segments if segment.role == "document"]
        for text, label in (example.strip().split("\nlabel: ") for example in examples):
            places = {place for place, its in things.items() if any(re.search(rf"\b{it}\b", text) for it in its)}
            own.setdefault(label, places)
            own[label] &= places
        (place,) = own[sample.references[0]]
        assert any(re.search(rf"\b{it}\b", sample.segments[-2].text) for it in things[place])
        assert all(len(places) == 1 for places in own.values()), "one place for each label"
        meanings.update((label, next(iter(places))) for label, places in own.items())
    assert len(meanings) > 60, "another meaning in each sample"


def test_a_passkey_prompt_is_longloras(tokenizer: TextTokenizer, generated: Sources) -> None:
    garbage = " ".join(
        ["The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."] * 200
    )
    depths = []
    for sample in samples("passkey", 1024, 10, tokenizer, generated):
        (key,) = sample.references
        line = f"The pass key is {key}. Remember it. {key} is the pass key."
        _, before, found, after, _ = sample.prompt.split("\n")
        lines = [
            "There is an important info hidden inside a lot of irrelevant text. Find it and memorize them. I will quiz "
            "you about the important information there.",
            garbage[: len(before)],
            line,
            garbage[: len(after)],
            "What is the pass key? The pass key is",
        ]
        assert sample.prompt == "\n".join(lines) and 1 <= int(key) <= 50_000
        depths.append(len(before) / (len(before) + len(after)))
        assert sample.facts["depths"] == [round(depths[-1], 4)]
        assert sample.facts["token_positions"] == [tokenizer.count(sample.prompt[: sample.prompt.index(found)])]
    assert sorted(int(10 * each) for each in depths) == list(range(10))


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("kind", ["byte-level", "llama-2", "wordpiece"])
def test_every_sample_fills_its_length(
    name: str, kind: str, kinds: dict[str, TextTokenizer], generated: Sources
) -> None:
    for length in (2048, 3001):
        for wrap in (Wrap(), CHAT):
            for sample in samples(name, length, 3, kinds[kind], generated, wrap=wrap):
                tokens = kinds[kind].count(sample.prompt) + sample.max_new_tokens
                assert 0.99 * length <= tokens <= length and tokens == sample.facts["tokens"]


@pytest.mark.parametrize("name", TASKS)
def test_a_sample_is_the_same_however_many_are_asked_for_and_another_under_another_seed(
    name: str, tokenizer: TextTokenizer, generated: Sources
) -> None:
    five = samples(name, 1500, 5, tokenizer, generated)
    assert samples(name, 1500, 3, tokenizer, generated) == five[:3]
    assert len({sample.prompt for sample in five}) == 5
    assert samples(name, 1500, 1, tokenizer, generated, seed=7)[0].prompt != five[0].prompt


@pytest.mark.parametrize("name", TASKS)
def test_a_chat_template_goes_around_the_question_and_the_cue_begins_the_answer(
    name: str, tokenizer: TextTokenizer, generated: Sources
) -> None:
    (sample,) = samples(name, 1500, 1, tokenizer, generated, wrap=CHAT)
    cue = sample.segments[-1]
    assert sample.prompt.startswith("<user>") and cue.role == "answer_prefix"
    assert sample.prompt.endswith(f"</user>\n<model>{cue.text}")


@pytest.mark.parametrize("name", TASKS)
def test_a_length_that_is_too_short_is_refused_with_the_smallest_one(
    name: str, tokenizer: TextTokenizer, generated: Sources
) -> None:
    with pytest.raises(
        LengthError, match=rf"recall/{name} cannot be made at 120 tokens: the smallest is \d+"
    ) as caught:
        samples(name, 120, 1, tokenizer, generated)
    smallest = caught.value.smallest
    assert smallest is not None and samples(name, smallest, 1, tokenizer, generated)


@pytest.mark.parametrize("name", TASKS)
def test_the_reference_scores_one_and_an_empty_answer_nothing(
    name: str, tokenizer: TextTokenizer, generated: Sources
) -> None:
    scorer = scorers()[TASKS[name].scorer]
    for sample in samples(name, 1500, 3, tokenizer, generated):
        assert scorer(f" {sample.references[0]}", sample.references, sample.facts).value == 1.0
        assert scorer("", sample.references, sample.facts).value == 0.0


def test_a_wrong_number_of_labels_names_the_argument(tokenizer: TextTokenizer, generated: Sources) -> None:
    with pytest.raises(CardError, match=r"recall/icl_labels: args\.labels: 30 is not one of 2\.\.18"):
        samples("icl_labels", 1500, 1, tokenizer, generated, args={"labels": 30})
