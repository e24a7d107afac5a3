"""What a prompt of each kind of task looks like, and what is said about it."""

from __future__ import annotations

import json
import random
import re
from itertools import pairwise
from pathlib import Path

import pytest
from ruler_tasks import samples

from anchoreval.errors import LengthError, SourceError
from anchoreval.schema import Sample, Wrap
from anchoreval.suites.ruler.niah import uuid4
from anchoreval.suites.ruler.words import appearances, least_coded, zeta
from anchoreval.texts.sources import Sources
from anchoreval.tokenizer import TextTokenizer


def context(sample: Sample) -> str:
    """The haystack: what stands between the last preamble and the query."""
    start = max(place for place, segment in enumerate(sample.segments) if segment.role == "preamble")
    return "".join(segment.text for segment in sample.segments[start + 1 :] if segment.role in {"document", "line"})


@pytest.mark.parametrize("task", ["niah_single_1", "niah_multikey_2", "niah_multivalue", "niah_multiquery"])
def test_needles_stand_where_the_facts_say(task: str, tokenizer: TextTokenizer, generated: Sources) -> None:
    for sample in samples(task, 1024, 5, tokenizer, generated):
        text = context(sample)
        assert all(text.count(f" is: {reference}.") == 1 for reference in sample.references)
        starts = {match.start() for match in re.finditer(r" ?One of the special magic", text)}
        for depth, position in zip(sample.facts["depths"], sample.facts["token_positions"], strict=True):
            start = min(starts, key=lambda place: abs(place / len(text) - depth))
            assert abs(start / len(text) - depth) < 1e-3
            assert position == tokenizer.count(sample.segments[0].text + text[:start])


def test_one_asked_value_turns_the_task_text_singular_and_leaves_the_chat_template_alone(
    tokenizer: TextTokenizer, generated: Sources
) -> None:
    wrap = Wrap("You are a helpful assistant. USER: ", " ASSISTANT:")
    (one,) = samples("niah_single_1", 1024, 1, tokenizer, generated, wrap)
    (four,) = samples("niah_multivalue", 1024, 1, tokenizer, generated, wrap)
    assert one.prompt.startswith("You are a helpful assistant. USER: A special magic number is hidden")
    assert four.prompt.startswith("You are a helpful assistant. USER: Some special magic numbers are hidden")
    assert "mentioned in the provided text? ASSISTANT: The special magic number for" in one.prompt


def test_uuids_are_those_of_the_standard_library() -> None:
    import uuid

    rng = random.Random(0)
    for bits in (0, 2**128 - 1, *(rng.getrandbits(128) for _ in range(500))):
        assert uuid4(bits) == str(uuid.UUID(int=bits, version=4))


def test_a_chain_of_variables_leads_from_the_value_to_every_answer(
    tokenizer: TextTokenizer, generated: Sources
) -> None:
    for sample in samples("vt", 1536, 5, tokenizer, generated):
        text, names = context(sample), sample.references
        (value,) = re.findall(rf"VAR {names[0]} = (\d{{5}})", text)
        assert f"assigned the value {value} in the text above." in sample.segments[-2].text
        places = [text.index(f"VAR {new} = VAR {old} ") for old, new in pairwise(names)]
        assert places == sorted(places)
        assert sample.facts["example"] == "upstream"


def test_examples_differ_from_sample_to_sample(tokenizer: TextTokenizer, generated: Sources) -> None:
    shown = [sample.segments[0].text for sample in samples("vt", 1536, 4, tokenizer, generated)]
    assert len(set(shown)) == 4


def test_without_room_for_the_example_it_goes_and_that_is_said(tokenizer: TextTokenizer, generated: Sources) -> None:
    (sample,) = samples("vt", 640, 1, tokenizer, generated)
    assert sample.facts["example"] in {"short", "none"} and sample.facts["fit"] == "refined"
    (sample,) = samples("cwe", 640, 1, tokenizer, generated)
    assert sample.facts["form"] != "short" and sample.facts["fit"] == "refined"


@pytest.mark.parametrize("length, form, repeats", [(2048, "short", (6, 1)), (8192, "long", (30, 3))])
def test_the_ten_common_words_are_the_most_frequent(
    length: int, form: str, repeats: tuple[int, int], tokenizer: TextTokenizer, generated: Sources
) -> None:
    for sample in samples("cwe", length, 3, tokenizer, generated):
        assert (sample.facts["form"], sample.facts["common_repeats"], sample.facts["other_repeats"]) == (
            form,
            *repeats,
        )
        words = re.findall(r"\d+\. (.+?)(?= \d+\. |$)", context(sample))
        counts = {word: words.count(word) for word in words}
        assert {word for word, count in counts.items() if count == repeats[0]} == set(sample.references)
        assert {count for word, count in counts.items() if word not in sample.references} == {repeats[1]}


def test_coded_words_have_the_shares_of_their_ranks(tokenizer: TextTokenizer, generated: Sources) -> None:
    for sample in samples("fwe", 2048, 3, tokenizer, generated):
        words = context(sample).split()
        expected = appearances(sample.facts["units"], 4)
        assert [words.count(word) for word in ("...", *sample.references)] == expected
        assert max(words.count(word) for word in set(words) - {"...", *sample.references}) <= expected[-1]


def test_other_exponents_use_riemanns_zeta() -> None:
    assert zeta(2.0) == pytest.approx(1.6449340668482264, abs=0)
    assert zeta(4.0) == pytest.approx(1.0823232337111381)
    assert appearances(least_coded(2.0), 4)[3] == 1 and appearances(least_coded(2.0) - 1, 4)[3] == 0


def questions(tmp_path: Path, lengths: list[int], name: str = "hotpotqa.json") -> Sources:
    """HotpotQA-like questions whose two paragraphs have so many words each."""
    entries = [
        {
            "question": f"Question {number}?",
            "answer": f"answer{number}",
            "context": [
                [f"Title {number}", ["word " * words, f"answer{number}"]],
                [f"More {number}", ["word " * words]],
            ],
        }
        for number, words in enumerate(lengths)
    ]
    (tmp_path / name).write_text(json.dumps(entries))
    return Sources(tmp_path, cache=tmp_path / "none", offline=True)


def test_each_document_is_a_segment_and_the_facts_name_those_that_answer(
    tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    for sample in samples("qa_2", 1024, 6, tokenizer, questions(tmp_path, [20] * 30)):
        documents = [segment.text for segment in sample.segments if segment.role == "document"]
        assert len(documents) == sample.facts["documents"] >= 2
        assert [int(text.split(":")[0].removeprefix("Document ")) for text in documents] == list(
            range(1, len(documents) + 1)
        )
        offsets = [sample.prompt.index(text) for text in documents]
        gold = [place for place, text in enumerate(documents) if re.search(rf"{sample.references[0]}\b", text)]
        marked = {tokenizer.count(sample.prompt[: offsets[place]]) for place in gold}
        assert marked <= set(sample.facts["token_positions"])


def test_a_question_that_cannot_fit_is_passed_over_and_counted(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    made = samples("qa_2", 1024, 3, tokenizer, questions(tmp_path, [20, 900, 20, 20]))
    assert [sample.facts["question"] for sample in made] == [0, 2, 3]
    assert [sample.facts["questions_passed_over"] for sample in made] == [0, 1, 1]
    assert [sample.index for sample in made] == [0, 1, 2]


def test_too_few_questions_that_fit_name_the_length_at_which_there_are_enough(
    tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    source = questions(tmp_path, [20, 400, 600, 900])
    with pytest.raises(LengthError) as caught:
        samples("qa_2", 512, 3, tokenizer, source)
    assert caught.value.smallest is not None
    assert len(samples("qa_2", caught.value.smallest, 3, tokenizer, source)) == 3


def test_more_samples_than_questions_is_an_error_that_says_how_many_there_are(
    tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    with pytest.raises(SourceError, match="only 2 questions, 3 were asked for"):
        samples("qa_2", 1024, 3, tokenizer, questions(tmp_path, [20, 20]))


def test_generated_answers_stand_in_the_documents(tokenizer: TextTokenizer, generated: Sources) -> None:
    for task in ("qa_1", "qa_2"):
        for sample in samples(task, 1024, 6, tokenizer, generated):
            assert sample.references[0] in context(sample)
            assert sample.facts["haystack"] == "generated"
