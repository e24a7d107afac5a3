"""The command line as a user meets it: a process, its exit code, what it prints where."""

from __future__ import annotations

import argparse
import dataclasses
import errno
import inspect
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from command_line import cli, process

from anchoreval.arms.arm import parse_arms
from anchoreval.backends.fake import FakeBackend
from anchoreval.cli.options import backend_args
from anchoreval.cli.parser import kinds_of, parsed, parser
from anchoreval.errors import AnchorEvalError, ModelError, RunError
from anchoreval.files import require_writable
from anchoreval.runs.evaluate import evaluate
from anchoreval.schema import Output, Request
from anchoreval.suites import settings

LOADING = {"--device", "--dtype", "--kernel", "--offline", "--trust-remote-code"}
PROMPTS = {
    "--data-dir", "--depth-spacing", "--depths", "--haystack", "--needles", "--no-context", "--prompting", "--repeats",
    "--seed", "--text", "--windows", "--wordlists",
}  # fmt: skip
RUN = LOADING | PROMPTS | {
    "--anchor", "--arms", "--backend", "--backend-args", "--base-url", "--batch-tokens", "--chunk-tokens",
    "--document-tokens", "--lengths", "--limit", "--max-length", "--model", "--output", "--placebo", "--ray",
    "--realisation", "--rehash", "--same-environment", "--tasks", "--template", "--template-args", "--tokenizer",
    "--until", "--workers",
}  # fmt: skip
#: Command, or a kind of one -> its flags and arguments, besides --config and --quiet.
FLAGS = {
    "run": RUN,
    "plan": RUN | {"--exact", "--gpus"},
    "samples": PROMPTS | {
        "--lengths", "--limit", "--offline", "--output", "--tasks", "--template", "--template-args", "--tokenizer"
    },
    "tasks": set(),
    "models": set(),
    "show": PROMPTS | {"--offline", "--template", "--template-args", "--tokenizer", "sample"},
    "score": {"--tasks", "runs"},
    "board": {"--average-checkpoints", "--definition", "--fresh", "--output", "--tasks", "runs"},
    "probe": LOADING | {
        "--anchor", "--curve-length", "--data-dir", "--haystack", "--lengths", "--levels", "--max-length", "--model",
        "--no-copy", "--output", "--queries", "--random-init", "--seed", "--shift", "--text", "--texts",
    },
    "nll": LOADING | {
        "--anchor", "--arms", "--buckets", "--chunk-tokens", "--lengths", "--limit", "--max-length", "--model",
        "--output", "--text",
    },
    "doctor": LOADING | {"--anchor", "--json", "--max-length", "--model"},
    "bench prefill": {"--chunk-tokens", "--device", "--documents", "--lengths", "--output", "--shape"},
    "bench engines": {
        "--device", "--jobs", "--lengths", "--new-tokens", "--output", "--pairs", "--shape", "--together"
    },
    "bench memory": {"--length"},
    "bench gpu": {"--device", "--documents", "--lengths", "--output", "--repeats"},
    "bench train-attention": {
        "--data", "--device", "--lengths", "--mix", "--no-layer", "--output", "--rate", "--repeats", "--shapes",
        "--slices", "--windows",
    },
    "bench anchor": set(),
    "compare": {"--baseline", "--margin", "--output", "runs"},
    "view": {"--data-dir", "--output", "--prompt-megabytes", "--serve", "--tasks", "--text", "--tokenizer", "runs"},
    "export": {"--format", "--output", "runs"},
    "verify": {"--data-dir", "--tasks", "--text", "--tokenizer", "runs"},
    "longbench": {"--deviation", "runs"},
    "general": {"--margin", "runs"},
    "lm-eval": {"--tasks", "action", "arguments"},
    "data fetch": {"--data-dir", "suite"},
    "data check": {"--data-dir"},
    "data pack": {"--anchor-token", "--data", "--output", "--text-key", "--tokenizer", "--upsample"},
    "train": {
        "--batch-tokens", "--data", "--deterministic", "--document-start", "--length", "--lr", "--model", "--output",
        "--recipe", "--report-to", "--rope", "--rope-theta", "--rope-type", "--save-every", "--seed", "--seeds",
        "--steps", "--variant",
    },
}  # fmt: skip
#: Names of version 0.1, which work until 0.3.
OLD = {"run": {"--rope"}, "plan": {"--rope"}, "nll": {"--rope"}, "data pack": {"--anchor"}}
#: Flags with another default in one command, or of another thing there.
OF_THEIR_OWN = {
    ("nll", "--output"): "a folder of tables", ("probe", "--output"): "a folder of a page",
    ("probe", "--lengths"): "a sweep",
    ("bench prefill", "--lengths"): "of a GPU", ("bench gpu", "--lengths"): "of a GPU",
    ("bench prefill", "--device"): "a GPU", ("bench gpu", "--device"): "a GPU",
    ("bench prefill", "--chunk-tokens"): "that of the committed figures",
    ("bench gpu", "--documents"): "several", ("bench gpu", "--repeats"): "timed runs, no samples",
    ("bench train-attention", "--device"): "a GPU", ("bench train-attention", "--repeats"): "timed runs, no samples",
    ("bench train-attention", "--windows"): "of training, none of records",
    ("train", "--seed"): "of the order of documents", ("bench memory", "--length"): "of one prompt",
    ("bench engines", "--lengths"): "of each prompt", ("bench engines", "--device"): "CPU seconds",
    ("bench engines", "--shape"): "besides the embedded model",
}  # fmt: skip
FAKE = ["--model", "anchor-tiny", "--backend", "fake", "--lengths", "512", "--limit", "3"]


def leaves() -> dict[str, argparse.ArgumentParser]:
    """Command, or a kind of one -> the parser that reads its flags."""
    found: dict[str, argparse.ArgumentParser] = {}
    for name, sub in kinds_of(parser()).items():
        found |= {f"{name} {kind}": below for kind, below in kinds_of(sub).items()} or {name: sub}
    return found


def declared(sub: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    """Flag or argument -> its action, without those that every command has and those that have other names today."""
    listed = (action for action in sub._actions if action.help != argparse.SUPPRESS)
    flags = {(action.option_strings or [action.dest])[-1]: action for action in listed}
    return {flag: action for flag, action in flags.items() if flag not in ("--help", "--config", "--quiet")}


def test_the_set_of_flags_is_frozen() -> None:
    assert {name: set(declared(sub)) for name, sub in leaves().items()} == FLAGS
    hidden = {
        name: {flag for action in sub._actions if action.help == argparse.SUPPRESS for flag in action.option_strings}
        for name, sub in leaves().items()
    }
    assert {name: flags for name, flags in hidden.items() if flags} == OLD


def test_an_option_has_one_default_and_one_kind_in_every_command() -> None:
    by_flag: dict[str, dict[str, list[str]]] = {}
    for name, sub in leaves().items():
        for flag, action in declared(sub).items():
            if action.option_strings and (name, flag) not in OF_THEIR_OWN and not action.required:
                facts = (action.default, action.choices, action.dest)
                by_flag.setdefault(flag, {}).setdefault(repr(facts), []).append(name)
    apart = {flag: facts for flag, facts in by_flag.items() if len(facts) > 1}
    assert set(apart) == {"--output"}, apart  # a folder of records, or of what the command is asked to write
    assert set(apart["--output"]) == {repr((Path("runs"), None, "output")), repr((None, None, "output"))}


def test_the_keywords_of_evaluate_are_the_flags_of_run_with_the_same_defaults() -> None:
    keywords = inspect.signature(evaluate).parameters
    flags = {action.dest: action for action in declared(leaves()["run"]).values()}
    assert set(keywords) - {"watch", "tell", "settings"} == set(flags) - set(settings())
    for name in keywords.keys() & flags.keys() - {"model", "tasks"}:
        default = keywords[name].default
        wanted = flags[name].default
        assert (str(default), type(default)) == (str(wanted), type(wanted)) or name in (
            "output",
            "template_args",
            "backend_args",
        )


def test_keywords_of_before_are_taken_with_a_warning(tmp_path: Path) -> None:
    asked = {"lengths": [512], "limit": 1, "backend": "fake", "output": tmp_path}
    with pytest.warns(DeprecationWarning, match="rope, options, context, settings of evaluate"):
        old = evaluate("anchor-tiny", "ruler/vt", rope="bf16,fp32", options={}, context=True, settings=None, **asked)
    again = evaluate("anchor-tiny", "ruler/vt", arms="bf16,fp32", **asked)
    assert again.path == old.path and old.header["options"]["arms"] == "bf16,fp32"


def test_help_of_every_command_imports_nothing_heavy() -> None:
    code = (
        "import sys, anchoreval.cli as cli\n"
        "heavy = {'torch', 'transformers', 'numpy', 'pydantic', 'yaml', 'scipy', 'lm_eval', 'huggingface_hub'}\n"
        "for words in map(str.split, sys.argv[1:]):\n"
        "    try: cli.main([*words, '--help'])\n    except SystemExit: pass\n"
        "    assert not heavy & set(sys.modules), (words, heavy & set(sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, "", *FLAGS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("usage:") == len(FLAGS) + 1


def test_the_help_of_run_begins_with_the_twelve_common_flags() -> None:
    first = cli("run", "--help").stdout.split("options:")[1].split("\n\n")[0]
    flags = re.findall(r"^  (?:-\w, )?(--[a-z-]+)", first, re.MULTILINE)
    assert flags == [
        "--help", "--model", "--tasks", "--lengths", "--arms", "--placebo", "--limit", "--template", "--haystack",
        "--data-dir", "--backend", "--output", "--config", "--quiet",
    ]  # fmt: skip


def test_the_help_of_train_names_every_variant() -> None:
    from anchoreval.training.variants import VARIANTS

    listed = re.sub(r"\s+", "", cli("train", "--help").stdout.split("--variant")[-1].split("--recipe")[0])
    assert set(listed.removeprefix("NAME,NAME").split(",")) == set(VARIANTS)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--model_args", "pretrained=x"], "--model_args is lm-eval's; here the checkpoint is --model PATH"),
        (["--apply_chat_template"], "here --template chat"),
        (["--batch-size", "8"], "here --batch-tokens N"),
        (["--max_length", "8k"], "did you mean --max-length?"),
        (["--limt", "3"], "did you mean --limit?"),
    ],
)
def test_a_flag_that_is_not_known_is_one_line_with_the_one_that_is(words: list[str], says: str) -> None:
    done = cli("run", *FAKE, "--tasks", "ruler/vt", *words)
    assert done.returncode == 2 and says in done.stderr and len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("anchoreval run: unrecognized arguments: ")


def test_lists_may_be_separated_by_blanks_and_arms_named_as_dtypes_are() -> None:
    options = parsed(["run", *FAKE, "--tasks", "ruler/vt", "ruler/qa_1", "--arms", "BF16", "float32", "--seed", "1"])
    assert options.tasks == "ruler/vt ruler/qa_1" and options.lengths == [512]
    assert [arm.name for arm in parse_arms(options.arms)] == ["bf16", "fp32"]
    spelled = "bfloat16,Anchor/Float32+shift:16,rope:Table=BFLOAT16"
    assert [arm.name for arm in parse_arms(spelled)] == ["bf16", "anchor/fp32+shift:16", "rope:table=bf16"]


def test_a_name_of_before_works_and_says_what_it_is_called_now(tmp_path: Path) -> None:
    done = cli("run", *FAKE, "--tasks", "ruler/vt", "--rope", "bf16", "--output", str(tmp_path))
    assert done.returncode == 0 and "--rope is called --arms now; --rope goes with version 0.3" in done.stderr
    assert "--rope" not in cli("run", "--help").stdout


def test_run_prints_the_table_alone_on_stdout_and_writes_both_boards(tmp_path: Path) -> None:
    done = process(
        "run", *FAKE, "--tasks", "ruler/niah_single_1 ruler/vt", "--rope", "bf16,fp32", "--output", str(tmp_path)
    )
    assert done.returncode == 0, done.stderr
    assert "niah_single_1" in done.stdout and "100.0" in done.stdout and "fp32 minus bf16" in done.stdout
    (board,) = tmp_path.glob("anchor-tiny/*/board.html")
    assert str(tmp_path) not in done.stdout and str(board) in done.stderr
    assert "<html" in board.read_text() and "ruler/vt" in board.with_suffix(".csv").read_text()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["run", *FAKE, "--tasks", "ruler/niah_sinle_1"], "ruler/niah_single_1"),
        (["run", *FAKE, "--tasks", "ruler", "--rope", "fp31"], "fp32"),
        (["run", "--model", "anchor-tinny", "--tasks", "ruler"], "anchor-tiny"),
        (["run", "--model", "anchor-tiny", "--tasks", "ruler/vt", "--lengths", "64k"], "8192"),
        (["run", "--model", "anchor-tiny", "--tasks", "ruler/vt", "--lengths", "64"], "smallest"),
        (["run", "--model", "anchor-tiny", "--tasks", "ruler/vt", "--lengths", "4kb"], "4096 or 4k"),
        (["run", "--model", "anchor-tiny", "--tasks", "ruler/vt", "--limit", "0"], "from 1 upwards"),
        (["run", "--model", "anchor-tiny", "--tasks", "ruler/vt", "--limit", "9" * 30], "of 9 digits at most"),
        (["run", "--model", "anchor-tiny", "--tasks", "ruler/vt", "--lengths", "9" * 30], "4096 or 4k"),
        (["run", "--model", "anchor-tiny", "--tasks", "ruler/vt", "--seed", "9" * 30], "of 18 digits at most"),
        (
            ["run", "--model", "anchor-tiny", "--tasks", "ruler/vt", "--lengths", "512", "--seed", "-1"],
            "name another --seed",
        ),
        (["show", "ruler/vt@512", "--tokenizer", "anchor-tiny"], "ruler/qa_1@4096#3"),
        (["show", f"ruler/vt@512#{'9' * 5000}", "--tokenizer", "anchor-tiny"], "ruler/qa_1@4096#3"),
        (["score", "/nowhere"], "no run here"),
        (
            ["run", *FAKE, "--tasks", "ruler/niah_single_2", "--haystack", "published", "--data-dir", "/nowhere"],
            "PaulGrahamEssays.json",
        ),
    ],
)
def test_bad_input_is_one_line_with_the_fix_and_exit_code_2(tmp_path: Path, arguments: list[str], says: str) -> None:
    done = cli(*arguments, *(["--output", str(tmp_path / "out")] if arguments[0] == "run" else []))
    assert done.returncode == 2
    assert says in done.stderr and "Traceback" not in done.stderr
    assert says in done.stderr.strip().splitlines()[-1]
    assert not done.stdout and not (tmp_path / "out").exists()


@pytest.mark.parametrize("place", ["file", "file/below", "x" * 300, "link", "proc"])
@pytest.mark.parametrize("command", ["run", "nll", "probe", "board"])
def test_an_output_that_cannot_be_written_is_said_before_anything_is_read(
    command: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    output = "/proc/self/anchoreval" if place == "proc" else str(tmp_path / place)
    monkeypatch.setattr(f"anchoreval.cli.{command}.main", lambda _: pytest.fail("it began"))
    asked = {
        "run": [*FAKE, "--tasks", "ruler/vt"], "nll": ["--model", "m", "--text", "t", "--lengths", "64"],
        "probe": ["--model", "m"], "board": ["r"],
    }[command]  # fmt: skip
    done = cli(command, *asked, "--output", output)
    assert done.returncode == 2 and "cannot write" in done.stderr and "--output" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_call_from_python_tries_its_output_as_well(tmp_path: Path) -> None:
    (tmp_path / "anchor-tiny").write_text("")
    with pytest.raises(RunError, match=r"cannot write .*anchor-tiny"):
        evaluate("anchor-tiny", "ruler/vt", lengths=[512], limit=1, backend="fake", output=tmp_path)


def test_trying_an_output_leaves_nothing_behind(tmp_path: Path) -> None:
    require_writable(tmp_path / "a" / "b")
    assert not list(tmp_path.iterdir())


def failing(error: BaseException, *, while_running: str = "") -> Callable[[argparse.Namespace], int]:
    def command(_: argparse.Namespace) -> int:
        if isinstance(error, AnchorEvalError):
            error.while_running, error.goes_on = while_running, "the same command goes on where it was"
        raise error

    return command


def with_cause(cause: BaseException) -> RunError:
    error = RunError("cannot write x")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "while_running", "code", "says"),
    [
        (ModelError("no such model"), "", 2, "anchoreval: no such model"),
        (ModelError("gone"), "after 2 of 4 records", 1, "failed after 2 of 4 records: gone; the same command goes on"),
        (RunError("mend it, then the same command"), "after 2 of 4 records", 1, "mend it, then the same command"),
        (with_cause(OSError(errno.ENOSPC, "No space left on device")), "", 1, "cannot write x"),
        (with_cause(OSError(errno.EACCES, "Permission denied")), "", 2, "cannot write x"),
        (OSError(errno.ENOSPC, "No space left on device", "f"), "", 1, "No space left on device"),
        (MemoryError(), "", 1, "there is not enough memory"),
        (KeyboardInterrupt(), "", 130, "stopped; the same command goes on where it was"),
    ],
)
def test_the_exit_code_says_when_it_failed(
    error: BaseException, while_running: str, code: int, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("anchoreval.cli.run.main", failing(error, while_running=while_running))
    done = cli("run", *FAKE, "--tasks", "ruler/vt")
    assert done.returncode == code and says in done.stderr and len(done.stderr.splitlines()) == 1


def test_arms_are_named_in_one_list_alone() -> None:
    done = cli("run", *FAKE, "--tasks", "ruler/vt", "--rope", "bf16", "--arms", "fp32")
    assert done.returncode == 2 and "--rope and --arms: one list names all arms" in done.stderr
    assert parsed(["run", *FAKE, "--tasks", "t", "--arms", "bf16,fp32"]).arms == "bf16,fp32"


def test_a_run_with_samples_that_failed_ends_with_exit_code_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = FakeBackend.answer

    def answer(self: FakeBackend, requests: Sequence[Request]) -> Iterator[Output]:
        first, *others = whole(self, requests)
        yield dataclasses.replace(first, finish="error", text="", why="HTTP 500: boom", lost="failed")
        yield from others

    monkeypatch.setattr(FakeBackend, "answer", answer)
    done = cli("run", *FAKE, "--tasks", "ruler/vt", "--output", str(tmp_path))
    said = "anchoreval: 1 of 3 records failed, the first: HTTP 500: boom: the same command asks them again"
    assert (done.returncode, done.stderr.splitlines()[-1]) == (1, said)
    monkeypatch.setattr(FakeBackend, "answer", whole)
    assert cli("run", *FAKE, "--tasks", "ruler/vt", "--output", str(tmp_path)).returncode == 0


def test_samples_writes_one_json_line_each(tmp_path: Path) -> None:
    path = tmp_path / "made" / "samples.jsonl"
    done = cli(
        "samples",
        "--tasks",
        "ruler/niah_single_1,ruler/qa_1",
        "--lengths",
        "512,1k",
        "--tokenizer",
        "anchor-tiny",
        "--limit",
        "2",
        "--output",
        str(path),
    )
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    assert [row["id"] for row in rows][:2] == ["ruler/niah_single_1@512#0", "ruler/niah_single_1@512#1"]
    assert len(rows) == 8 and all(
        row.keys() == {"id", "task", "length", "prompt", "references", "facts"} for row in rows
    )
    assert not list(path.parent.glob("*.part"))


def test_show_prints_the_prompt_that_samples_writes(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    assert (
        cli(
            "samples",
            "--tasks",
            "ruler/vt",
            "--lengths",
            "512",
            "--tokenizer",
            "anchor-tiny",
            "--limit",
            "3",
            "--output",
            str(path),
        ).returncode
        == 0
    )
    row = json.loads(path.read_text("utf-8").splitlines()[2])
    shown = cli("show", "ruler/vt@512#2", "--tokenizer", "anchor-tiny")
    assert shown.stdout == row["prompt"] + "\n"
    assert json.dumps(row["references"]) in shown.stderr


def test_score_reports_a_changed_record_with_exit_code_1(tmp_path: Path) -> None:
    assert cli("run", *FAKE, "--tasks", "ruler/vt", "--output", str(tmp_path)).returncode == 0
    assert cli("score", str(tmp_path)).returncode == 0
    (records,) = tmp_path.glob("*/*/records.jsonl")
    records.write_text(records.read_text().replace('"score": 1.0', '"score": 0.5', 1))
    done = cli("score", str(tmp_path))
    assert done.returncode == 1 and "on disk 0.5, scored again 1.0" in done.stderr


def test_board_of_two_runs_names_both(tmp_path: Path) -> None:
    for seed in ("42", "43"):
        assert (
            cli("run", *FAKE, "--tasks", "ruler/vt", "--seed", seed, "--output", str(tmp_path / seed)).returncode == 0
        )
    done = cli("board", str(tmp_path / "42"), str(tmp_path / "43"), "--output", str(tmp_path / "both"))
    assert done.returncode == 0, done.stderr
    names = {path.name for path in tmp_path.glob("4*/anchor-tiny/*")}
    text = (tmp_path / "both" / "board.csv").read_text()
    assert len(names) == 2 and all(name in text for name in names)


def test_lists_and_version_are_printed() -> None:
    assert "ruler/niah_multikey_3" in cli("tasks").stdout and "ruler-11-wang" in cli("tasks").stdout
    assert "anchor-tiny" in cli("models").stdout
    assert cli("--version").stdout.startswith("anchoreval 0.")


def test_anchor_masked_inference_is_called_an_extension_wherever_it_is_shown(tmp_path: Path) -> None:
    for arms, said in (("fp32,anchor/fp32", True), ("fp32,bf16+shift:16", False)):
        folder = tmp_path / str(said)
        done = cli("run", *FAKE, "--tasks", "ruler/qa_1", "--arms", arms, "--output", str(folder))
        assert done.returncode == 0, done.stderr
        assert ("extension" in done.stdout) is said
        assert ("project&#39;s extension" in next(folder.glob("*/*/board.html")).read_text()) is said


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--backend", "openai"], "--base-url"),
        (["--base-url", "http://127.0.0.1:9/v1"], "--backend openai"),
        (["--backend", "openai", "--base-url", "http://127.0.0.1:9/v1"], "--tokenizer"),
        (["--tokenizer", "anchor-tiny"], "--backend openai"),
        (["--backend", "vllm", "--realisation", "flex"], "--realisation is of backend hf"),
        (["--backend-args", "row=1"], "did you mean rows"),
        (["--backend-args", "rows"], "option=value"),
        (["--backend-args", "rows=1,rows=2"], "option=value"),
        (["--backend", "vllm", "--until", "1pt@95%", "--rope", "bf16,fp32"], "--until"),
    ],
)
def test_flags_that_do_not_go_together_are_one_line_with_the_fix(flags: list[str], says: str, tmp_path: Path) -> None:
    asked = ["--model", "anchor-tiny", "--tasks", "ruler/vt", "--lengths", "512", "--output", str(tmp_path / "out")]
    done = cli("run", *asked, *flags)
    assert done.returncode == 2 and says in done.stderr and not done.stdout
    assert "Traceback" not in done.stderr and not (tmp_path / "out").exists()


def test_options_of_a_backend_are_read_as_what_they_are() -> None:
    text = "tensor_parallel_size=4,gpu_memory_utilization=0.85, enforce_eager=true,mode=half,"
    read = {"tensor_parallel_size": 4, "gpu_memory_utilization": 0.85, "enforce_eager": True, "mode": "half"}
    assert backend_args(text) == read
