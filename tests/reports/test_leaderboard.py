"""Declared boards: definitions, what is computed from the records, reported numbers, and that pages repeat."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from bench.board import measure
from command_line import cli
from test_board import ARMS, HOSTILE, LENGTHS, make_run

from anchoreval.errors import CardError, RunError
from anchoreval.records.header import Header
from anchoreval.records.lines import to_line
from anchoreval.records.run import Run
from anchoreval.reports.board.cells import Mean, RowCells, columns_of
from anchoreval.reports.board.declared import load_definition, write_leaderboard, write_summary
from anchoreval.reports.board.definition import load_reported
from anchoreval.reports.words import NONE
from anchoreval.stats import Scores, paired
from anchoreval.stats.cells import NOWHERE
from anchoreval.suites import averages
from anchoreval.suites.ruler.scoring import THIRTEEN

BOARDS = Path(__file__).parents[2] / "leaderboards"
GOOD: dict[str, Any] = {
    "title": "t", "suites": ["ruler"], "baseline": "native",
    "columns": ["by_length", "ruler_13", "difference", "verdict", "p_holm", "samples"],
}  # fmt: skip


def saved(run: Run) -> Path:
    """The run on disk."""
    run.path.mkdir(parents=True)
    (run.path / "header.json").write_text(json.dumps(run.header), "utf-8")
    (run.path / "records.jsonl").write_bytes(b"".join(map(to_line, run.records)))
    return run.path


def declared(folder: Path, **changes: Any) -> Path:
    path = folder / "mine.yaml"
    path.write_text(json.dumps(GOOD | changes), "utf-8")
    return path


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (json.dumps(GOOD | {"colums": []}), "colums"),
        ("title: a\ntitle: b\n", "'title' is repeated"),
        (json.dumps(GOOD | {"columns": ["longbench_average"]}), "unknown column 'longbench_average'"),
        (json.dumps(GOOD | {"suites": ["rular"]}), "suites: unknown task 'rular'"),
        (json.dumps(GOOD | {"arms": ["bf16"]}), "baseline: 'native' is not among the arms"),
        (json.dumps(GOOD | {"order": ["-logprob"]}), "order: unknown column 'logprob'"),
        (json.dumps(GOOD | {"lengths": [4096, 4096]}), "lengths: 4096 is there twice"),
        (json.dumps(GOOD | {"reported": ["no.csv"]}), "no.csv: cannot be read"),
        (json.dumps(GOOD | {"lengths": ["4k"]}), "lengths"),
    ],
)
def test_a_bad_definition_is_one_line_that_names_file_and_key(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text, "utf-8")
    with pytest.raises(CardError) as caught:
        load_definition(path)
    assert says in str(caught.value) and "bad.yaml" in str(caught.value) and "\n" not in str(caught.value)


def test_the_shipped_definitions_load() -> None:
    names = {"long-context", "anchor-tiny", "smollm2-135m-q4", "wang2024-table5"}
    assert {load_definition(path).name for path in BOARDS.glob("*.yaml")} == names


@pytest.mark.parametrize(
    ("name", "results"),
    [("anchor-tiny", "anchor-tiny"), ("smollm2-135m-q4", "smollm2-135m-q4"), ("wang2024-table5", "")],
)
def test_the_committed_boards_are_those_of_the_committed_runs(name: str, results: str, tmp_path: Path) -> None:
    places = [tmp_path / "results" / results, tmp_path / "boards"]  # boards link to runs as they lie to them
    shutil.copytree(BOARDS / "results" / results, places[0], ignore=shutil.ignore_patterns("view"))
    done = cli("board", str(places[0]), "--definition", str(BOARDS / f"{name}.yaml"), "--output", str(places[1]))
    assert done.returncode == 0, done.stderr
    for made in places[1].iterdir():
        assert made.read_bytes() == (BOARDS / "boards" / made.name).read_bytes(), "leaderboards/README.md says how"


def test_cells_and_differences_are_those_of_the_records(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    found, _ = write_leaderboard([saved(run)], declared(tmp_path), tmp_path / "out")
    rows = table(found)
    expected = paired(run.records, "bf16-angle", "native")
    for cell in expected.cells:
        (row,) = [
            r for r in rows
            if (r["kind"], r["task"], r["length"], r["arm"]) == ("difference", cell.task, str(cell.length), cell.arm)
            and r["baseline"] == "native"
        ]  # fmt: skip
        assert float(row["value"]) == pytest.approx(100 * (cell.difference or 0), abs=1e-3)
        assert float(row["p"]) == pytest.approx(cell.p, rel=1e-4) and row["pairs"] == str(cell.pairs)
    pooled = next(r for r in rows if r["column"] == "minus native" and r["arm"] == "bf16-angle")
    assert float(pooled["value"]) == pytest.approx(100 * (expected.pooled.difference or 0), abs=1e-3)
    scores = [r.score for r in run.records if (r.task, r.length, r.arm) == ("ruler/qa_1", 2048, "native")]
    cell_row = next(
        r for r in rows
        if (r["kind"], r["task"], r["length"], r["arm"]) == ("cell", "ruler/qa_1", "2048", "native")
    )  # fmt: skip
    assert float(cell_row["value"]) == pytest.approx(100 * fmean(s for s in scores if s is not None), abs=1e-3)


def test_depth_counts_only_samples_with_one_depth() -> None:
    facts: list[Mapping[str, Any]] = [{"depths": [0.31]}, {"depth": 1.0}, {"depths": [0.1, 0.2]}, {}, {"depth": "x"}]
    scores, sample = Scores("ruler/vt", 512), {"index": 0, "sample_id": "s", "prompt_sha256": "", "output": "1"}
    for one in facts:
        scores.add((sample | {"facts": one, "references": ["1"], "outcome": "answered"}).get)
    assert list(scores.decile) == [3, 9, NOWHERE, NOWHERE, NOWHERE]


def test_arms_that_saw_other_prompts_and_repeated_samples_are_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    lines = [to_line(record) for record in run.records]
    path = saved(run)
    other = json.loads(lines[0]) | {"prompt_sha256": "f" * 64}
    (path / "records.jsonl").write_bytes(json.dumps(other).encode() + b"\n" + b"".join(lines[1:]))
    with pytest.raises(RunError, match="1 samples had different prompts"):
        write_leaderboard([path], declared(tmp_path), tmp_path / "out")
    (path / "records.jsonl").write_bytes(b"".join([*lines, lines[0]]))
    with pytest.raises(RunError, match="the same record as line 1"):
        write_leaderboard([path], declared(tmp_path), tmp_path / "out")
    again = json.loads(lines[0]) | {"key": "f" * 64}
    (path / "records.jsonl").write_bytes(b"".join([*lines, json.dumps(again).encode() + b"\n"]))
    with pytest.raises(RunError, match="two records of sample ruler/niah_single_1@512#0 under arm native"):
        write_leaderboard([path], declared(tmp_path), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_arm_from_outside_of_two_sources_and_a_model_on_two_engines_are_told_apart(tmp_path: Path) -> None:
    arm, run = "bf16+x:evict:window", make_run(tmp_path / "run")
    own = tuple(replace(one, arm=arm) if one.arm == "bf16-angle" else one for one in run.records)

    def stored(name: str, sha256: str, engine: str) -> Path:
        outside = {"outside": [{"name": "x:evict:window", "sha256": sha256 * 64}]}
        arms = [{"name": "native"}, {"name": arm, "asked": outside}]
        tasks = {"1": "ruler/niah_single_1", "2": "ruler/qa_1", "3": "ruler/qa_1"}
        records = tuple(one for one in own if one.task == tasks[name])
        header = dict(run.header) | {"run": name, "arms": arms, "backend": {"engine": engine}}
        return saved(Run(tmp_path / name, Header(header), records))

    runs = [stored("1", "c", "hf"), stored("2", "d", "hf"), stored("3", "d", "vllm")]
    found, page = write_leaderboard(runs, declared(tmp_path, arms=["native", arm]), tmp_path / "out")
    rows = {(row["model"], row["arm"]) for row in table(found) if row["kind"] == "row"}
    assert rows == {
        ("tiny (hf)", "native"), ("tiny (hf)", f"{arm} (source cccccccc)"), ("tiny (hf)", f"{arm} (source dddddddd)"),
        ("tiny (vllm)", "native"), ("tiny (vllm)", arm),
    }  # fmt: skip
    assert page.read_text("utf-8").count("source cccccccc") > 1


def test_arms_of_one_model_are_paired_within_a_run_alone(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    for arm in ("native", "bf16-angle"):
        own = tuple(one for one in run.records if one.arm == arm)
        saved(Run(tmp_path / "runs" / arm, Header(dict(run.header) | {"run": arm}), own))
    found, _ = write_leaderboard([tmp_path / "runs"], declared(tmp_path), tmp_path / "out")
    assert {row["kind"] for row in table(found)} == {"row", "cell", "depth"}
    assert {row["value"] for row in table(found) if row["column"] == "verdict"} == {NONE}


def test_rendering_twice_gives_the_same_bytes_and_numbers_link_to_the_viewer(tmp_path: Path) -> None:
    path = saved(make_run(tmp_path / "run"))
    (path / "view").mkdir()
    (path / "view" / "index.html").write_text("")
    first = [one.read_bytes() for one in write_leaderboard([path], declared(tmp_path), tmp_path / "out")]
    assert [one.read_bytes() for one in write_leaderboard([path], declared(tmp_path), tmp_path / "out")] == first
    assert b'href="../run/view/index.html#length=2048&amp;arm=bf16-angle"' in first[1]


def test_hostile_names_are_spelled_out_and_cut(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    spelled = HOSTILE[3].replace("\ud800", "")  # half a character is no name: the reader refuses it
    names = dict(zip(ARMS[1:], (HOSTILE[1] + spelled, HOSTILE[5]), strict=True))
    lines = [
        to_line(r).replace(f'"{r.arm}"'.encode(), json.dumps(names.get(r.arm, r.arm)).encode()) for r in run.records
    ]
    path = saved(Run(run.path, {**run.header, "model": {"name": HOSTILE[0] + HOSTILE[2]}}, ()))
    (path / "records.jsonl").write_bytes(b"".join(lines))
    _, page = write_leaderboard([path], declared(tmp_path), tmp_path / "out")
    text = page.read_text("utf-8")
    assert text.count("<script") == text.count("</script>") == 3  # two data blocks and the page's own
    assert "<img" not in text and "⟨U+202E⟩" in text and len(text) < 1_000_000


def test_reported_numbers_never_enter_what_was_measured(tmp_path: Path) -> None:
    path = saved(make_run(tmp_path / "run"))
    reported = str(BOARDS / "reported" / "wang2024-ruler-llama2.csv")
    bare = table(write_leaderboard([path], declared(tmp_path), tmp_path / "a")[0])
    found, page = write_leaderboard([path], declared(tmp_path, reported=[reported]), tmp_path / "a")
    rows = table(found)
    assert [row for row in rows if row["kind"] != "reported"] == bare
    marked = [row for row in rows if row["kind"] == "reported"]
    assert len(marked) == 101 and all("T5" in row["source"] for row in marked)
    measured, apart = page.read_text("utf-8").split('id="reported"')
    assert "SlimPajama" not in measured and apart.count("UpSampledMix-128K") >= 5


def test_reported_averages_agree_with_the_notes_on_the_paper(shared: Path) -> None:
    """The mean gains over lengths that the notes print, recomputed from the committed numbers."""
    notes = (shared / "reference" / "paper.md").read_text("utf-8")
    llama2 = load_reported(BOARDS / "reported" / "wang2024-ruler-llama2.csv").rows
    corpora = ("SlimPajama-64K", "SlimPajama-128K", "UpSampledMix-128K")

    def gain(rows: Any, model: str, corpus: str, method: str, base: str) -> float:
        a, b = rows[model, corpus, method], rows[model, corpus, base]
        return fmean(float(a[name][0].value) - float(b[name][0].value) for name in a)

    for words, method, base in (
        ("Anchor - Full", "anchor", "full attention"),
        ("Anchor - IntraDoc", "anchor", "intra-document"),
        ("Anchor - Reset", "anchor", "intra-document + reset"),
        ("Reset - IntraDoc", "intra-document + reset", "intra-document"),
        ("Tag - Anchor", "anchor + tag", "anchor"),
    ):
        printed = re.search(rf"{words} ([+-][\d.]+) / ([+-][\d.]+) / ([+-]\d+\.\d+)", notes)
        assert printed, words
        for corpus, value in zip(corpora, printed.groups(), strict=True):
            assert gain(llama2, "LLaMA-2-7B", corpus, method, base) == pytest.approx(float(value), abs=0.0051)
    others = load_reported(BOARDS / "reported" / "wang2024-ruler-models.csv").rows
    models = ("LLaMA-3-8B", "Mistral-7B-v0.3", "Qwen-1.5-1.8B")
    gains = [gain(others, model, "not stated", "anchor", "full attention") for model in models]
    assert [f"{value:+.1f}" for value in gains] == ["+9.2", "+8.3", "+1.4"] and "+9.2, +8.3, +1.4" in notes


def test_every_reported_number_stands_in_the_notes_in_the_order_of_its_row(shared: Path) -> None:
    notes = (shared / "reference" / "paper.md").read_text("utf-8").split("## 4. Results")[1].split("### 4.6")[0]
    tables, prose = notes.split("### 4.4")[0], notes.split("### 4.4")[1]
    cells = [re.findall(r"\d+\.\d\d\b", line) for line in tables.splitlines() if line.startswith("|")]
    for name in ("wang2024-ruler-llama2", "wang2024-ruler-models", "wang2024-longbench-general"):
        for row in load_reported(BOARDS / "reported" / f"{name}.csv").rows.values():
            printed = [number.value for numbers in row.values() for number in numbers]
            assert any(sorted(printed) == sorted(line) for line in cells), (name, printed)
            by_length = [name for name in row if name.isdigit()]
            assert not by_length or (printed in cells and by_length == sorted(by_length, key=int, reverse=True))
    of_t2, of_t4, of_t3 = re.split(r"\nT[34] ", prose.split("### 4.5")[0])
    per_task = [re.findall(r"\d+\.\d+", line) for line in prose.splitlines() if line.startswith("|")]
    for name in ("wang2024-rope-base", "wang2024-ruler-tasks"):
        numbers = load_reported(BOARDS / "reported" / f"{name}.csv").numbers
        for key in dict.fromkeys((number.table, number.row) for number in numbers):
            values = [number.value for number in numbers if (number.table, number.row) == key]
            base = key[1][2].partition("base ")[2]
            said = {
                "T2": f"{'-/-/-/-/' * (len(values) == 1)}{'/'.join(values)}" in of_t2,
                "T3": f"{base} {'/'.join(values)}" in of_t3,
                "T4": f"{base} {values[0]} ({values[-1]})" in of_t4,
                "T10": values in per_task,
                "T11": f"{values[0]} at 4,000 and {values[-1]} at 4,096" in re.sub(r"\*", "", prose),
            }
            assert said[key[0]], key


def test_the_bench_builds_a_board_of_generated_runs() -> None:
    cost = measure(2, 60)
    assert cost.seconds > 0 and cost.peak < 2e9 and cost.html > 10_000
    assert str(cost).startswith("2 runs, 120 records: ") and LENGTHS


def of_ten(mean: float, low: float, high: float) -> Mean:
    return Mean(0, asked=10, scored=10, mean=mean, low=low, high=high)


def test_a_mean_without_the_lost_is_shown_and_ranked_by_the_mean_with_them_as_wrong() -> None:
    whole = of_ten(0.5, 0.2, 0.8)
    short = replace(of_ten(0.8, 0.4, 0.9), scored=5, outcomes={"answered": 5, "refused": 5})
    rows = {
        name: RowCells("fp32", ("ruler/vt",), (512,), {("ruler/vt", 512): mean}, None, "native")
        for name, mean in (("whole", whole), ("short", short))
    }
    values = {name: columns_of(row, ["by_length"])[0] for name, row in rows.items()}
    assert (values["whole"].text, values["whole"].key, values["whole"].bound) == ("50.0", 50.0, "")
    assert (values["short"].text, values["short"].bound) == ("80.0*", "40.0 as wrong")
    assert values["short"].key == pytest.approx(40.0) and values["short"].mean == pytest.approx(80.0)


def test_a_published_average_is_over_its_own_tasks_whatever_else_a_row_holds() -> None:
    means = {(task, 512): of_ten(0.5, 0.2, 0.8) for task in THIRTEEN}
    means["ruler/a_14th", 512] = of_ten(0.0, 0.0, 0.3)
    row = RowCells("fp32", (*THIRTEEN, "ruler/a_14th"), (512,), means, None, "native")
    thirteen, eleven, whole = columns_of(row, ["ruler_13", "ruler_11_wang", "by_length"])
    assert (thirteen.mean, eleven.mean) == (50.0, 50.0) and whole.mean == pytest.approx(100 * 13 * 0.5 / 14)


@pytest.mark.parametrize("name", ["longbench_six_en", "longbench_six_zh", "longbench_flat_16", "longbench_flat_21"])
def test_longbenchs_averages_are_columns_that_a_board_may_name(name: str, tmp_path: Path) -> None:
    average = averages()[name]
    scores = {task: at / 100 for at, task in enumerate(average.tasks)}
    means = {(task, 7500): of_ten(score, 0.0, 1.0) for task, score in scores.items()}
    tasks = tuple(averages()["longbench_flat_21"].tasks)
    (value,) = columns_of(RowCells("fp32", tasks, (7500,), means, None, "native"), [name])
    assert value.mean == pytest.approx(average.of({task: 100 * score for task, score in scores.items()}))
    load_definition(declared(tmp_path, suites=["longbench"], columns=[name], order=[f"-{name}"]))
    means.popitem()
    (short,) = columns_of(RowCells("fp32", tasks, (7500,), means, None, "native"), [name])
    assert short.text.endswith("*") and short.key is None


def test_a_summary_of_many_runs_has_a_row_for_each_and_a_page_in_each_folder(tmp_path: Path) -> None:
    paths = [saved(make_run(tmp_path / name)) for name in ("one", "two", "three")]
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "header.json").write_text("{", "utf-8")
    said: list[str] = []
    csv_file, page = write_summary([*paths, tmp_path / "torn"], tmp_path, tell=said.append)
    assert len(said) == 1 and said[0].startswith("left out: ") and "torn" in said[0]
    text = page.read_text("utf-8")
    for path in paths:
        assert (path / "board.html").is_file() and f'href="./{path.name}/board.html"' in text
        whole = [row for row in table(path / "board.csv") if row["kind"] == "difference" and not row["length"]]
        alone = next(row for row in whole if row["arm"] == "bf16-angle")
        of_run = [row for row in table(csv_file) if row["setting"].endswith(f"run {path.name}")]
        shown = {row["column"]: row["value"] for row in of_run if (row["kind"], row["arm"]) == ("row", "bf16-angle")}
        assert (shown["minus native"], shown["verdict"]) == (alone["difference"], alone["verdict"])
    before = [(path / "board.html").stat().st_mtime_ns for path in paths]
    write_summary(paths, tmp_path)
    assert before == [(path / "board.html").stat().st_mtime_ns for path in paths]  # not drawn again
    records = (paths[0] / "records.jsonl").stat().st_mtime_ns
    os.utime(paths[0] / "board.html", ns=(records - 1, records - 1))
    write_summary(paths, tmp_path)
    assert (paths[0] / "board.html").stat().st_mtime_ns >= records


def test_more_runs_than_a_page_shows_are_a_summary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anchoreval.reports.board.declared.MANY", 1)
    for name in ("one", "two"):
        saved(make_run(tmp_path / name))
    result = cli("board", str(tmp_path))
    assert result.returncode == 0 and "2 runs: one table of all" in result.stderr
    assert (tmp_path / "one" / "board.html").is_file()
