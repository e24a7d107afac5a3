"""Which pieces of a prompt are documents, for each of the thirteen tasks; and that the prompts stay what they were."""

from __future__ import annotations

import hashlib
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from ruler_tasks import TASKS, samples

from anchoreval.cards import find_model
from anchoreval.prompt import cut_documents, document_tokens, to_request
from anchoreval.schema import Sample, Wrap
from anchoreval.texts.sources import Sources
from anchoreval.tokenizer import TextTokenizer, load_tokenizer

CHAT = Wrap("[INST] ", " [/INST]")
WRAPS = {"base": Wrap(), "chat": CHAT}
# Hashes of prompts and token ids, written by the version in which every haystack was one document.
GOLDEN = [
    json.loads(line)
    for line in (Path(__file__).parents[2] / "golden" / "generated_prompts.jsonl").read_text().splitlines()
]
LINES = ["preamble", "line", "query", "answer_prefix"]
WHOLE = ["preamble", "document", "query", "answer_prefix"]
SHAPES = {
    **dict.fromkeys(TASKS, WHOLE),
    **dict.fromkeys(["niah_single_1", "niah_multikey_2", "niah_multikey_3"], LINES),
    "vt": ["document", *LINES],
    "cwe": ["document", *WHOLE],
}


@pytest.fixture(scope="module")
def tiny() -> TextTokenizer:
    return load_tokenizer(find_model("anchor-tiny")[1].checkpoint)


def texts(sample: Sample, role: str) -> list[str]:
    return [segment.text for segment in sample.segments if segment.role == role]


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda golden: f"{golden['task']}-{golden['template']}")
def test_prompts_and_tokens_are_those_of_before(
    golden: dict[str, Any], tiny: TextTokenizer, generated: Sources
) -> None:
    made = samples(golden["task"], 2048, 3, tiny, generated, WRAPS[golden["template"]])
    assert sha256("\n\n".join(sample.prompt for sample in made)) == golden["prompts"]
    assert (
        sha256(json.dumps([to_request(sample, tiny, "comma", None).token_ids for sample in made])) == golden["tokens"]
    )


@pytest.mark.parametrize("task", TASKS)
def test_the_roles_of_a_prompt_stand_in_this_order(task: str, tiny: TextTokenizer, generated: Sources) -> None:
    for sample in samples(task, 2048, 2, tiny, generated):
        assert [role for role, _ in itertools.groupby(segment.role for segment in sample.segments)] == SHAPES[task]
        assert all(segment.text for segment in sample.segments)


@pytest.mark.parametrize("task", ["niah_single_1", "niah_multikey_2", "niah_multikey_3", "vt"])
def test_each_line_of_a_haystack_is_a_document_with_its_newline(
    task: str, tiny: TextTokenizer, generated: Sources
) -> None:
    for sample in samples(task, 2048, 2, tiny, generated):
        lines = texts(sample, "line")
        assert len(lines) == sample.facts["units"] + len(sample.facts["depths"])
        assert all(line.index("\n") == len(line) - 1 for line in lines[:-1]) and "\n" not in lines[-1]
        assert texts(sample, "query")[0].startswith("\n")
        assert "".join(lines) in sample.prompt
        answers = [line for line in lines if any(reference in line for reference in sample.references)]
        assert len(answers) == len(sample.facts["depths"])


@pytest.mark.parametrize(
    ("task", "begins", "answer"),
    [("vt", "Memorize and track", "they are: "), ("cwe", "Below is a numbered list", "in the list are: 1. ")],
)
@pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS)
def test_a_worked_example_is_a_document_with_its_answer_and_no_part_of_the_instruction(
    task: str, begins: str, answer: str, wrap: Wrap, tiny: TextTokenizer, generated: Sources
) -> None:
    for sample in samples(task, 2048, 2, tiny, generated, wrap):
        example = next(iter(texts(sample, "document")))
        instruction = texts(sample, "preamble")[-1]
        assert example.endswith("\n") and example.count(begins) == example.count(answer) == 1
        assert instruction.count(begins) == 1 and "Question:" not in instruction
        before = sample.prompt[: sample.prompt.index(example)]
        assert before == (wrap.opening if task == "vt" else "")


def test_without_an_example_there_is_no_document_for_it(tiny: TextTokenizer, generated: Sources) -> None:
    (sample,) = samples("cwe", 640, 1, tiny, generated)
    assert sample.facts["form"].startswith("no example") and len(texts(sample, "document")) == 1


@pytest.mark.parametrize("task", TASKS)
def test_blocks_hold_joined_lines_and_cut_documents_and_move_no_token(
    task: str, tiny: TextTokenizer, generated: Sources
) -> None:
    (sample,) = samples(task, 2048, 1, tiny, generated)
    request = to_request(sample, tiny, "comma", None)
    cut = cut_documents(request, 100)
    assert (cut.token_ids, len(cut.segment_ids)) == (request.token_ids, len(request.segment_ids))
    before, after = runs(request.segment_ids, request.roles), runs(cut.segment_ids, cut.roles)
    lines = [size for role, size in before if role == "line"]
    whole = [size for role, size in before if role == "document"]
    expected = [block for size in [*whole, sum(lines)] for block in (*[100] * (size // 100), size % 100) if block]
    assert [size for role, size in after if role == "document"] == expected
    assert [run for run in after if run[0] != "document"] == [
        run for run in before if run[0] not in {"document", "line"}
    ]


def runs(segment_ids: tuple[int, ...], roles: tuple[str, ...]) -> list[tuple[str, int]]:
    """Role and tokens of every segment of a request, in order."""
    return [(roles[segment], len(list(run))) for segment, run in itertools.groupby(segment_ids) if segment >= 0]


def test_the_documents_of_a_request_are_the_lines_and_the_example(tiny: TextTokenizer, generated: Sources) -> None:
    (sample,) = samples("vt", 2048, 1, tiny, generated)
    request = to_request(sample, tiny, "comma", None)
    documents = texts(sample, "document") + texts(sample, "line")
    assert document_tokens(request)["count"] == len(documents) == sample.facts["units"] + 5 + 1
    assert document_tokens(request)["max"] == len(tiny.encode(documents[0]))
