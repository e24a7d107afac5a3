"""docs/findings.md says what the committed records say, and no more."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from findings.evidence import MODEL, REPOSITORY, RESULTS, Evidence, read
from findings.page import LOSSES, PROBES, RUNS, rendered

PAGE = REPOSITORY / "docs" / "findings.md"


@pytest.fixture(scope="module")
def evidence() -> Evidence:
    return read()


def test_every_number_of_the_page_is_recomputed_from_the_committed_records(evidence: Evidence) -> None:
    assert PAGE.read_text("utf-8") == rendered(evidence), "make findings writes docs/findings.md anew"


def test_every_sentence_names_the_model_a_number_an_interval_and_the_floor(evidence: Evidence) -> None:
    text = rendered(evidence)
    quoted = re.findall(r"^\d\. (.*)$", text.split("## In five sentences")[1].split("\n## ")[0], re.MULTILINE)
    assert len(quoted) == 5
    for sentence in quoted:
        assert sentence.startswith(f"`{MODEL}`") and sentence.endswith(".")
        assert re.search(r"\[[-+.\de]+, [-+.\de]+\]| ± ", sentence), sentence
        assert "floor" in sentence or "no placebo" in sentence, sentence


def test_what_is_committed_stands_on_the_page_and_the_rest_is_named_as_not_measured(evidence: Evidence) -> None:
    text = rendered(evidence)
    shown, _, waiting = text.partition("## Not measured yet")
    for name, title in RUNS.items():
        assert (f"## {title}\n" in shown) == (name in evidence.runs)
        assert bool(re.search(rf"^- {re.escape(title)}( \(.*\))?$", waiting, re.MULTILINE)) == (
            name not in evidence.runs
        )
    assert evidence.runs.keys() <= RUNS.keys() and evidence.probes.keys() <= PROBES.keys()
    assert evidence.losses.keys() <= LOSSES.keys()


def test_a_changed_record_changes_the_page(tmp_path: Path) -> None:
    copy = tmp_path / MODEL
    shutil.copytree(RESULTS / "eb79dc8496f766f6", copy / "eb79dc8496f766f6")
    records = copy / "eb79dc8496f766f6" / "records.jsonl"
    lines = records.read_text("utf-8").splitlines(keepends=True)
    at = next(i for i, line in enumerate(lines) if '"score":1.0' in line.replace(" ", "") and '"bf16"' in line)
    lines[at] = re.sub(r'("score": ?)1\.0', r"\g<1>0.0", lines[at])
    records.write_text("".join(lines), "utf-8")
    assert rendered(read(copy)) != rendered(read(RESULTS))
