"""LongBench v2's prompts against a transcription of upstream's pred.py that shares no code with the package."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from longbench_v2_files import record, write, write_folder

from anchoreval.cards import load_tasks
from anchoreval.errors import CardError, SourceError
from anchoreval.prompt import to_request
from anchoreval.schema import Sample, Wrap
from anchoreval.suites import Recipe, generators
from anchoreval.suites.longbench_v2.generate import LONGBENCH_V2, find, follow_up, prompts
from anchoreval.texts.sources import Sources
from anchoreval.tokenizer import TextTokenizer, load_tokenizer

REPOSITORY = Path(__file__).parents[3]
TINY = REPOSITORY / "models" / "anchor-tiny"
UNCUT = 120_000
# SHA-256 of prompts/*.txt at 2e00731, as git has them
FILES = {
    "zero_shot": "68a162252bc9ff71d5d7abca3d69bb31aac3c35f832d657a2866f2018b8a6950",
    "cot": "6cc33d92fd8f611662b756c1f10f302c541ca005b58c46d5f3188ac3a939bfe8",
    "cot_answer": "85ec59df4ac0e27aabbc619a7ca5cf3ae1787dd5a76cf51a18944eb52c91955f",
    "no_context": "125fb44183af01ffc623df19392b80a287db62af3e2a2805e5b2ff9c7b2bee30",
}
PROMPTINGS = ("zero_shot", "cot", "no_context")
REASONING = "\n First, *Äude* keeps it $100$. So (A)? {x}\n\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("longbench_v2"))


@pytest.fixture(scope="module")
def tiny() -> TextTokenizer:
    return load_tokenizer(TINY)


@pytest.fixture(scope="module")
def upstream_tokenizer() -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_file=str(TINY / "tokenizer.json"), bos_token="<|bos|>", eos_token="<|eos|>"
    )


def recipe(
    sources: Sources,
    tokenizer: TextTokenizer,
    length: int = UNCUT,
    count: int = 4,
    wrap: Wrap = Wrap(),  # noqa: B008
    **args: str,
) -> Recipe:
    return Recipe("longbench_v2/questions", length, 128, count, args, tokenizer, sources, wrap)


def samples(sources: Sources, tokenizer: TextTokenizer, prompting: str, **changes: Any) -> list[Sample]:
    return list(generators()["longbench_v2"](recipe(sources, tokenizer, prompting=prompting, **changes)))


def upstream_prompt(item: dict[str, Any], prompting: str, response: str = "") -> str:
    """THUDM/LongBench 2e00731 pred.py, the prompts of get_pred."""
    context, template = item["context"], prompts()[prompting]
    prompt = (
        template.replace("$DOC$", context.strip())
        .replace("$Q$", item["question"].strip())
        .replace("$C_A$", item["choice_A"].strip())
        .replace("$C_B$", item["choice_B"].strip())
        .replace("$C_C$", item["choice_C"].strip())
        .replace("$C_D$", item["choice_D"].strip())
    )
    return prompt.replace("$COT$", response) if prompting == "cot_answer" else prompt


def query_llm(prompt: str, tokenizer: Any, max_len: int) -> str:
    """THUDM/LongBench 2e00731 pred.py, what query_llm sends as the user's message."""
    input_ids = tokenizer.encode(prompt)
    if len(input_ids) > max_len:
        input_ids = input_ids[: max_len // 2] + input_ids[-max_len // 2 :]
        prompt = tokenizer.decode(input_ids, skip_special_tokens=True)
    return str(prompt)


def test_the_prompts_are_the_bytes_of_upstreams_files() -> None:
    assert {name: hashlib.sha256(prompts()[name].encode()).hexdigest() for name in FILES} == FILES


@pytest.mark.parametrize("prompting", PROMPTINGS)
@pytest.mark.parametrize("length", [UNCUT, 301, 300, 120, 7, 3, 2, 1])
def test_prompts_are_those_of_upstreams_pred_cut_where_it_cuts(
    prompting: str, length: int, folder: Path, tiny: TextTokenizer, upstream_tokenizer: Any
) -> None:
    made = samples(Sources(folder), tiny, prompting, length=length)
    expected = [query_llm(upstream_prompt(record(i), prompting), upstream_tokenizer, length) for i in range(4)]
    assert [sample.prompt for sample in made] == expected
    tokens = [len(upstream_tokenizer.encode(upstream_prompt(record(i), prompting))) for i in range(4)]
    assert [sample.facts["whole_tokens"] for sample in made] == tokens
    assert [sample.facts["cut"] for sample in made] == [each > length for each in tokens]


@pytest.mark.parametrize("kind", ["llama-2", "metaspace", "byte-level"])
@pytest.mark.parametrize("length", [200, 201])
def test_the_cut_is_upstreams_with_other_tokenizers(
    kind: str, length: int, folder: Path, kinds: dict[str, TextTokenizer]
) -> None:
    from transformers import PreTrainedTokenizerFast

    theirs = PreTrainedTokenizerFast(tokenizer_object=kinds[kind]._inner, unk_token="<unk>")
    made = samples(Sources(folder), kinds[kind], "zero_shot", length=length)
    expected = [query_llm(upstream_prompt(record(i), "zero_shot"), theirs, length) for i in range(4)]
    assert [sample.prompt for sample in made] == expected and all(sample.facts["cut"] for sample in made)


@pytest.mark.parametrize("length", [UNCUT, 100, 61])
def test_the_second_prompt_is_upstreams_without_the_document_and_cut_as_the_first(
    length: int, folder: Path, tiny: TextTokenizer, upstream_tokenizer: Any
) -> None:
    own = recipe(Sources(folder), tiny, length=length, prompting="cot", wrap=Wrap("[INST]", "[/INST]"))
    for i, sample in enumerate(generators()["longbench_v2"](own)):
        second = follow_up(own, sample, REASONING)
        text = query_llm(upstream_prompt(record(i), "cot_answer", REASONING.strip()), upstream_tokenizer, length)
        assert second.prompt == f"[INST]{text}[/INST]"
        assert (second.id, second.references, second.max_new_tokens) == (sample.id, sample.references, 128)
        assert sample.max_new_tokens == 1024 and not second.then
        assert "document" not in {segment.role for segment in second.segments}


def test_a_text_with_a_marker_stands_as_it_is_and_is_noted(tmp_path: Path, tiny: TextTokenizer) -> None:
    row = record(0) | {"context": "costs $Q$ and $DOC$ and $C_A$", "choice_B": "$COT$", "question": "$C_A$?"}
    sources = Sources(write(tmp_path, [row, record(1)]))
    odd, plain = samples(sources, tiny, "zero_shot", count=2)
    assert "costs $Q$ and $DOC$ and $C_A$" in odd.prompt and "question: $C_A$?\n" in odd.prompt
    assert odd.prompt != upstream_prompt(row, "zero_shot")
    assert odd.facts["marker"].startswith("a text holds") and "marker" not in plain.facts
    own = recipe(sources, tiny, count=1, prompting="cot")
    sample = next(iter(generators()["longbench_v2"](own)))
    second = follow_up(own, sample, "so $Q$").prompt
    assert "(B) $COT$\n" in second and "step: so $Q$\n" in second and second.count("so $Q$") == 1


def test_the_context_is_one_document_and_the_question_the_query(folder: Path, tiny: TextTokenizer) -> None:
    for prompting, cue in (("zero_shot", None), ("cot", "Let’s think step by step:")):
        sample = samples(Sources(folder), tiny, prompting)[0]
        texts = {segment.role: segment.text for segment in sample.segments}
        assert texts["document"] == record(0)["context"].strip() and len(texts) == len(sample.segments)
        assert texts["query"].startswith("\n</text>\n\nWhat is the correct answer") and "(D) Nobody" in texts["query"]
        assert texts.get("answer_prefix") == cue and texts["preamble"].endswith("<text>\n")
    assert {segment.role for segment in samples(Sources(folder), tiny, "no_context")[0].segments} == {"query"}


def test_a_cut_prompt_keeps_its_roles_on_both_sides(folder: Path, tiny: TextTokenizer) -> None:
    for length in (300, 301):
        segments = samples(Sources(folder), tiny, "cot", length=length)[0].segments
        assert [segment.role for segment in segments] == ["preamble", "document", "query", "answer_prefix"]
        assert segments[1].text.startswith("Pier 0 of {Lorn}") and segments[2].text.startswith("\n</text>")


def test_the_chat_template_goes_around_what_is_left(folder: Path, tiny: TextTokenizer, upstream_tokenizer: Any) -> None:
    made = samples(Sources(folder), tiny, "zero_shot", length=200, wrap=Wrap("[INST]", "[/INST]"))
    text = query_llm(upstream_prompt(record(0), "zero_shot"), upstream_tokenizer, 200)
    assert made[0].prompt == f"[INST]{text}[/INST]"


def test_no_context_means_upstreams_prompt_for_it_and_not_with_reasoning(folder: Path, tiny: TextTokenizer) -> None:
    bare = samples(Sources(folder, context=False), tiny, "zero_shot")
    assert bare == samples(Sources(folder), tiny, "no_context")
    assert bare[0].prompt == upstream_prompt(record(0), "no_context") and bare[0].facts["context"] == "left out"
    with pytest.raises(CardError, match=r"--prompting cot needs the context: leave out --no-context"):
        samples(Sources(folder, context=False), tiny, "cot")
    with pytest.raises(CardError, match=r"args\.prompting: 'few_shot' is not one of zero_shot, cot, no_context"):
        samples(Sources(folder), tiny, "few_shot")


def test_facts_say_what_the_tables_need_and_questions_on_one_context_share_their_source(
    folder: Path, tiny: TextTokenizer
) -> None:
    made = samples(Sources(folder), tiny, "zero_shot")
    for i, sample in enumerate(made):
        row, facts = record(i), sample.facts
        assert facts["id"] == row["_id"] and facts["size"] == row["length"] and facts["prompting"] == "zero_shot"
        assert all(facts[name] == row[name] for name in ("domain", "sub_domain", "difficulty"))
        assert sample.references == (f"The correct answer is ({row['answer']})",)
    sources = [sample.facts["source"] for sample in made]
    assert sources[0] == sources[3] and len(set(sources)) == 3


def test_the_reference_and_no_reasoning_is_teacher_forced(folder: Path, tiny: TextTokenizer) -> None:
    asked = {kind: to_request(samples(Sources(folder), tiny, kind)[1], tiny, "first", None) for kind in PROMPTINGS}
    said = tiny.encode(" The correct answer is (B)")
    assert [list(asked[kind].reference_ids) for kind in PROMPTINGS] == [said, [], said]


def test_letters_are_choices_behind_lm_evaluation_harness_words(folder: Path, tiny: TextTokenizer) -> None:
    own = recipe(Sources(folder), tiny)
    made = list(generators()["longbench_v2_choices"](own))
    for i, sample in enumerate(made):
        row = record(i)
        doc = {"context": row["context"].strip(), "question": row["question"]}
        choices = [row[f"choice_{letter}"].strip() for letter in "ABCD"]
        # lm-eval 0.4.13 tasks/longbench2, doc_to_text and doc_to_choice behind the default target_delimiter " "
        assert sample.prompt == (
            f"Please read the following text and answer the question below.\n\n<text>\n{doc['context']}\n</text>\n\n"
            f"What is the correct answer to this question: {doc['question'].strip()}\nChoices:\n(A) {choices[0]}\n(B) "
            f"{choices[1]}\n(C) {choices[2]}\n(D) {choices[3]}\n\nAnswer:"
        )
        assert [choice.text for choice in sample.choices] == [" A", " B", " C", " D"]
        assert "ABCD"[sample.facts["gold"]] == row["answer"] == sample.references[0]
        assert sample.segments[-1].role == "answer_prefix" and sample.segments[-1].text == "Answer:"
        request = to_request(sample, tiny, "first", None)
        assert request.gold == i
        for letter, choice in zip("ABCD", request.choices, strict=True):
            assert list(choice.token_ids) == tiny.encode(f" {letter}") and choice.counted == len(choice.token_ids)


def test_the_cards_are_upstreams() -> None:
    tasks = load_tasks()[0]
    task, letters = tasks["longbench_v2/questions"], tasks["longbench_v2_choices/questions"]
    assert (task.samples, task.lengths, task.length_of, task.max_new_tokens) == (503, (120_000,), "prompt", 128)
    assert task.settings == ("prompting",) and task.args == {"prompting": "zero_shot"}
    assert (letters.samples, letters.lengths, letters.max_new_tokens) == (503, (120_000,), 0) and not letters.settings


@pytest.mark.parametrize("inner", ["longbench_v2", "LongBench-v2", "", "data"])
def test_the_file_is_found_where_it_may_lie_and_recorded(inner: str, tmp_path: Path, tiny: TextTokenizer) -> None:
    path = write(tmp_path / "in", [record(0)], escaped=True) / "longbench_v2" / "data.json"
    place = tmp_path / "out" / inner / "data.json"
    place.parent.mkdir(parents=True)
    path.rename(place)
    sources = Sources(tmp_path / "out", cache=tmp_path / "none")
    assert find(sources) == place and samples(sources, tiny, "zero_shot", count=1)
    sha256 = hashlib.sha256(place.read_bytes()).hexdigest()
    assert sources.describe()[LONGBENCH_V2.file] == f"not the published file: sha256 {sha256}"
    assert "revision" not in sources.files()[LONGBENCH_V2.file]  # which is that of the published file alone
    assert LONGBENCH_V2.revision.startswith("2b48e49") and not sources.published


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"choice_C": None}, "record 2: 'choice_C' is not a str: expected LongBench v2's own records"),
        ({"answer": "E"}, "record 2: 'answer' is 'E', not one of A, B, C, D"),
        ({"answer": ""}, "record 2: 'answer' is ''"),
        ({"length": "tiny"}, "record 2: 'length' is 'tiny', not one of short, medium, long"),
        ({"difficulty": 3}, "record 2: 'difficulty' is not a str"),
        ({"context": "half \ud800 a pair"}, "record 2: 'context' holds half a character"),
    ],
)
def test_a_record_of_another_form_is_refused_in_one_line(
    change: dict[str, Any], says: str, tmp_path: Path, tiny: TextTokenizer
) -> None:
    sources = Sources(write(tmp_path, [record(0), record(1) | change], escaped=True), cache=tmp_path / "none")
    with pytest.raises(SourceError) as caught:
        samples(sources, tiny, "zero_shot", count=2)
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_too_few_records_and_no_file_say_what_to_do_before_the_first_prompt(
    tmp_path: Path, folder: Path, tiny: TextTokenizer
) -> None:
    with pytest.raises(SourceError, match=r"has 8 records, 9 were asked for and 503 are published: --limit 8"):
        next(iter(generators()["longbench_v2"](recipe(Sources(folder), tiny, count=9))))
    with pytest.raises(SourceError) as caught:
        samples(Sources(tmp_path, cache=tmp_path / "none"), tiny, "zero_shot")
    for part in ("data.json", LONGBENCH_V2.revision, "data fetch longbench_v2", "--data-dir"):
        assert part in str(caught.value)


def test_only_the_records_that_are_asked_for_are_read(
    tmp_path: Path, tiny: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, [record(0)]) / "longbench_v2" / "data.json"
    path.write_text(json.dumps([record(0), record(1)])[:-1] + ", broken", encoding="utf-8")
    assert len(samples(Sources(tmp_path), tiny, "zero_shot", count=2)) == 2
    seen: list[int] = []

    def counted(*_: object) -> Iterator[dict[str, Any]]:
        for i in range(503):
            seen.append(i)
            yield record(i)

    monkeypatch.setattr("anchoreval.suites.longbench_v2.generate.objects", counted)
    own = replace(LONGBENCH_V2, sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    monkeypatch.setattr("anchoreval.suites.longbench_v2.generate.LONGBENCH_V2", own)  # as the published file
    made = generators()["longbench_v2"](recipe(Sources(tmp_path), tiny, count=503))
    next(iter(made))
    assert seen == [0], "one record at a time"
