"""Runs as lm-eval's files, CSV and Parquet: read back by lm-eval itself, by pandas and by csv, never by own code."""

from __future__ import annotations

import csv
import hashlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from test_board import ARMS, HOSTILE, make_run
from test_leaderboard import saved

from anchoreval.cli import parser as cli
from anchoreval.records.lines import from_line, to_line
from anchoreval.records.run import Run
from anchoreval.reports.export.tables import CELL_COLUMNS, FORMATS, RECORD_COLUMNS
from anchoreval.stats import single_depth

STAMP = "2026-01-02T03-04-05.000000"
OPENING = '=HYPERLINK("http://example.org","a")\nline two, \x00 nul \r return \ud800 lone ✓'


def exported(runs: list[Path], form: str, output: Path) -> int:
    return cli.main(["export", *map(str, runs), "--format", form, "--output", str(output)])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Three arms; arms and one task with names that are not safe in a path."""
    made = make_run(tmp_path_factory.mktemp("runs") / "demo")
    names = {"native": "anchor/fp32~placebo"}
    records = tuple(replace(record, arm=names.get(record.arm, record.arm)) for record in made.records)
    arms = [{**arm, "name": names.get(arm["name"], arm["name"])} for arm in made.header["arms"]]
    task = {"suite": "ruler", "name": "vt", "version": 3, "max_new_tokens": 30}
    header = {**made.header, "arms": arms, "identity": {"tasks": [task]}}
    run = Run(made.path, header, records)
    saved(run)
    return run


@pytest.fixture(scope="module")
def harness(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run in lm-eval's layout."""
    output = tmp_path_factory.mktemp("lm-eval")
    assert exported([run.path], "lm-eval", output) == 0
    return output


def results(harness: Path, arm: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((harness / f"tiny__{arm}" / f"results_{STAMP}.json").read_text("utf-8"))
    return found


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").split("\n")[:-1]]


def changed(run: Run, folder: Path, header: dict[str, Any] | None = None, **fields: Any) -> Path:
    """The run in another folder, with other header keys and with its first record changed."""
    records = (replace(run.records[0], **fields), *run.records[1:])
    return saved(Run(folder, {**run.header, **(header or {})}, records))


def shown(table: str) -> dict[tuple[str, str], list[str]]:
    """(task, metric) -> the cells of that line of lm-eval's table, which names a task once."""
    found, name = {}, ""
    for line in table.splitlines()[2:]:
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        name = cells[0] or name
        assert found.setdefault((name, cells[4]), cells) is cells
    return found


def test_lm_evals_own_table_shows_our_means_and_standard_errors(run: Run, harness: Path) -> None:
    from lm_eval.api.metrics import mean_stderr
    from lm_eval.utils import make_table

    table = shown(make_table(results(harness, "bf16-angle")))
    tasks = {(record.task, record.length) for record in run.records}
    for task, length in tasks:
        here = [r for r in run.records if (r.task, r.length, r.arm) == (task, length, "bf16-angle")]
        name = f"{task}_{length}".replace("/", "_")
        scores = [r.score for r in here if r.score is not None]
        logprobs = [(r.reference_logprob or 0) / r.reference_tokens for r in here]
        for metric, values in (("score", scores), ("logprob_per_token", logprobs)):
            cells = table[name, metric]
            assert float(cells[6]) == pytest.approx(fmean(values), abs=5.1e-5)
            assert float(cells[8]) == pytest.approx(mean_stderr(values), abs=5.1e-5)
            assert cells[2:4] == ["none", "0"] and cells[5] == "↑"
    assert len(table) == 2 * len(tasks) and len({cells[6] for cells in table.values()}) > 5
    assert {cells[1] for (name, _), cells in table.items() if name.startswith("ruler_vt")} == {"3", ""}


def test_keys_and_types_are_those_of_lm_evals_schema(harness: Path) -> None:
    from lm_eval.result_schema import EvalResults, SampleResult, _EvalConfig

    found = results(harness, "fp32")
    known = set(EvalResults.__annotations__)
    assert set(found) - known == {"anchoreval"}
    missing = known - set(found)
    assert missing == {
        "groups", "samples", "pretty_env_info", "transformers_version", "upper_git_hash", "tokenizer_pad_token",
        "tokenizer_eos_token", "tokenizer_bos_token", "eot_token_id",
    }  # fmt: skip
    assert set(found["config"]) <= set(_EvalConfig.__annotations__)
    (path,) = (harness / "tiny__fp32").glob("samples_ruler_vt_512_*.jsonl")
    for row in rows(path):
        assert set(SampleResult.__annotations__) <= set(row) and set(row["metrics"]) <= set(row)


def test_lm_evals_own_file_name_functions_find_every_file(run: Run, harness: Path) -> None:
    from lm_eval.utils import (
        get_file_datetime,
        get_file_task_name,
        get_latest_filename,
        get_results_filenames,
        get_sample_results_filenames,
        sanitize_model_name,
        sanitize_task_name,
    )

    assert {path.name for path in harness.iterdir()} == {
        sanitize_model_name(f"tiny__{arm}") for arm in ("anchor/fp32~placebo", *ARMS[1:])
    }
    for arm in harness.iterdir():
        files = [path.as_posix() for path in arm.iterdir()]
        found = get_sample_results_filenames(files)
        names = {get_file_task_name(Path(file).name) for file in found}
        expected = {sanitize_task_name(f"{r.task}_{r.length}") for r in run.records}
        assert names == expected == set(results(harness, arm.name.removeprefix("tiny__"))["results"])
        assert {get_file_datetime(Path(file).name) for file in found} == {STAMP}
        assert len(get_results_filenames(files)) == 1 and get_latest_filename(found) in found
        assert len(files) == len(found) + 1


def test_samples_load_with_the_library_that_lm_eval_writes_them_for(run: Run, harness: Path, tmp_path: Path) -> None:
    from datasets import load_dataset

    (path,) = (harness / "tiny__bf16-angle").glob("samples_ruler_vt_2048_*.jsonl")
    table = load_dataset("json", data_files=str(path), split="train", cache_dir=str(tmp_path))
    here = {r.index: r for r in run.records if (r.task, r.length, r.arm) == ("ruler/vt", 2048, "bf16-angle")}
    assert list(table["doc_id"]) == sorted(here)
    for row in table:
        record = here[row["doc_id"]]
        assert (row["score"], row["why"]) == (record.score, record.why)
        assert row["resps"] == [[record.output]] and row["target"] == record.references[0]
        assert row["prompt_hash"] == record.prompt_sha256 and row["arguments"]["gen_args_0"]["arg_0"] is None
    assert table["score"][3] is None and table["why"][3] == "out of memory"


def test_hashes_are_computed_as_lm_eval_computes_them(harness: Path) -> None:
    from lm_eval.utils import handle_non_serializable, hash_string

    (path,) = (harness / "tiny__fp32").glob("samples_ruler_qa_1_2048_*.jsonl")
    joined = ""
    for row in rows(path):
        text = json.dumps(row["doc"], indent=2, default=handle_non_serializable, ensure_ascii=False)
        assert row["doc_hash"] == hash_string(text) and row["target_hash"] == hash_string(str(row["target"]))
        joined += row["doc_hash"] + row["prompt_hash"] + row["target_hash"]
    assert results(harness, "fp32")["task_hashes"]["ruler_qa_1_2048"] == hash_string(joined)


def test_a_sample_without_a_score_is_left_out_of_the_mean_and_counted_with_its_reason(harness: Path) -> None:
    found = results(harness, "fp32")
    assert found["n-samples"]["ruler_vt_512"] == {"original": 12, "effective": 12}
    assert found["anchoreval"]["unscored"] == {f"ruler_vt_{n}": {"out of memory": 1} for n in (512, 2048)}
    assert found["anchoreval"]["unmakeable"][0]["task"] == "ruler/qa_2"


def test_a_task_without_any_score_is_null_and_still_in_lm_evals_table(run: Run, tmp_path: Path) -> None:
    from lm_eval.utils import make_table

    records = tuple(replace(r, score=None, why="gone", reference_logprob=None) for r in run.records[:1])
    assert exported([saved(Run(tmp_path / "r", run.header, records))], "lm-eval", tmp_path / "out") == 0
    found = json.loads(next((tmp_path / "out").glob("*/results_*.json")).read_text("utf-8"))
    (metrics,) = found["results"].values()
    assert metrics["score,none"] is None and metrics["score_stderr,none"] == "N/A"
    assert "logprob_per_token,none" not in metrics and "N/A" in make_table(found)


def test_tables_hold_every_record_and_every_cell(run: Run, tmp_path: Path) -> None:
    import pandas

    from anchoreval.stats import cells

    for form, read in (("csv", pandas.read_csv), ("parquet", pandas.read_parquet)):
        assert exported([run.path], form, tmp_path) == 0
        records, found = read(tmp_path / f"records.{form}"), read(tmp_path / f"cells.{form}")
        assert list(records.columns) == list(RECORD_COLUMNS) and list(found.columns) == list(CELL_COLUMNS)
        assert len(records) == len(run.records)
        for row, record in zip(records.to_dict("records"), run.records, strict=True):
            assert (row["arm"], row["task"], row["length"], row["index"]) == (
                record.arm, record.task, record.length, record.index,
            )  # fmt: skip
            assert pandas.isna(row["score"]) if record.score is None else row["score"] == record.score
            assert row["logprob_per_token"] == pytest.approx((record.reference_logprob or 0) / 4)
            assert row["depth"] == pytest.approx(record.index / 12) and row["model"] == "tiny" and row["run"] == "demo"
            assert json.loads(row["references"]) == list(record.references)
        mean = records.groupby(["task", "length", "arm"])["score"].mean()
        for row in found.to_dict("records"):
            assert row["mean"] == pytest.approx(mean[row["task"], row["length"], row["arm"]])
            assert row["low"] <= row["mean"] <= row["high"]
        assert len(found) == len(mean) == len(cells(run.records))


def test_parquet_columns_have_one_type_even_where_every_value_is_null(run: Run, tmp_path: Path) -> None:
    from pyarrow import parquet

    records = tuple(replace(record, score=None, why=None) for record in run.records[:2])
    bare = saved(Run(tmp_path / "bare", run.header, records))
    types = []
    for path in (run.path, bare):
        exported([path], "parquet", tmp_path / "out")
        table = parquet.read_table(tmp_path / "out" / "records.parquet")
        types.append({field.name: str(field.type) for field in table.schema})
        expected = sum(r.score is None for r in run.records) if path == run.path else 2
        assert table.column("score").null_count == expected
    assert types[0] == types[1] and types[0]["length"] == "int64" and types[0]["score"] == "double"


@pytest.mark.parametrize("form", FORMATS)
def test_exporting_twice_gives_the_same_bytes(run: Run, tmp_path: Path, form: str) -> None:
    digests = []
    for name in ("one", "two"):
        exported([run.path], form, tmp_path / name)
        files = sorted(path for path in (tmp_path / name).rglob("*") if path.is_file())
        digests.append(
            {path.relative_to(tmp_path / name): hashlib.sha256(path.read_bytes()).digest() for path in files}
        )
    assert digests[0] == digests[1] and digests[0]


def test_the_time_in_file_names_is_when_the_run_finished(run: Run, tmp_path: Path) -> None:
    path = changed(run, tmp_path / "r", {"finished": "2026-01-02T09:00:00+02:00"})
    assert exported([path], "lm-eval", tmp_path / "out") == 0
    names = {file.name for file in (tmp_path / "out").glob("*/results_*")}
    assert names == {"results_2026-01-02T07-00-00.000000.json"}


def test_hostile_text_survives_or_is_named(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import pandas

    path = changed(run, tmp_path / "r", output=OPENING, references=(OPENING,))
    for form in FORMATS:
        assert exported([path], form, tmp_path / "out") == 0
        assert "2 texts hold unpaired surrogates" in capsys.readouterr().err
    spelled = OPENING.replace("\ud800", "⟨U+D800⟩")
    (samples,) = (tmp_path / "out").glob("*fp32~placebo/samples_ruler_niah_single_1_512_*")
    assert rows(samples)[0]["resps"] == [[spelled]] and rows(samples)[0]["target"] == spelled
    assert pandas.read_parquet(tmp_path / "out" / "records.parquet")["output"][0] == spelled
    with (tmp_path / "out" / "records.csv").open(encoding="utf-8", newline="") as file:
        first = next(csv.DictReader(file))
    assert first["output"] == "'" + spelled.replace("\x00", "⟨U+0000⟩").replace("\r", "⟨U+000D⟩")


def test_hostile_names_and_long_texts_stay_inside_the_output_folder(tmp_path: Path) -> None:
    run = make_run(tmp_path / "in" / "hostile", hostile=True, samples=6)
    arm = "rope:table=bf16," + "x" * 400
    header = {**run.header, "run": "../../up", "model": {"name": "../../etc\n/passwd"}}
    records = (replace(run.records[0], arm=arm), *run.records[1:19])
    path = saved(Run(run.path, header, records))
    for form in FORMATS:
        assert exported([path], form, tmp_path / "out" / form) == 0
    assert {item.name for item in tmp_path.iterdir()} == {"in", "out"}
    assert {item.name for item in (tmp_path / "out").iterdir()} == set(FORMATS)
    folders = [item for item in (tmp_path / "out" / "lm-eval").iterdir() if item.is_dir()]
    assert len(folders) == 4 and all("\n" not in item.name for item in folders)
    with (tmp_path / "out" / "csv" / "records.csv").open(encoding="utf-8", newline="") as file:
        csv.field_size_limit(10_000_000)
        assert max(len(row["output"]) for row in csv.DictReader(file)) == len(HOSTILE[5])


def test_two_runs_of_one_moment_do_not_overwrite_each_other(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other, copy = changed(run, tmp_path / "a", {"run": "other"}), changed(run, tmp_path / "b")
    assert exported([run.path, other], "lm-eval", tmp_path / "out") == 0
    assert len(list((tmp_path / "out").glob("*/results_*"))) == 6 and (tmp_path / "out/tiny__fp32__other").is_dir()
    third = changed(run, tmp_path / "c")
    assert exported([run.path, copy, third], "lm-eval", tmp_path / "out2") == 2
    assert "are the same run: name one of them" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("form", "header", "says"),
    [
        ("xml", {}, "unknown --format 'xml': known: csv, every-eval-ever, lm-eval, model-index, parquet"),
        ("lm-evil", {}, "did you mean lm-eval?"),
        ("lm-eval", {"created": None}, "header.json: created: 'None' is no time"),
        ("lm-eval", {"finished": "soon"}, "header.json: finished: 'soon' is no time"),
    ],
)
def test_bad_input_is_one_line(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str, header: dict[str, Any], says: str
) -> None:
    assert exported([changed(run, tmp_path / "r", header)], form, tmp_path / "out") == 2
    said = capsys.readouterr()
    assert says in said.err and said.err.count("\n") == 1 and not said.out and not (tmp_path / "out").exists()


def test_a_run_without_records_and_a_folder_that_cannot_be_written_are_said(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = saved(Run(tmp_path / "empty", run.header, ()))
    assert exported([empty], "csv", tmp_path / "out") == 2 and "no records yet" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    for form in FORMATS:
        assert exported([run.path], form, tmp_path / "file") == 2
        assert "cannot write" in capsys.readouterr().err


def test_an_absent_package_is_named_with_the_command_that_installs_it(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert exported([run.path], "parquet", tmp_path) == 2
    assert "the export needs pyarrow: pip install 'anchoreval[export]'" in capsys.readouterr().err
    assert exported([run.path], "csv", tmp_path) == 0
    monkeypatch.setitem(sys.modules, "pandas", None)
    assert exported([run.path], "csv", tmp_path) == 2 and "needs pandas" in capsys.readouterr().err
    assert exported([run.path], "lm-eval", tmp_path) == 0


def test_lm_eval_files_are_written_without_pandas_torch_or_lm_eval(run: Run, tmp_path: Path) -> None:
    code = (
        "import sys; from anchoreval.cli.parser import main\n"
        f"assert main(['export', {str(run.path)!r}, '--format', 'lm-eval', '--output', {str(tmp_path)!r}]) == 0\n"
        "assert not {'torch', 'transformers', 'pandas', 'pyarrow', 'lm_eval'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "not finished: 324 records so far" in done.stderr, done.stderr


@pytest.mark.parametrize(
    ("facts", "depth"),
    [
        ({"depth": 0.5}, 0.5),
        ({"depths": [0.25]}, 0.25),
        ({"depths": [0.1, 0.9]}, None),
        ({}, None),
        ({"depth": True}, None),
    ],
)
def test_the_depth_of_a_record_is_that_of_its_one_needle(run: Run, facts: dict[str, Any], depth: float | None) -> None:
    record = replace(run.records[0], facts=facts)
    assert single_depth(from_line(to_line(record)).facts) == depth
