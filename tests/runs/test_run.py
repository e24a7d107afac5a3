"""The loop: what is asked is answered once, killed runs go on, bad requests stop before anything is computed."""

from __future__ import annotations

import dataclasses
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from anchoreval import evaluate, load_run
from anchoreval.errors import CardError, LengthError, SourceError, UnknownName, UnsupportedArm
from anchoreval.records.lines import RECORDS, read_records
from anchoreval.records.rescore import rescored
from anchoreval.records.run import Run
from anchoreval.schema import Record

SMALL: dict[str, Any] = {"lengths": [512], "limit": 6, "backend": "fake", "rope": "bf16,fp32"}


def run(output: Path, tasks: str = "ruler/niah_single_1,ruler/vt", **changes: Any) -> Run:
    return evaluate("anchor-tiny", tasks, output=output, **{**SMALL, **changes})


def timeless(records: tuple[Record, ...] | list[Record]) -> list[Record]:
    return [dataclasses.replace(record, seconds=0.0) for record in records]


def test_every_sample_is_answered_once_under_every_arm(tmp_path: Path) -> None:
    result = run(tmp_path)
    places = [(record.sample_id, record.arm) for record in result.records]
    assert len(places) == len(set(places)) == 2 * 6 * 2
    assert {record.score for record in result.records} == {1.0}
    assert len({record.key for record in result.records}) == len(places)


def test_answers_that_are_wrong_or_empty_score_zero(tmp_path: Path) -> None:
    for mode in ("wrong", "empty"):
        result = run(tmp_path / mode, options={"mode": mode})
        assert {record.score for record in result.records} == {0.0}


def test_the_header_says_what_was_asked_and_applied(tmp_path: Path) -> None:
    header = run(tmp_path, tasks="ruler/niah_single_2").header
    assert [arm["name"] for arm in header["arms"]] == ["bf16", "fp32"]
    assert all({"asked", "applied"} <= arm.keys() for arm in header["arms"])
    assert header["tokenizer"]["anchor_token"] == "<|bos|>"
    assert header["sources"]["haystack"] == "generated" and header["comparable"] is False
    assert header["model"]["window"] == 8192 and header["finished"]


def test_a_placebo_of_the_first_arm_is_added_once(tmp_path: Path) -> None:
    result = run(tmp_path, placebo=True)
    assert [arm["name"] for arm in result.header["arms"]] == ["bf16", "fp32", "bf16~placebo"]
    assert len(result.records) == len({record.key for record in result.records}) == 2 * 6 * 3
    assert run(tmp_path, rope="bf16,fp32,bf16~placebo", placebo=True).path == result.path


def test_the_same_command_again_computes_nothing(tmp_path: Path) -> None:
    first = run(tmp_path)
    before = (first.path / RECORDS).read_bytes()
    assert (run(tmp_path).path / RECORDS).read_bytes() == before


def test_other_settings_get_another_folder(tmp_path: Path) -> None:
    runs = [run(tmp_path), run(tmp_path, lengths=[640]), run(tmp_path, seed=43), run(tmp_path, rope="fp32")]
    assert len({result.path for result in runs}) == len(runs)


def test_throughput_does_not_change_the_identity_of_a_run(tmp_path: Path) -> None:
    assert run(tmp_path).path == run(tmp_path, options={"delay_s": 0.001}).path


SCRIPT = """
import sys
from anchoreval import evaluate
evaluate("anchor-tiny", "ruler/niah_single_1,ruler/vt", lengths=[512, 640], limit=20, backend="fake", rope="bf16,fp32",
         output=sys.argv[1], options={"delay_s": float(sys.argv[2]), "mode": "half"})
"""


def started(output: Path, delay_s: float) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", SCRIPT, str(output), str(delay_s)])


def count(output: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in output.glob(f"*/*/{RECORDS}"))


@pytest.mark.crash
def test_a_run_killed_at_ten_random_points_ends_with_the_records_of_an_unbroken_one(tmp_path: Path) -> None:
    whole, broken, rng = tmp_path / "whole", tmp_path / "broken", random.Random(7)
    assert started(whole, 0.0).wait() == 0
    total, points = count(whole), 10
    for point in range(points):
        process = started(broken, 0.01)
        goal = min(total - 1, count(broken) + rng.randint(0, 2 * total // points))
        while process.poll() is None and count(broken) < goal:
            time.sleep(0.002)
        time.sleep(rng.random() * 0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert process.returncode == -signal.SIGKILL, f"point {point}: the run ended before it was killed"
        for path in broken.glob(f"*/*/{RECORDS}"):
            read_records(path)
    assert started(broken, 0.0).wait() == 0
    (one,), (other,) = whole.glob("*/*"), broken.glob("*/*")
    assert one.name == other.name
    assert timeless(load_run(other).records) == timeless(load_run(one).records)


def test_records_can_be_scored_again_without_the_model(tmp_path: Path) -> None:
    result = run(tmp_path, options={"mode": "half"})
    assert not list(rescored(result))
    lines = (result.path / RECORDS).read_text().splitlines()
    lied = json.loads(lines[0]) | {"score": 0.123}
    (result.path / RECORDS).write_text("\n".join([json.dumps(lied), *lines[1:]]) + "\n")
    ((record, value),) = rescored(load_run(result.path))
    assert record.score == 0.123 and value in (0.0, 1.0)


def test_lengths_over_the_models_limit_lose_their_samples_where_others_fit(tmp_path: Path) -> None:
    told: list[str] = []
    result = run(tmp_path, lengths=[512, 16384], limit=1, tell=told.append)
    assert {(r.length, r.outcome) for r in result.records} == {(512, "answered"), (16384, "does_not_fit")}
    assert any(line.startswith("length 16384 is over the model's limit of 8192 positions") for line in told)


def test_a_length_over_the_models_limit_says_the_limit(tmp_path: Path) -> None:
    with pytest.raises(LengthError, match="over the model's limit of 8192"):
        run(tmp_path, lengths=[16384])
    assert not list(tmp_path.iterdir())


def test_a_task_asked_for_by_name_that_cannot_be_made_so_short_says_the_smallest_length(tmp_path: Path) -> None:
    with pytest.raises(
        LengthError, match=r"ruler/niah_single_1 cannot be made at 100 tokens: the smallest is (\d+)"
    ) as caught:
        run(tmp_path, lengths=[100])
    smallest = caught.value.smallest
    assert smallest is not None
    assert run(tmp_path, "ruler/niah_single_1", lengths=[smallest], limit=1).records


def test_a_task_of_a_suite_that_cannot_be_made_so_short_is_set_aside_with_the_reason(tmp_path: Path) -> None:
    told: list[str] = []
    result = run(tmp_path, "ruler", lengths=[256], limit=1, tell=told.append)
    aside = result.header["unmakeable"]
    assert aside and all(row["length"] == 256 and "smallest is" in row["why"] for row in aside)
    assert {row["task"] for row in aside}.isdisjoint({record.task for record in result.records})
    assert any(aside[0]["why"] in line for line in told)


def test_published_sources_that_are_absent_are_named_before_anything_is_computed(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"PaulGrahamEssays\.json") as caught:
        run(tmp_path, "ruler/niah_single_2", haystack="published", data_dir=tmp_path)
    assert "--data-dir" in str(caught.value) and "--haystack generated" in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"rope": "fp33"}, UnknownName),
        ({"tasks": "rulr"}, UnknownName),
        ({"rope": "bf16+backwards"}, UnknownName),
        ({"rope": "both/fp32"}, UnknownName),
        ({"backend": "hff"}, UnknownName),
    ],
)
def test_unknown_names_are_errors(tmp_path: Path, changes: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        run(tmp_path, **changes)


def test_an_arm_that_the_backend_cannot_compute_is_refused_by_field(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedArm, match="kernel"):
        run(tmp_path, backend="hf", rope="fp32-qk", dtype="bfloat16")
    assert not list(tmp_path.iterdir())


def test_an_unknown_argument_of_a_generator_is_a_card_error(tmp_path: Path) -> None:
    from anchoreval.cards import load_tasks
    from anchoreval.suites import Recipe, generators
    from anchoreval.texts.sources import Sources
    from anchoreval.tokenizer import load_tokenizer

    task = load_tasks()[0]["ruler/vt"]
    tokenizer = load_tokenizer(Path(__file__).parents[2] / "models" / "anchor-tiny")
    recipe = Recipe(task.address, 512, 30, 1, {"hop": 4}, tokenizer, Sources(haystack="generated"))
    with pytest.raises(CardError, match="'hop'"):
        next(iter(generators()[task.generator](recipe)))
