"""`anchoreval lm-eval` as a user meets it, and the traps of lm-eval 0.4.13 that it must not fall into."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from lm_eval_files import TINY, write_folder
from longbench_v2_files import write_folder as write_longbench_v2

from anchoreval import evaluate
from anchoreval.cards import load_tasks
from anchoreval.cli.parser import main
from anchoreval.lm_eval_plugin import MODELS, names
from anchoreval.suites import outside

pytest.importorskip("lm_eval", reason="LM-EVAL ABSENT: pip install 'anchoreval[lm-eval]'; no command was run")

REPOSITORY = Path(__file__).parents[2]
NIAH = "anchor_ruler_niah_single_1_512"
MODEL = ["--model", "anchoreval", "--model_args", "pretrained=anchor-tiny"]
RUN = ["lm-eval", "run", *MODEL, "--tasks", NIAH]


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that is loaded is an error."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr("anchoreval.backends.hf.backend.HfBackend.open", refuse)


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    out, err = capsys.readouterr()
    (line,) = [line for line in err.splitlines() if line.startswith("anchoreval: ")]
    assert "Traceback" not in err and not out.strip()
    return line


def results(folder: Path) -> dict[str, Any]:
    (path,) = folder.glob("**/results_*.json")
    made: dict[str, Any] = json.loads(path.read_text())
    return made


def samples(folder: Path, task: str = NIAH) -> list[dict[str, Any]]:
    (path,) = folder.glob(f"**/samples_{task}_2*.jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return sorted(rows, key=lambda row: int(row["doc_id"]))


def test_a_group_a_task_and_one_of_lm_evals_kind_run_together_and_write_its_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import lm_eval.tasks

    theirs, more = write_folder(tmp_path / "theirs"), tmp_path / "more"
    more.mkdir()
    (more / "mine.yaml").write_text("group: mine\ntask: [anchor_ruler_fwe_512, own_pairs]\n")
    (more / "broken.yaml").write_text("task: [half\n")
    whole = lm_eval.tasks.TaskManager  # its 14,683 entries take 12 s: an empty folder stands for them
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", lambda **given: whole(**given, include_defaults=False))
    arguments = ["lm-eval", "run", "--model", "anchoreval", "--model_args", "pretrained=anchor-tiny,device=cpu"]
    arguments += ["--tasks", f"mine,own_choices,{NIAH}", "--include_path", f"{theirs}{os.pathsep}{more}"]
    arguments += ["--limit", "2", "--log_samples", "--output_path", str(tmp_path / "out")]
    assert main([*arguments, "--metadata", "max_seq_lengths=[128,256]"]) == 0
    out, err = capsys.readouterr()
    assert NIAH in out and "own_choices" in out and "'device': 'cpu'" in out
    assert f"lm-eval skips {more / 'broken.yaml'}: " in err
    made = results(tmp_path / "out")
    assert set(made["results"]) >= {NIAH, "own_choices", "own_pairs", "anchor_ruler_fwe_512"}
    assert made["group_subtasks"]["mine"] == ["anchor_ruler_fwe_512", "own_pairs"]
    assert made["configs"][NIAH]["metadata"]["max_seq_lengths"] == [128, 256]
    assert made["config"]["anchoreval"]["arm"]["asked"]["name"] == "native"
    about = made["configs"][NIAH]["metadata"]["anchoreval"]
    assert (about["task"], about["length"], about["seed"]) == ("ruler/niah_single_1", 512, 42)
    assert "not comparable with published scores" in err and about["sources"]["haystack"] == "generated"
    assert made["n-samples"][NIAH] == {"original": 2, "effective": 2}
    assert [row["score"] for row in samples(tmp_path / "out")] == [1.0, 1.0]


def test_a_suite_from_outside_is_known_where_it_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    card = str(REPOSITORY / "examples" / "boxes" / "boxes.yaml")
    name = "anchor_boxes_first_512"
    asked = ["run", *MODEL, "--tasks", name, "--limit", "1"]
    assert main(["lm-eval", *asked]) == 2 and f"Tasks not found: {name}" in one_line(capsys)
    try:
        command = ["lm-eval", "--tasks", card, *asked, "--log_samples", "--output_path", str(tmp_path)]
        assert main(command) == 0, capsys.readouterr().err
    finally:
        outside._NAMED.clear()
    about = results(tmp_path)["configs"][name]["metadata"]["anchoreval"]
    assert about["task"] == "boxes/first" and set(about["card"]["outside"]) == {"card", "module"}
    ours = evaluate("anchor-tiny", card + "/first", lengths=[512], limit=1, output=tmp_path / "ours")
    outside._NAMED.clear()
    (record,), (row,) = ours.records, samples(tmp_path, name)
    assert row["filtered_resps"] == [record.output] and row["score"] == record.score
    capsys.readouterr()
    assert main(["lm-eval", "--tasks", "ruler", *asked]) == 2
    assert "suite from outside the package" in one_line(capsys)


def test_the_tag_of_all_and_the_group_of_a_length_are_ours_alone(tmp_path: Path) -> None:
    from lm_eval.tasks import TaskManager

    made = names.write_tasks(tmp_path, ["anchor_ruler_niah_single_1_777"])
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    assert manager.all_subtasks == sorted(made)  # a file that lm-eval cannot read would be missing without a word
    assert manager.all_tags == ["anchoreval"] and "anchor_ruler_777" in manager.all_groups
    assert all(name.startswith("anchor_") for name in [*manager.all_subtasks, *manager.all_groups])
    cards = [task for task in load_tasks()[0].values() if task.length_of != "natural" and task.suite != "nll"]
    assert {task.address for task, _ in made.values()} == {task.address for task in cards}
    assert all((task, length) in made.values() for task in cards for length in task.lengths)


def test_no_name_and_no_tag_of_lm_evals_own_begins_like_ours() -> None:
    import lm_eval.tasks

    kind = re.compile(rb"^(?:task|group|tag)\s*:(.*(?:\n\s*-.*)*)", re.MULTILINE)
    found = b"".join(
        said
        for path in Path(lm_eval.tasks.__file__).parent.glob("**/*.yaml")
        for said in kind.findall(path.read_bytes())
    )
    assert len(found) > 100_000 and b"anchor" not in found


def test_registering_keeps_every_model_of_lm_evals_own_and_imports_no_torch() -> None:
    code = (
        "import sys\n"
        "from anchoreval.lm_eval_plugin import register\n"
        "register(); register()\n"
        "assert not {'torch', 'transformers'} & set(sys.modules), 'heavy'\n"
        "from lm_eval.api.registry import get_model, model_registry\n"
        "assert {'anchoreval', 'hf', 'vllm', 'dummy'} <= set(model_registry), sorted(model_registry)\n"
        "from anchoreval.lm_eval_plugin.model import AnchorEvalLM\n"
        "assert get_model('anchoreval') is AnchorEvalLM and get_model('dummy')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_an_entry_point_that_a_later_release_loads_is_the_same_model(monkeypatch: pytest.MonkeyPatch) -> None:
    from lm_eval.api import registry
    from lm_eval.api.model import LM

    from anchoreval.lm_eval_plugin import register
    from anchoreval.lm_eval_plugin.model import AnchorEvalLM

    said = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["entry-points"]["lm_eval.models"]
    assert said == MODELS
    fresh: Any = registry.Registry("model", base_cls=LM)
    fresh.register("anchoreval", target=EntryPoint("anchoreval", said["anchoreval"], "lm_eval.models"))
    monkeypatch.setattr(registry, "model_registry", fresh)
    register()
    assert fresh.get("anchoreval") is AnchorEvalLM


BAD = [
    (["--model_args", "ropes=fp32"], "unknown ropes"),
    (["--model", "anchoreval-vllm", "--model_args", "max_num_seqs=2,chunk_tokens=64"], "unknown chunk_tokens (known:"),
    (["--model_args", "backend=hf"], "the name of the model chooses"),
    (["--model_args", "rope=fp31"], "unknown"),
    (["--num_fewshot", "2"], "--num_fewshot would change the prompts"),
    (["--system_instruction", "Be brief."], "--system_instruction would change"),
    (["--apply_chat_template"], "--apply_chat_template would change"),
    (["--gen_kwargs", "max_gen_toks=3"], "--gen_kwargs would change"),
    (["--cache_requests", "true"], "--cache_requests would change"),
    (["--samples", json.dumps({NIAH: [0, 500]})], f"--samples: {NIAH} has samples 0 to 499"),
    (["--samples", json.dumps({NIAH: [0]}), "--limit", "2"], "--limit must be None"),
    (["--log_samples"], "Specify --output_path"),
    (["--config", "/nowhere.yaml"], "Config file not found"),
    (["--include_path", "/nowhere"], "/nowhere is no folder"),
    (["--tasks", "anchor_ruler_niah_sinle_1_512"], "Tasks not found: anchor_ruler_niah_sinle_1_512"),
    (["--tasks", "anchor_ruler_niah_single_1_9999"], "8192"),
    (["--metadata", "wordlists=2"], "not one of 3.0.1, 2.2.0"),
    (["--model_args", "device=cpu", "--device", "cpu"], "device is given twice"),
]


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize(("more", "says"), BAD, ids=lambda value: value if isinstance(value, str) else None)
def test_bad_input_is_one_line_and_exit_2_before_weights_are_loaded(
    more: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = RUN[:-2] if more[0] == "--tasks" else RUN
    assert main([*arguments, *more]) == 2
    assert says in one_line(capsys)


@pytest.mark.parametrize(
    ("method", "asked", "says"),
    [
        ("fewshot_context", {"num_fewshot": 2}, "--num_fewshot"),
        ("fewshot_context", {"system_instruction": "x"}, "--system_instruction"),
        ("fewshot_context", {"apply_chat_template": True}, "--apply_chat_template"),
        ("build_all_requests", {"cache_requests": True}, "--cache_requests"),
        ("build_all_requests", {"samples": [-1]}, "--samples"),
        ("build_all_requests", {"limit": 1}, "--gen_kwargs"),
    ],
)
def test_a_task_of_ours_refuses_by_itself_what_would_change_its_prompts(
    method: str, asked: dict[str, Any], says: str
) -> None:
    from anchoreval.lm_eval_plugin.arguments import BadArgument
    from anchoreval.lm_eval_plugin.tasks import AnchorTask

    metadata = {"version": 1, "anchoreval": {"task": "ruler/vt", "length": 512}, "pretrained": "anchor-tiny"}
    task = AnchorTask({"task": "anchor_ruler_vt_512", "metadata": metadata})
    if says == "--gen_kwargs":
        task.set_config(key="generation_kwargs", value={"max_gen_toks": 3}, update=True)
    given = (task.task_docs[0],) if method == "fewshot_context" else ()
    with pytest.raises(BadArgument, match=says):
        getattr(task, method)(*given, **asked)


@pytest.mark.usefixtures("no_weights")
def test_missing_texts_are_said_before_weights_are_loaded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = f"haystack=published,data_dir={tmp_path}"
    assert main([*RUN[:-2], "--model_args", args, "--tasks", "anchor_ruler_niah_single_2_1024"]) == 2
    assert "PaulGrahamEssays.json is missing" in one_line(capsys)


def test_results_that_cannot_be_written_end_with_2_before_and_with_1_behind_the_answers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert main([*RUN, "--limit", "1", "--output_path", str(tmp_path / "file")]) == 2
    assert "cannot write to" in one_line(capsys)
    (tmp_path / "anchor-tiny").write_text("where the folder of the model would be")
    assert main([*RUN, "--limit", "1", "--output_path", str(tmp_path)]) == 1
    assert "Could not save results" in capsys.readouterr().err.splitlines()[-1]


def test_chosen_samples_are_those_and_a_folder_named_for_instances_is_only_warned_of(tmp_path: Path) -> None:
    (tmp_path / "instances").mkdir()
    place = tmp_path / "instances" / "anchor-tiny"
    place.symlink_to(TINY)
    arguments = ["lm-eval", "run", "--model", "anchoreval", "--model_args", f"pretrained={place},dtype=float32"]
    arguments += ["--tasks", NIAH, "--samples", json.dumps({NIAH: [3, 1]}), "--log_samples"]
    assert main([*arguments, "--output_path", str(tmp_path / "out")]) == 0
    run = evaluate("anchor-tiny", "ruler/niah_single_1", lengths=[512], limit=4, output=tmp_path / "runs")
    said = {record.index: (record.prompt_sha256, record.output) for record in run.records}
    found = {row["doc_id"]: (row["prompt_hash"], row["resps"][0][0]) for row in samples(tmp_path / "out")}
    assert found == {1: said[1], 3: said[3]}


@pytest.mark.numeric
def test_choices_of_our_tasks_are_scored_as_anchoreval_run_scores_them(tmp_path: Path) -> None:
    task, data = "anchor_longbench_v2_choices_questions_400", write_longbench_v2(tmp_path / "data")
    arguments = ["lm-eval", "run", "--model", "anchoreval", "--tasks", task, "--limit", "3", "--log_samples"]
    arguments += ["--model_args", f"pretrained=anchor-tiny,arm=anchor/bf16,data_dir={data}"]
    assert main([*arguments, "--output_path", str(tmp_path / "out")]) == 0
    given: dict[str, Any] = {"lengths": [400], "rope": "anchor/bf16", "limit": 3, "data_dir": data}
    run = evaluate("anchor-tiny", "longbench_v2_choices", output=tmp_path / "runs", **given)
    for row, record in zip(samples(tmp_path / "out", task), run.records, strict=True):
        assert [tuple(map(json.loads, map(str.lower, each[0]))) for each in row["resps"]] == list(record.choices)
        assert row["score"] == record.score


KILLED = """
import os, signal, sys, time
from anchoreval.lm_eval_plugin import model
answers = model.AnchorEvalLM._answers
def few(self, *given):
    for number, output in enumerate(answers(self, *given)):
        if number == 5:
            time.sleep(1)  # the thread of the cache writes what it was given
            os.kill(os.getpid(), signal.SIGKILL)
        yield output
model.AnchorEvalLM._answers = few
from anchoreval.cli.parser import main
main(sys.argv[1:])
"""


def test_a_killed_run_keeps_every_answer_that_it_had_and_no_other_arm_is_given_them(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def arguments(rope: str, out: str) -> list[str]:
        args = f"pretrained=anchor-tiny,rows=4,rope={rope}"
        files = ["--log_samples", "--output_path", str(tmp_path / out)]
        return [
            "lm-eval",
            "run",
            "--model",
            "anchoreval",
            "--model_args",
            args,
            "--tasks",
            NIAH,
            "--limit",
            "10",
            *files,
        ]

    cache = ["--use_cache", str(tmp_path / "cache")]
    done = subprocess.run([sys.executable, "-c", KILLED, *arguments("fp32", "killed"), *cache], check=False)
    assert done.returncode == -signal.SIGKILL and not (tmp_path / "killed" / "anchor-tiny").exists()
    monkeypatch.setattr("lm_eval.api.model.eval_logger", heard := _Heard())
    assert main([*arguments("fp32", "again"), *cache]) == 0
    assert "Cached requests: 5, Requests remaining: 5" in heard.said
    assert [row["score"] for row in samples(tmp_path / "again")] == [1.0] * 10
    capsys.readouterr()
    assert main([*arguments("bf16", "other"), *cache]) == 2
    assert "of another model, arm or engine" in one_line(capsys)


class _Heard:
    def __init__(self) -> None:
        self.said = ""

    def __getattr__(self, _: str) -> Callable[..., None]:
        return lambda text, *more: setattr(self, "said", f"{self.said}{text % more if more else text}\n")


def test_lm_evals_own_tasks_are_left_out_only_where_all_that_is_asked_is_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    import lm_eval._cli
    import lm_eval.tasks

    whole, seen = lm_eval.tasks.TaskManager, []
    monkeypatch.setattr(lm_eval._cli.HarnessCLI, "execute", lambda *_: seen.append(lm_eval.tasks.TaskManager is whole))
    for action, tasks in [("validate", NIAH), ("validate", f"{NIAH},hellaswag"), ("validate", "a*"), ("ls", "")]:
        assert main(["lm-eval", action, *(["--tasks", tasks] if tasks else ["tasks"])]) == 0
    assert seen == [False, True, True, True] and lm_eval.tasks.TaskManager is whole


def test_a_run_that_is_stopped_says_what_is_kept(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import lm_eval._cli

    def stopped(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(lm_eval._cli.HarnessCLI, "execute", stopped)
    assert main(RUN) == 130
    assert "with --use_cache PATH alone" in one_line(capsys)


def test_without_lm_eval_the_command_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("anchoreval.suites.general.harness.find_spec", lambda _: None)
    assert main(RUN) == 2
    assert "pip install 'anchoreval[lm-eval]'" in one_line(capsys)


def test_validate_knows_our_names_and_ends_with_1_for_others(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lm-eval", "validate", "--tasks", f"{NIAH},anchor_ruler_512,anchoreval"]) == 0
    with pytest.raises(SystemExit) as ended:
        main(["lm-eval", "validate", "--tasks", "anchor_ruler_nothing_512"])
    assert ended.value.code == 1 and "not found: anchor_ruler_nothing_512" in capsys.readouterr().out


def test_flags_that_lm_eval_does_not_know_end_with_its_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*RUN, "--nothing"])
    assert ended.value.code == 2 and "unrecognized arguments: --nothing" in capsys.readouterr().err
    assert main(["lm-eval", "run"]) == 2
    assert "--model" in one_line(capsys)
