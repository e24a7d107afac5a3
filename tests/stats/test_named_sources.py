"""What samples share: every suite names its sources, in records of today and of before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from anchoreval.schema import Record
from anchoreval.stats import cluster_of


def record(
    task: str, index: int, facts: Mapping[str, Any], length: int = 512, references: tuple[str, ...] = ("1",)
) -> Record:
    return Record(
        key=f"{task}{index}", sample_id=f"{task}@{length}#{index}", task=task, length=length, index=index, arm="a",
        prompt_sha256="0", prompt_tokens=1, references=references, facts=facts, output="1", output_tokens=1,
        finish="stop", score=1.0, why=None, reference_logprob=None, reference_tokens=0, seconds=0.0,
    )  # fmt: skip


def row(task: str, index: int, doc: Mapping[str, Any], folder: str = "mmlu/default") -> Record:
    return record(f"general/{task}", index, {"lm_eval": {"task": task, "folder": folder}, "doc": doc})


PEOPLE = {"question": 3, "source": 6, "haystack": "generated"}
PASSAGE = "This question refers to the following information.\nA decree of 1789.\n"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param(
            record("longbench/qasper", 0, {"source": "ab12"}), record("longbench_e/qasper", 7, {"source": "ab12"}),
            id="a text, in two suites",
        ),
        pytest.param(
            record("niah/single", 0, {"source": "niah haystack 1"}, 512),
            record("niah/number", 9, {"source": "niah haystack 1"}, 1024), id="the haystack of a repeat",
        ),
        pytest.param(
            record("ruler/qa_1", 3, {"question": 3, "source": 8}, 512),
            record("ruler/qa_1", 5, {"question": 5, "source": 8}, 1024), id="two questions on a paragraph",
        ),
        pytest.param(
            record("ruler-balanced/qa_1", 30, PEOPLE, 512), record("ruler-balanced/qa_1", 31, PEOPLE, 1024),
            id="one invented person at two lengths",
        ),
        pytest.param(
            record("ruler-balanced/qa_1", 3, {"source": 6, "haystack": "published"}),
            record("ruler-balanced/qa_1", 27, {"source": 6, "haystack": "published"}),
            id="two questions on a published paragraph",
        ),
        pytest.param(
            record("ruler/qa_1", 3, {"question": 3}), record("ruler/qa_1", 2, {"question": 3}, 1024),
            id="a question at two lengths, before paragraphs were named",
        ),
        pytest.param(
            record("babilong/qa1", 0, {"source": "bAbI qa1 4", "question": "Where is Mary?"}),
            record("babilong_corrected/qa1", 1, {"source": "bAbI qa1 4", "question": "Where is John?"}),
            id="two questions of a story",
        ),
        pytest.param(
            record("ruler/niah_single_2", 4, {}, 512, ("81",)), record("ruler/niah_single_2", 4, {}, 1024, ("81",)),
            id="one needle at two lengths",
        ),
        pytest.param(
            row("mmlu_world_history", 0, {"question": f"{PASSAGE}Who signed it?"}),
            row("mmlu_world_history", 1, {"question": f"{PASSAGE}Which is true?"}), id="two questions on a passage",
        ),
        pytest.param(
            row("truthfulqa_mc1", 5, {"question": "Why?", "mc": [1]}, "truthfulqa"),
            row("truthfulqa_mc2", 5, {"mc": [1], "question": "Why?"}, "truthfulqa"), id="one row in two tasks",
        ),
        pytest.param(
            row("hellaswag", 0, {"query": "a", "source_id": "wikihow~1"}, "hellaswag"),
            row("hellaswag", 1, {"query": "b", "source_id": "wikihow~1"}, "hellaswag"), id="two sentences of a text",
        ),
        pytest.param(
            row("piqa", 0, {"goal": "Boil", "sol1": "a"}, "piqa"),
            row("piqa", 1, {"goal": "Boil", "sol1": "b"}, "piqa"), id="two pairs for a goal",
        ),
    ],
)  # fmt: skip
def test_samples_of_one_source_are_one_unit(one: Record, other: Record) -> None:
    assert cluster_of(one) == cluster_of(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (record("ruler/niah_single_2", 4, {}), record("ruler/niah_single_2", 5, {})),
        (record("ruler/niah_single_2", 4, {}), record("ruler/niah_single_1", 4, {})),
        (record("ruler/niah_multikey_2", 4, {}, 512, ("1",)), record("ruler/niah_multikey_2", 4, {}, 1024, ("2",))),
        (record("babilong/qa1", 0, {"question": "Where?"}), record("babilong/qa1", 1, {"question": "Where?"})),
        (record("babilong/qa1", 0, {"story": 0}), record("babilong/qa1", 1, {"story": 1})),
        (record("ruler/qa_1", 0, {"source": 8}), record("ruler/qa_2", 0, {"source": 8})),
        (record("ruler-balanced/qa_1", 3, PEOPLE), record("ruler-balanced/qa_1", 27, PEOPLE)),
        (record("longbench/qasper", 0, {"source": "ab12"}), record("longbench/qasper", 1, {"source": "cd34"})),
        (row("arc_easy", 0, {"question": "Why?"}, "arc"), row("arc_easy", 1, {"question": "How?"}, "arc")),
        (row("mmlu_law", 0, {"question": "Who?\nA"}), row("mmlu_law", 1, {"question": "Who?\nB"})),
    ],
)  # fmt: skip
def test_samples_of_two_sources_are_two_units(one: Record, other: Record) -> None:
    assert cluster_of(one) != cluster_of(other)


@pytest.mark.parametrize("facts", [{"lm_eval": 3, "doc": 4}, {"lm_eval": {}, "doc": None}, {"source": None}])
def test_facts_of_another_type_name_no_source(facts: Mapping[str, Any]) -> None:
    assert cluster_of(record("general/x", 0, facts)) != cluster_of(record("general/x", 1, facts))
