"""General benchmarks through the whole program; scores against lm-eval's `simple_evaluate` with its own `hf` model.

lm-eval computes the same rows by itself; nothing of this package takes part in that.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from general_files import TASKS, write_folder

from anchoreval import evaluate, load_run
from anchoreval.cards import load_tasks
from anchoreval.cli.parser import main
from anchoreval.errors import CardError, MissingExtra, SourceError
from anchoreval.records.rescore import rescored
from anchoreval.records.run import Run, find_runs
from anchoreval.reports.averages.general import Figure, figures, groups, losses, report
from anchoreval.reports.board import board_html, run_table
from anchoreval.runs.verify.records import findings
from anchoreval.schema import ChoiceScore, Record
from anchoreval.suites.general import harness as lm_eval_tasks
from anchoreval.suites.general.harness import lm_eval

pytest.importorskip("lm_eval", reason="LM-EVAL ABSENT: pip install 'anchoreval[lm-eval]'; no general task was run")

TINY = Path(__file__).parents[3] / "models" / "anchor-tiny"
ALL = ",".join(f"general/{name}" for name in TASKS)
CARDS = {name.partition("/")[2]: task for name, task in load_tasks()[0].items() if task.suite == "general"}
LIMIT = 3
COMPUTED = [name for name in TASKS if not name.startswith("bbh")]  # 1,024 new tokens a row are too many for a test
# The reference of bbh is the answer alone; its filter looks behind the words "the answer is".
NOT_BY_REFERENCE = {"general/bbh_cot_fewshot_navigate"}
# A share of probability on all right answers, of which the fake makes one the likeliest.
OF_MASS = {"general/truthfulqa_mc2"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("general"))


def run(output: Path, folder: Path, tasks: str = ALL, **changes: Any) -> Run:
    given: dict[str, Any] = {"backend": "fake", "limit": LIMIT}
    return evaluate("anchor-tiny", tasks, output=output, data_dir=folder, **given | changes)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Run:
    """Tasks answered by the embedded model."""
    tasks = ",".join(f"general/{name}" for name in COMPUTED)
    return run(tmp_path_factory.mktemp("real"), folder, tasks, backend="hf")


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Iterator[dict[str, Any]]:
    """What lm-eval's `simple_evaluate` makes of the same rows with its `hf` model."""
    pytest.importorskip("accelerate", reason="ACCELERATE ABSENT: lm-eval's hf model, which is compared with, needs it")
    import datasets
    from lm_eval import simple_evaluate, tasks
    from lm_eval.models.huggingface import HFLM

    def rows(path: str, name: str | None = None, **_: Any) -> Any:
        files = sorted((folder / "general" / asked).glob("*.jsonl"))
        made = {one.stem: [json.loads(line) for line in one.read_text().splitlines()] for one in files}
        made.setdefault("train", next(iter(made.values())))
        return datasets.DatasetDict({key: datasets.Dataset.from_list(own) for key, own in made.items()})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets, "load_dataset", rows)
        patch.setattr("torch.utils.collect_env.get_pretty_env_info", lambda: "")  # it asks pip, half a second a task
        model = HFLM(pretrained=str(TINY), device="cpu", dtype="float32", batch_size=1, add_bos_token=True)
        found: dict[str, Any] = {}
        for asked in COMPUTED:
            card = CARDS[asked]
            place = Path(tasks.__file__).parent / card.args["folder"]
            result = simple_evaluate(
                model,
                tasks=[asked],
                num_fewshot=card.args.get("shots") or None,
                limit=LIMIT,
                bootstrap_iters=0,
                task_manager=tasks.TaskManager(include_path=str(place), include_defaults=False),
            )
            found[asked] = {"results": result["results"][asked], "samples": result["samples"][asked]}
        yield found


@pytest.mark.numeric
def test_every_metric_of_every_task_is_that_of_simple_evaluate(real: Run, theirs: dict[str, Any]) -> None:
    ours = {(one.task.partition("/")[2], one.name): one for one in figures(real) if one.arm == "native"}
    compared = 0
    for task, each in theirs.items():
        names = [name for name in each["results"] if "," in name and "stderr" not in name]
        assert {name for own, name in ours if own == task} == set(names)
        for name in names:
            assert ours[task, name].value == pytest.approx(each["results"][name], rel=2e-4, abs=1e-9), (task, name)
            assert ours[task, name].rows == LIMIT
            compared += 1
    assert compared >= 15


@pytest.mark.numeric
def test_every_log_probability_and_every_text_is_that_of_its_hf_model(real: Run, theirs: dict[str, Any]) -> None:
    records = {
        (record.task.partition("/")[2], record.index): record for record in real.records if record.arm == "native"
    }
    for task, each in theirs.items():
        for sample in each["samples"]:
            record = records[task, sample["doc_id"]]
            if record.choices:
                for choice, response in zip(record.choices, sample["resps"], strict=True):
                    logprob, greedy = response[0]
                    assert choice.logprob == pytest.approx(float(logprob), abs=2e-3), (task, record.index)
                    assert choice.greedy == (str(greedy) == "True")
            else:
                assert record.output == sample["resps"][0][0], (task, record.index)


@pytest.mark.numeric
def test_the_score_of_a_record_is_the_metric_of_the_card(real: Run, theirs: dict[str, Any]) -> None:
    for task, each in theirs.items():
        args = CARDS[task].args
        said = {s["doc_id"]: s[args["metric"]] for s in each["samples"] if s["filter"] == args.get("filter", "none")}
        own = {one.index: one.score for one in real.records if one.task == f"general/{task}" and one.arm == "native"}
        assert own == pytest.approx({index: float(value) for index, value in said.items()}, abs=1e-4), task


@pytest.mark.numeric
def test_a_run_of_a_model_verifies_and_scores_again_from_disk(real: Run, folder: Path) -> None:
    assert len(real.records) == len(COMPUTED) * LIMIT and not real.header["unmakeable"]
    assert not [finding for finding in findings(real.path, folder) if finding.differs]
    assert not list(rescored(real))
    assert real.header["scorer_packages"]["lm-eval"] == "0.4.13"


def test_a_changed_row_is_found_by_verify(tmp_path: Path, folder: Path) -> None:
    result = run(tmp_path / "run", folder, "general/piqa", limit=2)
    other = shutil.copytree(folder, tmp_path / "other")
    file = other / "general" / "piqa" / "validation.jsonl"
    file.write_text(file.read_text().replace("how to use", "how to lose", 1))
    assert [finding.differs for finding in findings(result.path, folder)].count(True) == 0
    with pytest.raises(SourceError, match=r"general/piqa/validation has sha256 .* was made with"):
        list(findings(result.path, other))


def test_every_task_scores_one_on_its_own_references(tmp_path: Path, folder: Path) -> None:
    result = run(tmp_path, folder)
    assert len(result.records) == LIMIT * len(TASKS)
    for record in result.records:
        if record.task in NOT_BY_REFERENCE:
            assert record.score == 0.0
            assert lm_eval(f"So the answer is {record.references[0]}.", (), record.facts).value == 1.0
        elif record.task not in OF_MASS:
            assert record.score == 1.0, record.sample_id
        if record.choices:
            assert chosen(record, right=True) == pytest.approx(1.0)


def test_every_task_scores_zero_on_an_empty_or_a_wrong_answer(tmp_path: Path, folder: Path) -> None:
    texts = 0
    for record in run(tmp_path, folder, options={"mode": "empty"}).records:
        if record.choices:
            assert chosen(record, right=False) == pytest.approx(0.0)
        else:
            assert record.score == 0.0 and record.output == ""
            for wrong in ("wrong", "#### ", "the answer is ", "#### 1e9", "\n\n", "\ud800", "a" * 10_000):
                assert lm_eval(wrong, (), record.facts).value == 0.0
            texts += 1
    assert texts == 2 * LIMIT


def chosen(record: Record, right: bool) -> float | None:
    """The score where the right choices, or the others, are far likelier than the rest."""
    labels = record.facts["doc"].get("mc2_targets", {}).get("labels") if record.task in OF_MASS else None
    gold = [bool(one) for one in labels] if labels else [i == record.facts["gold"] for i in range(len(record.choices))]
    said = tuple(ChoiceScore(-1.0 if one == right else -5000.0, one == right) for one in gold)
    return lm_eval("", (), {**record.facts, "choices": said}).value


def test_boards_tables_and_exports_say_that_lengths_are_natural(tmp_path: Path, folder: Path) -> None:
    result = run(tmp_path, folder, "general-quick", limit=2)
    table, html = run_table(result), board_html([result])
    assert "natural" in table and "hellaswag" in table and "natural" in html and "general/hellaswag" in html
    assert main(["export", "--format", "lm-eval", "--output", str(tmp_path / "export"), str(result.path)]) == 0
    assert list((tmp_path / "export").glob("*/samples_general_piqa_2*.jsonl"))
    assert main(["view", str(result.path), "--output", str(tmp_path / "view")]) == 0


def test_the_command_line_runs_reports_and_verifies(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["run", "--model", "anchor-tiny", "--backend", "fake", "--tasks", ALL, "--data-dir", str(folder)]
    assert main([*arguments, "--limit", "3", "--rope", "bf16,fp32", "--output", str(tmp_path)]) == 0
    assert "natural" in capsys.readouterr().out
    (path,) = find_runs([tmp_path])
    assert main(["verify", str(path), "--data-dir", str(folder)]) == 0
    assert main(["score", str(path)]) == 0
    capsys.readouterr()
    assert main(["general", str(path), "--margin", "40"]) == 0
    out = capsys.readouterr().out
    assert "acc_norm,none" in out and "exact_match,strict-match" in out and "perplexity,none" in out
    assert "group mmlu: 2 of 57 tasks, no average" in out
    assert "margin 40 points" in out and "equivalent within 40" in out


CODE = "import pathlib\npathlib.Path('{}').write_text('ran')\ndef docs(rows): return rows\n"
YAML = (
    "task: theirs\ndataset_path: json\noutput_type: generate_until\ntest_split: test\n"
    "process_docs: !function code.docs\n"
    "doc_to_text: '{{goal}}'\ndoc_to_target: '{{label}}'\nmetric_list:\n  - metric: exact_match\n"
)


@pytest.mark.parametrize("where", ["absolute", "relative", "link", "another task", "no kind", "no row", "odd row"])
def test_facts_of_a_record_choose_no_definition(
    where: str, tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = run(tmp_path / "runs", folder, "general/piqa", limit=1)
    theirs = made.path / "theirs"
    theirs.mkdir()
    (theirs / "code.py").write_text(CODE.format(tmp_path / "ran"))
    (theirs / "theirs.yaml").write_text(YAML)
    (tmp_path / "link").symlink_to(theirs)
    row = json.loads((made.path / "records.jsonl").read_text())
    said = row["facts"]["lm_eval"]
    change: dict[str, Any] = {
        "absolute": {"task": "theirs", "folder": str(theirs)},
        "relative": {"task": "theirs", "folder": "../" * 30 + str(theirs)[1:]},
        "link": {"task": "theirs", "folder": str(tmp_path / "link")},
        "another task": {"task": "hellaswag", "folder": "hellaswag"},
        "no kind": {"task": 5, "folder": ["piqa"]},
    }.get(where, {})
    row["facts"]["lm_eval"] = said | change
    row["facts"]["doc"] = {"no row": 7, "odd row": {"goal": {"a": [1, "b"]}}}.get(where, row["facts"]["doc"])
    (made.path / "records.jsonl").write_text(json.dumps(row) + "\n")
    for command in ["score"], ["general"], ["verify", "--data-dir", str(folder)]:
        assert main([command[0], str(made.path), *command[1:]]) in (1, 2)
        out, err = capsys.readouterr()
        assert ("doc" if where.endswith("row") else "lm_eval") in out + err
        assert len(err.splitlines()) <= 2 and "Traceback" not in err
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("place", ["/tmp", "../..", "piqa/../../..", "a\0b", "no_such_folder"])
def test_a_card_names_a_folder_of_the_installed_lm_eval(place: str) -> None:
    with pytest.raises(CardError, match="the installed lm-eval has no folder of tasks"):
        lm_eval_tasks.load("piqa", place, 0)


def test_a_run_goes_on_where_it_was_cut_off(tmp_path: Path, folder: Path) -> None:
    whole = run(tmp_path / "whole", folder, "general/hellaswag,general/gsm8k")
    parts = run(tmp_path / "parts", folder, "general/hellaswag,general/gsm8k")
    file = parts.path / "records.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:3]) + lines[3][:40])
    header = {key: said for key, said in parts.header.items() if key not in ("finished", "seal")}
    (parts.path / "header.json").write_text(json.dumps(header))
    again = run(tmp_path / "parts", folder, "general/hellaswag,general/gsm8k")
    assert [(r.key, r.score, r.choices) for r in again.records] == [(r.key, r.score, r.choices) for r in whole.records]


def test_another_release_of_lm_eval_begins_a_new_run(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = run(tmp_path, folder, "general/hellaswag")
    assert "releases" not in before.header["identity"]
    release = lm_eval_tasks.metadata.version
    monkeypatch.setattr(lm_eval_tasks, "COMPARED", "0.0.1")
    told: list[str] = []
    after = run(tmp_path, folder, "general/hellaswag", tell=told.append)
    assert any("the release of lm-eval" in line and "a new run begins" in line for line in told)
    assert after.header["identity"]["releases"] == [f"lm-eval {release('lm-eval')}"]
    assert after.path != before.path


def test_prompts_that_a_model_has_no_room_for_are_not_cut_and_have_no_score(tmp_path: Path, folder: Path) -> None:
    result = run(tmp_path, folder, "general/hellaswag,general/piqa", max_length=120)
    long = [record for record in result.records if record.finish == "error"]
    assert {record.task for record in long} == {"general/hellaswag"} and len(long) == LIMIT
    assert all(r.score is None and "the model has 120, and nothing is cut" in str(r.why) for r in long)
    assert all(record.score == 1.0 for record in result.records if record.task == "general/piqa")
    assert not [finding for finding in findings(result.path, folder) if finding.differs]
    assert {one.task for one in figures(result)} == {"general/piqa"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tasks", "general/arc_easy", "--limit", "99"], "--limit 12"),
        (["--tasks", "general/mmlu_astronomy", "--limit", "1"], "general/mmlu_astronomy: its rows are neither in"),
        (["--tasks", "general/piqa", "--limit", "1", "--template", "chat"], "--template base"),
        (["--tasks", "general/nothing"], "general/nothing"),
    ],
)
def test_what_cannot_be_run_is_one_line_and_exit_2(
    arguments: list[str], message: str, tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["run", "--model", "anchor-tiny", "--backend", "fake", "--data-dir", str(folder), "--output", str(tmp_path)]
    assert main([*given, *arguments]) == 2
    out, err = capsys.readouterr()
    (line,) = [line for line in err.splitlines() if line.startswith("anchoreval: ")]
    assert message in line and not out and "Traceback" not in err


def test_a_broken_row_ends_the_command_with_its_place(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = shutil.copytree(folder, tmp_path / "other")
    file = other / "general" / "piqa" / "validation.jsonl"
    file.write_text(file.read_text() + '{"goal": "half')
    given = ["run", "--model", "anchor-tiny", "--backend", "fake", "--tasks", "general/piqa", "--limit", "2"]
    assert main([*given, "--data-dir", str(other), "--output", str(tmp_path)]) == 2
    assert f"{file}:13 is not JSON" in capsys.readouterr().err


def test_without_lm_eval_a_run_says_what_to_install(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("anchoreval.suites.general.harness.find_spec", lambda _: None)
    with pytest.raises(MissingExtra, match=r"pip install 'anchoreval\[lm-eval\]'"):
        run(tmp_path, folder, "general/piqa")


def test_a_membersaverage_weighs_its_tasks_by_rows_and_needs_all_of_them() -> None:
    members = load_tasks()[1]["mmlu_other"]
    found = [
        Figure(task, "acc", "none", "native", index / 20, 10 + index, 10 + index, 5, True)
        for index, task in enumerate(members)
    ]
    (other,) = groups(found)
    rows = [10 + index for index in range(len(members))]
    assert other.task == "mmlu_other" and other.rows == sum(rows)
    assert other.value == pytest.approx(sum(i / 20 * n for i, n in enumerate(rows)) / sum(rows))
    assert not groups(found[1:])


def made(scores: dict[str, list[tuple[float, float]]]) -> Run:
    """A run of two arms with the given pairs of scores by task."""
    records = [
        Record(
            f"{task}{index}{arm}", f"{task}@0#{index}", task, 0, index, arm, "0" * 64, 9, (), {"lm_eval": {}}, "", 1,
            "stop", pair[arm == "b"], None, None, 0, 0.0,
        )
        for task, pairs in scores.items() for index, pair in enumerate(pairs) for arm in "ab"
    ]  # fmt: skip
    return Run(Path("run"), {"arms": [{"name": "a"}, {"name": "b"}]}, tuple(records))


def test_nothing_was_lost_is_said_only_where_the_interval_lies_within_the_margin() -> None:
    same, worse = [(1.0, 1.0)] * 1500, [(1.0, 0.0)] * 30 + [(1.0, 1.0)] * 70
    few = [(1.0, 1.0)] * 10
    rows = losses(made({"general/x": same, "general/y": worse, "general/z": few}), {}, 1.0)
    said = {row[2]: row[-1] for row in rows[1:]}
    assert said["x"] == "identical (equivalent within 1)"
    assert said["y"] == "worse"
    assert said["z"].startswith("identical (equivalence within 1 needs about ")
    assert said["all, by rows"].startswith("worse")
    members = {"g": ["general/x", "general/y"]}
    grouped = losses(made({"general/x": same, "general/y": worse, "general/z": few}), members, 50.0)
    assert [(row[2], row[3]) for row in grouped[1:]] == [("z", "10"), ("group g", "1600"), ("all, by rows", "1610")]
    assert float(grouped[2][4]) == pytest.approx(-100 * 30 / 1600, abs=0.01)


def test_a_run_of_one_arm_lost_nothing_that_could_be_said(tmp_path: Path, folder: Path) -> None:
    result = run(tmp_path, folder, "general/piqa")
    assert losses(result, {}, 1.0) == [] and "was anything lost" not in report(load_run(result.path))
