"""Runs that stop by verdict: balanced rounds, decisions from records alone, kills and resumes."""

from __future__ import annotations

import dataclasses
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from anchoreval import compare, evaluate, load_run
from anchoreval.backends.fake import FakeBackend
from anchoreval.errors import AnchorEvalError
from anchoreval.records.lines import RECORDS
from anchoreval.records.run import Run
from anchoreval.reports.board import run_table
from anchoreval.runs.rounds import BLOCK, ROUND, dealt, words
from anchoreval.schema import Sample, Segment

TASKS = "ruler/niah_single_1,ruler/vt"


def run(output: Path, **changes: Any) -> Run:
    asked: dict[str, Any] = {"lengths": [512], "limit": 64, "backend": "fake", "rope": "bf16,fp32", "until": "5pt@90%"}
    return evaluate("anchor-tiny", TASKS, output=output, **{**asked, **changes})


def sample(index: int, depth: float | None) -> Sample:
    facts = {} if depth is None else {"depths": [depth]}
    return Sample("ruler/niah_single_1", 512, index, (Segment("query", "?"),), ("1",), 8, facts)


def test_every_round_is_balanced_over_depths_and_no_sample_is_lost() -> None:
    rng = random.Random(1)
    samples = [sample(i, rng.random()) for i in range(150)]
    rounds = list(dealt(iter(samples)))
    assert sorted(one.index for each in rounds for one in each) == list(range(150))
    assert all(len(each) <= ROUND for each in rounds)
    for each in rounds[: 128 // ROUND]:
        shallow = sum(one.facts["depths"][0] < 0.5 for one in each)
        block = next(b for b in range(5) if each[0].index // BLOCK == b)
        of_block = sum(one.facts["depths"][0] < 0.5 for one in samples[block * BLOCK : (block + 1) * BLOCK])
        assert abs(shallow - of_block / 2) <= 1


def test_only_the_block_in_hand_is_made_ahead() -> None:
    made: list[int] = []

    def source() -> Any:
        for i in range(500):
            made.append(i)
            yield sample(i, None)

    next(dealt(source()))
    assert len(made) == BLOCK


def test_equal_arms_stop_as_equivalent_and_the_header_says_after_how_many(tmp_path: Path) -> None:
    result = run(tmp_path, limit=200)
    rule = result.header["until"]
    assert rule["rule"] == "5pt@90%" and "2024" in rule["method"] and "not the whole table" in rule["refers"]
    for cell in rule["cells"]:
        assert cell["arms"]["fp32"]["verdict"] == "equivalent within 5"
        assert cell["used"] % ROUND == 0 and cell["used"] < cell["asked"] == 200
        own = [one for one in result.records if one.task == cell["task"]]
        assert len(own) == 2 * cell["used"] and cell["arms"]["fp32"]["pairs"] == cell["used"]
    assert any("equivalent within 5 after" in line for line in words(result.header))


def test_too_few_samples_end_undecided(tmp_path: Path) -> None:
    (said, *_) = [cell["arms"]["fp32"] for cell in run(tmp_path, limit=20).header["until"]["cells"]]
    assert (said["verdict"], said["pairs"]) == ("undecided", 20)


def test_rounds_go_over_the_tasks_in_turn(tmp_path: Path) -> None:
    tasks = [record.task for record in run(tmp_path).records if record.arm == "bf16"]
    for end in range(2 * ROUND, len(tasks), 2 * ROUND):
        assert tasks[:end].count("ruler/vt") == end // 2


def split(self: FakeBackend, request: Any) -> Any:
    """Half of the answers to one task are wrong under fp32 only; the other task is equal."""
    output = whole(self, request)
    unlucky = request.sample_id.startswith("ruler/vt") and hash_of(request.sample_id) < 0.5
    return dataclasses.replace(output, text="") if unlucky and self.arm == "fp32" else output  # type: ignore[attr-defined]


def hash_of(text: str) -> float:
    return random.Random(text).random()


whole = FakeBackend._answer


def test_tasks_stop_after_unequal_numbers_of_samples_and_tables_still_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    under = FakeBackend.under

    def named(self: FakeBackend, arm: Any) -> Any:
        self.arm = arm.name  # type: ignore[attr-defined]
        return under(self, arm)

    monkeypatch.setattr(FakeBackend, "under", named)
    monkeypatch.setattr(FakeBackend, "_answer", split)
    result = run(tmp_path, limit=120)
    found = {cell["task"]: (cell["arms"]["fp32"]["verdict"], cell["used"]) for cell in result.header["until"]["cells"]}
    assert found["ruler/vt"][0] == "worse" and found["ruler/niah_single_1"][0] == "equivalent within 5"
    assert found["ruler/vt"][1] < found["ruler/niah_single_1"][1]
    assert "fp32 minus bf16" in run_table(result)
    (contrast,) = compare(result)
    says = {row.difference.task: row.says for row in contrast.cells}
    assert says["ruler/vt"] == f"worse (5pt@90% after {found['ruler/vt'][1]})"
    assert any("its rule decides" in note for note in contrast.notes)
    (turned,) = compare(result, baseline="fp32")
    assert all("5pt@90%" not in row.says for row in turned.cells)


def test_a_placebo_does_not_hold_a_cell_open(tmp_path: Path) -> None:
    cells = run(tmp_path, rope="bf16,fp32,bf16~placebo").header["until"]["cells"]
    assert all(list(cell["arms"]) == ["fp32"] for cell in cells)


@pytest.mark.parametrize("rope", ["bf16", "bf16,bf16~placebo"])
def test_one_arm_has_nothing_to_be_compared_with(tmp_path: Path, rope: str) -> None:
    with pytest.raises(AnchorEvalError, match="--until 5pt@90% compares arms"):
        run(tmp_path, rope=rope)
    assert not list(tmp_path.iterdir())


def test_the_rule_is_part_of_the_runs_identity(tmp_path: Path) -> None:
    assert len({run(tmp_path, limit=4, until=rule).path for rule in (None, "1pt@95%", "2pt@95%")}) == 3


SCRIPT = """
import sys
from anchoreval import evaluate
evaluate("anchor-tiny", "ruler/niah_single_1,ruler/vt", lengths=[512], limit=96, backend="fake", rope="bf16,fp32",
         until="5pt@90%", output=sys.argv[1], options={"delay_s": float(sys.argv[2]), "mode": "half"})
"""


def test_a_run_killed_in_the_middle_of_rounds_ends_with_the_same_verdicts_and_records(tmp_path: Path) -> None:
    def started(output: Path, delay_s: float) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", SCRIPT, str(output), str(delay_s)])

    def count() -> int:
        return sum(path.read_bytes().count(b"\n") for path in broken.glob(f"*/*/{RECORDS}"))

    unbroken, broken = tmp_path / "whole", tmp_path / "broken"
    assert started(unbroken, 0.0).wait() == 0
    for goal in (3, 40, 75):
        process = started(broken, 0.01)
        while process.poll() is None and count() < goal:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert started(broken, 0.0).wait() == 0
    one, other = (load_run(next(path.glob("*/*"))) for path in (unbroken, broken))
    assert other.header["resumed"] == 3 and one.header["until"] == other.header["until"]
    assert [dataclasses.replace(r, seconds=0.0) for r in one.records] == [
        dataclasses.replace(r, seconds=0.0) for r in other.records
    ]
