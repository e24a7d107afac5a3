"""Runs in the formats of other programs, read by what those programs read them with."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from huggingface_hub.repocard_data import model_index_to_eval_results
from test_board import make_run
from test_export import exported
from test_leaderboard import saved

from anchoreval.records.run import Run
from anchoreval.reports.export.every_eval_ever import model_of
from anchoreval.reports.export.lm_eval import results_of
from anchoreval.stats import cells

GOLDEN = Path(__file__).parents[1] / "golden" / "every_eval_ever"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    made = make_run(tmp_path_factory.mktemp("runs") / "demo")
    records = (replace(made.records[0], score=None, why="no answer"), *made.records[1:])
    made = Run(made.path, made.header, records)
    saved(made)
    return made


@pytest.fixture(scope="module")
def files(run: Run, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Arm -> its file of means in Every Eval Ever's form."""
    output = tmp_path_factory.mktemp("eee")
    assert exported([run.path], "every-eval-ever", output) == 0
    paths = list(output.glob("data/anchoreval/*/*/*.json"))
    read = [json.loads(path.read_text("utf-8")) | {"_root": str(output)} for path in paths]
    return {one["model_info"]["additional_details"]["arm"]: one for one in read}


def test_every_eval_ever_reads_means_and_samples_by_its_own_schemas(files: dict[str, dict[str, Any]], run: Run) -> None:
    names = ("eval", "instance_level_eval")
    schemas = [json.loads((GOLDEN / f"{name}.schema.json").read_text("utf-8")) for name in names]
    assert files.keys() == set(run.arms)
    for whole in files.values():
        root = Path(whole["_root"])
        named = {name: value for name, value in whole.items() if name != "_root"}
        jsonschema.validate(named, schemas[0], format_checker=jsonschema.FormatChecker())
        detailed = whole["detailed_evaluation_results"]
        content = (root / detailed["file_path"]).read_bytes()
        lines = [json.loads(line) for line in content.splitlines()]
        assert hashlib.sha256(content).hexdigest() == detailed["checksum"] and len(lines) == detailed["total_rows"]
        for line in lines:
            jsonschema.validate(line, schemas[1])
            assert line["evaluation_id"] == whole["evaluation_id"] and line["model_id"] == whole["model_info"]["id"]


def test_its_means_are_those_of_the_board_and_samples_without_a_score_are_counted(
    files: dict[str, dict[str, Any]], run: Run
) -> None:
    found = {
        (arm, one["evaluation_name"]): one["score_details"]
        for arm, whole in files.items()
        for one in whole["evaluation_results"]
        if one["evaluation_result_id"].endswith("/score")
    }
    scored = [cell for cell in cells(run.records) if cell.mean is not None]
    assert len(found) == len(scored)
    for cell in scored:
        details = found[cell.arm, f"{cell.task.replace('/', '_')}_{cell.length}"]
        assert details["score"] == cell.mean and details["uncertainty"]["num_samples"] == cell.scored
        assert details["details"]["samples_without_score"] == str(cell.asked - cell.scored)
    assert any(cell.asked > cell.scored for cell in scored)


def test_the_same_run_gives_the_same_bytes(run: Run, files: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    assert exported([run.path], "every-eval-ever", tmp_path) == 0
    first = Path(next(iter(files.values()))["_root"])
    for path in tmp_path.rglob("*.json*"):
        assert path.read_bytes() == (first / path.relative_to(tmp_path)).read_bytes()


@pytest.mark.parametrize(
    ("path", "expected"),
    [("meta-llama/Llama-3.1-8B", ("meta-llama", "Llama-3.1-8B")), ("/x/y", ("local", "")), ("a/b/c", ("local", ""))],
)
def test_a_hub_id_names_the_developer(run: Run, path: str, expected: tuple[str, str]) -> None:
    header = {**run.header, "model": {**run.header["model"], "path": path}}
    assert model_of(Run(run.path, header, run.records)) == (expected[0], expected[1] or run.model)


def test_the_hub_reads_a_model_index_back_with_its_values(run: Run, tmp_path: Path) -> None:
    assert exported([run.path], "model-index", tmp_path) == 0
    read: dict[tuple[str, str], float] = {}
    for path in tmp_path.glob("*/model-index.yml"):
        name, results = model_index_to_eval_results(yaml.safe_load(path.read_text("utf-8"))["model-index"])
        assert name == run.model
        for one in results:
            read[one.metric_args["arm"], str(one.dataset_config)] = one.metric_value
    expected = {
        (cell.arm, f"{cell.task.replace('/', '_')}_{cell.length}"): round(100 * cell.mean, 4)
        for cell in cells(run.records)
        if cell.mean is not None
    }
    assert read == expected


def test_lm_evals_files_say_how_a_task_is_answered_and_after_how_many_examples(run: Run) -> None:
    record = replace(run.records[1], choices=(), finish="length")
    cards = [{"suite": "general", "name": "hellaswag", "version": 1, "args": {"shots": 10}}]
    chosen = replace(record, task="general/hellaswag", choices=(-1.0, -2.0), finish="scored")
    header = {**run.header, "identity": {"tasks": cards}}
    written = results_of(Run(run.path, header, (chosen,)), record.arm, {"hellaswag": [chosen]}, "folder")
    assert written["configs"]["hellaswag"]["output_type"] == "multiple_choice"
    assert written["configs"]["hellaswag"]["num_fewshot"] == written["n-shot"]["hellaswag"] == 10
    plain = results_of(run, record.arm, {"vt": [record]}, "folder")
    assert (plain["configs"]["vt"]["output_type"], plain["n-shot"]["vt"]) == ("generate_until", 0)
