"""Byte-exactness with NVIDIA's own scripts, against every reference file that exists."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from ruler_tasks import samples

from anchoreval.schema import Sample, Wrap
from anchoreval.texts.sources import Sources
from anchoreval.tokenizer import TextTokenizer

HASHES = {
    entry["file"]: entry["rows"]
    for entry in map(json.loads, (Path(__file__).parents[2] / "golden" / "ruler_hashes.jsonl").read_text().splitlines())
}
META_CHAT = ("cwe_4096", "fwe_4096", "niah_single_1_4096", "qa_1_4096", "vt_4096")


def parts(name: str) -> tuple[str, int]:
    task, length = Path(name).stem.rsplit("_", 1)
    return task, int(length)


def agrees(sample: Sample, row: dict[str, Any]) -> None:
    """Prompt, prefix, answers and length of one sample are upstream's."""
    body = "".join(segment.text for segment in sample.segments[:-1])
    assert sample.segments[-1].role == "answer_prefix"
    assert sample.segments[-1].text == row["answer_prefix"]
    assert hashlib.sha256(body.encode()).hexdigest() == row["input_sha256"]
    assert list(sample.references) == row.get("outputs", list(sample.references))
    assert sample.facts["tokens"] == row["length"]
    assert sample.facts["fit"] == "upstream"


@pytest.mark.parametrize("name", sorted(HASHES))
def test_prompts_are_upstreams_byte_for_byte(
    name: str, golden_tokenizer: TextTokenizer, golden_sources: Sources
) -> None:
    task, length = parts(name)
    made = samples(task, length, len(HASHES[name]), golden_tokenizer, golden_sources)
    for sample, row in zip(made, HASHES[name], strict=True):
        agrees(sample, row)


@pytest.mark.parametrize("name", META_CHAT)
def test_prompts_in_a_chat_template_are_upstreams_byte_for_byte(
    name: str, shared: Path, golden_tokenizer: TextTokenizer, golden_sources: Sources
) -> None:
    task, length = parts(name)
    lines = (shared / "golden" / "ruler_meta_chat" / f"{name}.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    made = samples(task, length, len(rows), golden_tokenizer, golden_sources, Wrap("[INST] ", " [/INST]"))
    for sample, row in zip(made, rows, strict=True):
        agrees(sample, row | {"input_sha256": hashlib.sha256(row["input"].encode()).hexdigest()})


def test_the_token_position_of_a_needle_is_upstreams_up_to_its_sentence(
    shared: Path, golden_tokenizer: TextTokenizer, golden_sources: Sources
) -> None:
    lines = (shared / "golden" / "ruler" / "niah_single_2_4096.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    for sample, row in zip(samples("niah_single_2", 4096, 20, golden_tokenizer, golden_sources), rows, strict=True):
        (position,) = sample.facts["token_positions"]
        start = row["input"].find(" One of the special magic")
        assert position == golden_tokenizer.count(row["input"][:start])
        assert position < row["token_position_answer"] < position + 40


def test_sources_that_are_not_the_published_files_are_said_to_be_so(golden_sources: Sources) -> None:
    golden_sources.essay()
    assert golden_sources.others[0].startswith("PaulGrahamEssays.json not the published file: sha256 ")
    assert golden_sources.describe()["PaulGrahamEssays.json"].startswith("not the published file: sha256 ")
