"""docs/findings.md says what the committed records say, and no more."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import report
from findings import family
from findings.evidence import MODEL, REPOSITORY, RESULTS, Evidence, lines, read
from findings.gather import gather
from findings.losses import value_of
from findings.page import LOSSES, PROBES, RUNS, rendered

from anchoreval import compare
from anchoreval.diagnostics.probe import Study, write_probe
from anchoreval.diagnostics.probe.sheet import BY_HEAD, MEASURES, OfText, Row, Setting, unpacked
from anchoreval.records.kept import Kept
from anchoreval.reports.nll.rows import Losses, csv_of, rows_of
from anchoreval.reports.words import size

PAGE = REPOSITORY / "docs" / "findings.md"


@pytest.fixture(scope="module")
def evidence() -> Evidence:
    return read()


def test_every_number_of_the_page_is_recomputed_from_the_committed_records(evidence: Evidence) -> None:
    assert PAGE.read_text("utf-8") == rendered(evidence), "make findings writes docs/findings.md anew"


def test_the_page_of_trained_variants_is_recomputed_from_the_committed_records() -> None:
    text = (REPOSITORY / "docs" / "variants.md").read_text("utf-8")
    assert text == family.page(), "make findings writes docs/variants.md anew"
    if (found := family.found()) is not None:
        assert text.split("\n1. ")[1].startswith("The control") and family.section() in PAGE.read_text("utf-8")
        assert (family.RESULTS / "family.svg").read_text("utf-8") == report.picture(found)


def test_the_board_of_the_family_prints_the_means_of_its_records() -> None:
    found = family.found()
    if found is None:
        pytest.skip("no model of the family is committed")
    board = [line for line in lines(REPOSITORY / "leaderboards" / "boards" / "family.csv") if line["kind"] == "row"]
    of = {(row["model"], row["arm"]): float(row["value"]) for row in board if row["column"] == f"{found.longest:,}"}
    models = {(arm, steps, seed, level): one for ((arm, steps, level), seed), one in found.needles.items() if steps}
    for (arm, steps, seed, level), one in models.items():
        right = [value for (length, _), value in one.right.items() if length == found.longest]
        assert of[f"{arm}-seed{seed}-step{steps}", level] == pytest.approx(100 * sum(right) / len(right), abs=0.01)


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


def test_readme_prints_the_committed_figures() -> None:
    readme = (REPOSITORY / "README.md").read_text("utf-8")
    paragraph = readme.split("## What it finds on a real model")[1].split("\n## ")[0]
    assert "(docs/findings.md)" in paragraph and MODEL in paragraph
    contrasts = {one.arm: one.pooled for one in compare(RESULTS / "eb79dc8496f766f6")}
    for arm in ("bf16", "bf16-angle"):
        assert f"`{arm}`" in paragraph and size(contrasts[arm]) in paragraph and contrasts[arm].word in paragraph
    for name, last in (("nll-1024", "1023"), ("nll-8192", "8191")):
        for line in lines(RESULTS / name / "nll.csv"):
            whole = line["baseline"] and (line["first"], line["last"]) == ("1", last)
            if whole and line["arm"] in ("bf16", "bf16-angle"):
                assert value_of(line) in " ".join(paragraph.split())
            if whole and line["arm"].endswith("~placebo"):
                assert max(abs(float(line["low"])), abs(float(line["high"]))) < 1e-7 and "less than 1e-7" in paragraph
    picture = paragraph.split("](")[-1].split(")")[0]
    assert (REPOSITORY / picture).is_file()


def study_of(dtype: str) -> Study:
    """Two lengths, two levels, a curve, two keys, a layer and a head of it."""
    rows, texts = [], []
    for level, times in (("native", 1.0), ("bf16", 1000.0), ("fp32-qk", 1.0)):
        for length, shift in ((64, 0), (64, 8), (128, 0)):
            at = Setting(dtype, "end-to-end", "shift", level, level, length, shift, 16, 2, 64)
            values = dict.fromkeys(BY_HEAD, times * 0.0001) | {"mass_first": 0.4, "share_first": 0.2}
            halves = {name: value / 10 for name, value in values.items()}
            rows.append(Row(at, "all", "all", "all", values, halves))
            texts += [OfText(replace(at, texts=1), text, values) for text in (0, 1)]
            if shift == 0:
                rows += [Row(at, "all", "all", key, {"key_logit": 0.1, "key_weight": 0.2}) for key in ("0", "1")]
                rows.append(Row(at, "0", "all", "all", values, halves))
                rows += [Row(replace(at, texts=1), "0", str(head), "all", values) for head in range(2)]
    return Study(MODEL, tuple(rows), {"stored": dtype}, tuple(texts))


@pytest.fixture
def measured(tmp_path: Path) -> Path:
    """What the commands wrote of a probe, of losses and of two runs, one of them not finished."""
    source = tmp_path / "source"
    write_probe(study_of("fp32"), source / "deep" / "probe-float32")
    plain = [["end-to-end", "shift", 0, 16, "all", "all", "all", [0.5] * len(MEASURES)]]
    kept = Kept(source / "deep" / "probe-float32" / "probe.jsonl")
    kept.add("one", plain)
    with kept.file.open("a") as torn:  # type: ignore[union-attr]
        torn.write('{"name": "tw')
    losses = Losses(128, {arm: np.full((2, 127), 3.0) + at * 0.01 for at, arm in enumerate(("fp32", "bf16"))}, (0, 1))
    folder = source / "nll-1024"
    folder.mkdir()
    (folder / "nll.csv").write_text(csv_of(rows_of(losses)))
    (folder / "nll.json").write_text('{"engine": {"dtype": "float32"}}')
    shutil.copytree(RESULTS / "eb79dc8496f766f6", source / MODEL / "eb79dc8496f766f6")
    other = shutil.copytree(RESULTS / "eb79dc8496f766f6", source / MODEL / "other")
    header = json.loads((other / "header.json").read_text("utf-8")) | {"finished": None, "template": "chat"}
    (other / "header.json").write_text(json.dumps({key: value for key, value in header.items() if key != "seal"}))
    (other / "lock").write_text("")
    return source


def test_what_was_measured_is_gathered_whole_lean_and_twice_the_same(measured: Path, tmp_path: Path) -> None:
    place = tmp_path / "place"
    gather(measured, place)
    names = {str(path.relative_to(place)) for path in place.rglob("*") if path.is_file()}
    probe = {f"probe-float32/{name}" for name in ("probe.csv", "probe.svg", "texts.csv", "probe.jsonl")}
    run = {"header.json", "records.jsonl"}
    assert names == probe | {"nll-1024/nll.csv", "nll-1024/nll.json"} | {
        f"{name}/{file}" for name in ("eb79dc8496f766f6", "other") for file in run
    }
    (kept,) = Kept(place / "probe-float32" / "probe.jsonl").lines.items()
    assert kept[0] == "one" and isinstance(kept[1], str) and unpacked(kept[1])[0].values["D"] == 0.5
    heads = [line for line in lines(place / "probe-float32" / "probe.csv") if line["head"] != "all"]
    assert {(line["level"], line["length"]) for line in heads} == {("native", "128")}
    before = {name: (place / name).read_bytes() for name in names}
    gather(place, place)
    assert before == {name: (place / name).read_bytes() for name in names}
    gather(measured, place, with_lines=False)
    assert not list(place.glob("probe-*/probe.jsonl"))


def test_every_kind_of_measurement_has_its_section_and_its_sentence_at_the_top(measured: Path, tmp_path: Path) -> None:
    gather(measured, tmp_path / "place")
    text = rendered(read(tmp_path / "place"))
    top = text.split("sentences\n")[1].split("\n## ")[0]
    assert "moves attention by D = 0.100 ± 0.010" in top and "floor: 1.0e-04 ± 1.0e-05 under `fp32-qk`" in top
    assert "first key's score 1 times as much" in top and "`bf16` minus `fp32` is +0.0100" in top
    assert "`bf16` minus `fp32` is -0.4 [-2.8, +2.0] points" in top
    assert "2 of 2 heads put 30% or more" in text and "| 64–127 |" in text and "| text 2 |" in text
    assert "- RULER at 1,024 tokens, chat template (520 records so far)" in text
    assert "and Figure 7 (so far to 128 tokens)" in text
    probe = tmp_path / "place" / "probe-float32" / "probe.csv"
    probe.unlink()
    assert "and Figure 7 (1 lines so far)" in rendered(read(tmp_path / "place"))


def test_a_changed_record_changes_the_page(tmp_path: Path) -> None:
    copy = tmp_path / MODEL
    shutil.copytree(RESULTS / "eb79dc8496f766f6", copy / "eb79dc8496f766f6")
    records = copy / "eb79dc8496f766f6" / "records.jsonl"
    lines = records.read_text("utf-8").splitlines(keepends=True)
    at = next(i for i, line in enumerate(lines) if '"score":1.0' in line.replace(" ", "") and '"bf16"' in line)
    lines[at] = re.sub(r'("score": ?)1\.0', r"\g<1>0.0", lines[at])
    records.write_text("".join(lines), "utf-8")
    assert rendered(read(copy)) != rendered(read(RESULTS))
