"""Runs that stopped by their rule verify, and what is done to their rounds or verdicts afterwards is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from anchoreval import evaluate
from anchoreval.records.header import HEADER
from anchoreval.records.lines import RECORDS
from anchoreval.runs.rounds import ROUND
from anchoreval.runs.verify.records import findings

Lines = list[bytes]


def make(output: Path, limit: int) -> Path:
    return evaluate(
        "anchor-tiny", "ruler/niah_single_1,ruler/vt", lengths=[512], limit=limit, backend="fake", arms="bf16,fp32",
        placebo=True, until="20pt@90%", output=output, backend_args={"mode": "half"},
    ).path  # fmt: skip


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("original"), 120)


@pytest.fixture
def run(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "run"))


def differences(path: Path) -> list[str]:
    return [str(finding) for finding in findings(path) if finding.differs]


def notices(path: Path) -> list[str]:
    return [str(finding) for finding in findings(path) if not finding.differs]


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    header = json.loads((path / HEADER).read_text())
    change(header)
    header.pop("seal", None)
    (path / HEADER).write_text(json.dumps(header))


def rewrite(path: Path, change: Callable[[Lines], Lines]) -> None:
    file = path / RECORDS
    file.write_bytes(b"".join(change(file.read_bytes().splitlines(keepends=True))))
    edit(path, lambda header: None)


def test_a_run_that_stopped_early_passes_with_its_placebo_and_nothing_is_missing(run: Path) -> None:
    header = json.loads((run / HEADER).read_text())
    lines = [json.loads(line) for line in (run / RECORDS).read_bytes().splitlines()]
    assert all(cell["used"] < cell["asked"] for cell in header["until"]["cells"])
    assert [line["task"] for line in lines] != sorted(line["task"] for line in lines)  # interleaved
    assert "bf16~placebo" in {line["arm"] for line in lines}
    assert not list(findings(run))


def test_a_run_whose_samples_ran_out_undecided_passes(tmp_path: Path) -> None:
    path = make(tmp_path, 10)
    (cell, _) = json.loads((path / HEADER).read_text())["until"]["cells"]
    assert (cell["used"], cell["arms"]["fp32"]["verdict"]) == (10, "undecided")
    assert not list(findings(path))


def test_an_unfinished_run_is_said_to_be_one_and_is_no_error(run: Path) -> None:
    edit(run, lambda header: (header.pop("finished"), header["until"].pop("cells")))
    rewrite(run, lambda lines: lines[:-5])
    assert not differences(run) and any("not finished" in line for line in notices(run))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda cells: cells[0]["arms"]["fp32"].update(verdict="worse"), "fp32: verdict is worse, from the records eq"),
        (lambda cells: cells[0]["arms"]["fp32"].update(difference=-0.2), "fp32: difference is -0.2, from the records"),
        (lambda cells: cells[1]["arms"]["fp32"].update(low=-0.9), "ruler/vt at 512: fp32: low is -0.9"),
        (lambda cells: cells[1]["arms"]["fp32"].update(pairs=3), "fp32: pairs is 3, from the records"),
        (lambda cells: cells[0]["arms"].pop("fp32"), "verdicts on , not on fp32"),
        (lambda cells: cells[0].update(used=ROUND), f"stopped after {ROUND} of 120 samples with no verdict"),
        (lambda cells: cells[0].update(used=120), "ruler/niah_single_1 at 512: used is 120, by the rule"),
        (lambda cells: cells.pop(), "until: cells: not those that were asked for"),
        (lambda cells: cells.clear(), "until: the run finished and no verdict stands here"),
        (lambda cells: cells[0].update(used=0), "until > cells > 0 > used"),
    ],
)
def test_a_changed_verdict_is_named(run: Path, change: Callable[[Any], Any], says: str) -> None:
    edit(run, lambda header: change(header["until"]["cells"]))
    found = differences(run)
    assert any(f"{run / HEADER}: " in line and says in line for line in found), found


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda header: header["until"].update(rule="5pt@90%"), "until: rule: not that of 20pt@90%"),
        (lambda header: header["until"].update(round=8), "until: round: not that of"),
        (lambda header: header.pop("until"), "until: stands in the header or in its identity, not in both"),
    ],
)
def test_a_changed_rule_is_named(run: Path, change: Callable[[Any], Any], says: str) -> None:
    edit(run, change)
    assert any(says in line for line in differences(run))


def test_scores_that_give_another_verdict_are_not_those_of_the_header(run: Path) -> None:
    def wrong(line: bytes) -> bytes:
        record = json.loads(line)
        return json.dumps(record | ({"output": "", "score": 0.0} if record["arm"] == "fp32" else {})).encode() + b"\n"

    rewrite(run, lambda lines: [wrong(line) for line in lines])
    found = differences(run)
    assert any("fp32: verdict is equivalent within 20, from the records worse" in line for line in found), found


def test_a_round_that_comes_too_early_is_out_of_order(run: Path) -> None:
    rewrite(run, lambda lines: [lines[-1], *lines[:-1]])
    assert any("out of order" in line for line in differences(run))


def test_a_deleted_line_is_a_missing_record(run: Path) -> None:
    gone = json.loads((run / RECORDS).read_bytes().splitlines()[ROUND])
    rewrite(run, lambda lines: lines[:ROUND] + lines[ROUND + 1 :])
    assert f"{run / RECORDS}: {gone['sample_id']} {gone['arm']}: no record" in differences(run)
