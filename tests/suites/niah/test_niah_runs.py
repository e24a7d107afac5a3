"""Needle in a haystack as a whole: chosen settings, records, boards, and prompts made again from the header."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest

from anchoreval import evaluate
from anchoreval.cards import load_tasks
from anchoreval.cli.options import lengths
from anchoreval.cli.parser import main
from anchoreval.errors import AnchorEvalError, CardError, LengthError
from anchoreval.records.run import Run, load_run
from anchoreval.reports.board import write_board
from anchoreval.runs.rebuild import Remake


def niah(tmp_path: Path, tasks: str, sizes: list[int], **more: Any) -> Run:
    return evaluate("anchor-tiny", tasks, lengths=sizes, backend="fake", output=tmp_path / "runs", **more)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    settings = {"depths": 3, "repeats": 2, "depth_spacing": "sigmoid", "needles": 2}
    folder = tmp_path_factory.mktemp("niah")
    return niah(folder, "niah", [512, 640], rope="fp32,bf16", settings=settings)


def test_a_run_holds_every_depth_as_often_as_it_is_repeated_and_all_answers_are_found(run: Run) -> None:
    tasks = [address for address in load_tasks()[0] if address.startswith("niah/")]
    assert sorted({record.task for record in run.records}) == sorted(tasks) and len(tasks) == 5
    assert len(run.records) == 5 * 2 * 6 * 2 and all(record.score == 1 for record in run.records)
    assert {row["samples"] for row in run.header["asked"]} == {6}
    one = [r for r in run.records if (r.task, r.length, r.arm) == ("niah/single", 512, "fp32")]
    assert [r.facts["depth_percent"] for r in one] == [0, 50, 100] * 2
    assert all(len(r.references) == (2 if r.task == "niah/multi" else 1) for r in run.records)
    assert all(r.reference_logprob is not None for r in run.records)


def test_needles_are_a_setting_of_the_task_that_hides_several(run: Run, tmp_path: Path) -> None:
    args = {row["name"]: row["args"] for row in run.header["identity"]["tasks"]}
    assert args["multi"]["needles"] == 2 and "needles" not in args["single"]
    assert all(row["depths"] == 3 and row["depth_spacing"] == "sigmoid" for row in args.values())
    with pytest.raises(CardError, match="--needles is no setting of the chosen tasks: niah has it"):
        niah(tmp_path, "niah/single", [512], settings={"needles": 2})


def test_prompts_are_made_again_from_the_header_alone(run: Run) -> None:
    made = {sample.id: sample for sample in Remake(run).samples()}
    assert {record.sample_id for record in run.records} == set(made)
    for record in run.records:
        assert made[record.sample_id].references == record.references
        assert all(record.facts[name] == value for name, value in made[record.sample_id].facts.items())
    assert main(["verify", str(run.path)]) == 0


def test_the_board_of_a_run_shows_the_classic_picture_for_every_task(run: Run, tmp_path: Path) -> None:
    table, page = write_board([load_run(run.path)], tmp_path)
    text = page.read_text(encoding="utf-8")
    (block,) = re.findall(r'<script type="application/json" id="g0">(.*?)</script>', text)
    grids = json.loads(block)["grids"]
    assert [grid["task"][0] for grid in grids] == sorted({record.task for record in run.records}, key=run.tasks.index)
    means = {(grid["task"][0], *mean[:3]): mean[6:8] for grid in grids for mean in grid["means"]}
    assert len(means) == 5 * 2 * 3 * 2 and set(map(tuple, means.values())) == {(2, 2)}
    assert "120 of 120" in text and "Unfinished" not in text
    lines = table.read_text(encoding="utf-8").splitlines()
    rows = [row for row in csv.DictReader(lines) if row["kind"] == "cell"]
    assert len(rows) == 5 * 2 * 2


def test_a_limit_takes_the_first_samples_and_never_more_than_the_grid_has(tmp_path: Path) -> None:
    assert len(niah(tmp_path, "niah/number", [512], limit=4).records) == 4
    assert len(niah(tmp_path, "niah/number", [512], limit=400).records) == 11


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"depths": 0}, "niah/number: args.depths: 0 is not positive"),
        ({"depths": "eleven"}, "niah/number: args.depths: 'eleven' is not a whole number"),
        ({"depths": 200}, "niah/number: depths: 200 are more than 101"),
    ],
)
def test_a_setting_that_cannot_be_is_one_line(tmp_path: Path, settings: dict[str, Any], says: str) -> None:
    with pytest.raises(AnchorEvalError) as caught:
        niah(tmp_path, "niah/number", [512], settings=settings)
    assert str(caught.value) == says and not (tmp_path / "runs").exists()


def test_a_length_that_is_too_short_names_the_smallest(tmp_path: Path) -> None:
    with pytest.raises(LengthError, match=r"niah/multi cannot be made at 64 tokens: the smallest is \d{3}$"):
        niah(tmp_path, "niah/multi", [64])


@pytest.mark.parametrize("flag", [("--depths", "0"), ("--depths", "-2"), ("--depths", "x"), ("--depth-spacing", "log")])
def test_a_flag_that_cannot_be_ends_with_exit_code_2(flag: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["run", "--model", "anchor-tiny", "--tasks", "niah", *flag])
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert caught.value.code == 2 and flag[0] in last and repr(flag[1]) in last


def test_show_makes_the_last_sample_of_a_grid_and_none_behind_it(capsys: pytest.CaptureFixture[str]) -> None:
    wanted = ["--tokenizer", "anchor-tiny", "--depths", "2", "--repeats", "2"]
    assert main(["show", "niah/passkey@512#3", *wanted]) == 0
    said = capsys.readouterr()
    assert "The pass key is" in said.out and '"depth_percent": 100.0, ' in said.err and '"repeat": 1' in said.err
    assert main(["show", "niah/passkey@512#4", *wanted]) == 2
    assert "niah/passkey has samples 0 to 3" in capsys.readouterr().err


def test_lengths_may_be_a_range_that_doubles_among_others() -> None:
    assert lengths("1k..32k") == [1024 << at for at in range(6)]
    assert lengths("512,1k..4k 6k") == [512, 1024, 2048, 4096, 6144] and lengths("3k..5k") == [3072]
    for wrong in ("1k..", "..4k", "4k..1k", "1k...4k", "1k..2k..4k", "1k-4k", ""):
        with pytest.raises(Exception, match="length"):
            lengths(wrong)
