"""Every value of every flag of every command, given once on a command line that goes all the way through.

The parser itself is asked which flags there are, so a new flag fails here until a value of it is tried. Commands run in
this process: what a process of its own adds is tested in cli/test_cli.py.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from anchoreval.backends import BACKENDS
from anchoreval.cli import console
from anchoreval.cli.parser import main, parser

REPOSITORY = Path(__file__).parents[2]
TASK = ["--tasks", "recall/passkey", "--lengths", "256"]
PROMPTS = ["--tasks", "ruler/vt", "--lengths", "512", "--tokenizer", "anchor-tiny", "--limit", "1"]
NIAH = ["--tasks", "niah/single", "--lengths", "512", "--haystack", "generated"]
#: Command -> what each of its lines holds beside the flag that is tried. OUT is a fresh folder, RUN a finished run.
LINES: dict[str, list[str]] = {
    "run": ["--model", "anchor-tiny", *TASK, "--limit", "1", "--output", "OUT"],
    "plan": ["--model", "anchor-tiny", *TASK, "--limit", "1", "--gpus", "8xH200"],
    "samples": [*PROMPTS, "--output", "OUT/prompts.jsonl"],
    "show": ["niah/multi@512#0", "--tokenizer", "anchor-tiny", "--haystack", "generated"],
    "tasks": [], "models": [],
    "score": ["RUN"], "verify": ["RUN"], "board": ["RUN", "--output", "OUT"], "view": ["RUN", "--output", "OUT"],
    "compare": ["RUN"], "export": ["RUN", "--output", "OUT", "--format", "csv"], "longbench": ["RUN"],
    "general": ["RUN"],
    "probe": [
        "--model", "anchor-tiny", "--lengths", "64", "--levels", "fp32", "--haystack", "generated", "--output", "OUT"
    ],
    "nll": ["--model", "anchor-tiny", "--text", "TEXT", "--lengths", "128", "--limit", "1", "--output", "OUT"],
    "doctor": ["--model", "anchor-tiny"],
}  # fmt: skip
#: Commands that read runs: their --tasks names suites from outside.
READERS = ("score", "verify", "board", "view")
#: (command, flag), or a flag of every command that has it -> the values of a flag that takes any, each with more flags.
VALUES: dict[tuple[str, str] | str, list[list[str]]] = {
    "--model": [["anchor-tiny"], [str(REPOSITORY / "models" / "anchor-tiny")]],
    "--tasks": [["recall/passkey"], ["recall/p*"]],
    **{(command, "--tasks"): [[str(REPOSITORY / "examples" / "boxes" / "boxes.yaml")]] for command in READERS},
    "--lengths": [["512"], ["512,1k"], ["512..1k"]],
    ("run", "--lengths"): [["256"], ["256,512"], ["256..1k"]],
    ("plan", "--lengths"): [["256"], ["256,512"], ["256..1k"]],
    ("probe", "--lengths"): [["64"], ["64..128"]],
    ("nll", "--lengths"): [["128"], ["64,128"]],
    "--rope": [["bf16"]],
    "--arms": [
        ["native,fp32,bf16-table,bf16,bf16-angle,fp16,fp16-table"], ["fp32-qk,fp64"], ["rope:table=bf16,rotate=fp32"],
        ["fp32+shift:16,fp32+anchor-shift:16"], ["anchor/fp32,intra-doc/fp32+reset,anchor/fp32+anchor-reset"],
        ["bf16", "fp32", "fp32+shift:16"],
    ],
    ("nll", "--arms"): [["bf16,fp32,fp32+shift:16"]],
    "--config": [["FILE"]],
    "--levels": [["all"], ["fp32,bf16"]],
    "--kernel": [
        ["auto", "--rope", "fp32,fp64", "--dtype", "bfloat16"], ["fused", "--rope", "fp32,fp64", "--dtype", "bfloat16"],
        ["sdpa", "--rope", "fp32"], ["eager", "--rope", "fp32"],
    ],
    ("nll", "--kernel"): [["auto"], ["fused"], ["sdpa"], ["eager"]],
    ("doctor", "--kernel"): [["auto"], ["sdpa"], ["eager"]],
    ("probe", "--kernel"): [["auto"], ["sdpa"], ["eager"]],
    "--dtype": [[name] for name in ("auto", "bfloat16", "float16", "float32")],
    "--device": [["auto"], ["cpu"]],
    "--document-tokens": [["64", "--rope", "anchor/fp32"]],
    "--limit": [["1"]],
    "--until": [["50pt@95%", "--rope", "bf16,fp32"]],
    "--output": [["OUT"]],
    ("samples", "--output"): [["OUT/prompts.jsonl"]],
    ("compare", "--output"): [["OUT"]],
    "--data-dir": [["."]],
    "--seed": [["7"]],
    "--wordlists": [["3.0.1"], ["2.2.0"]],
    "--depths": [["2", *NIAH]], "--repeats": [["2", *NIAH, "--depths", "2"]],
    "--needles": [["2", "--tasks", "niah/multi", "--lengths", "512", "--haystack", "generated"]],
    ("show", "--depths"): [["2"]], ("show", "--repeats"): [["1"]], ("show", "--needles"): [["2"]],
    **{
        (name, "--template-args"): [["mood=plain", "--template", "chat", "--model", "CHAT"]] for name in ("run", "plan")
    },
    **{
        (name, "--template-args"): [["mood=plain", "--template", "chat", "--tokenizer", "CHAT"]]
        for name in ("samples", "show")
    },
    "--backend-args": [["rows=1"]],
    "--chunk-tokens": [["64"]], "--batch-tokens": [["512"]],
    "--max-length": [["4k"]],
    ("samples", "--tokenizer"): [["anchor-tiny"]], ("show", "--tokenizer"): [["anchor-tiny"]],
    ("verify", "--tokenizer"): [[str(REPOSITORY / "models" / "anchor-tiny")]],
    ("view", "--tokenizer"): [[str(REPOSITORY / "models" / "anchor-tiny")]],
    "--gpus": [["8xH200"], ["1xA100"]],
    "--baseline": [["fp32"]], "--margin": [["2"]],
    "--definition": [[str(REPOSITORY / "leaderboards" / "anchor-tiny.yaml")]],
    "--prompt-megabytes": [["1"]],
    "--shift": [["0,16"], ["0,8,16"]], "--curve-length": [["64"]],
    "--text": [["TEXT"]], "--texts": [["1"]], "--queries": [["8"]],
    "--buckets": [["2"]],
    "--format": [["csv"], ["lm-eval"], ["parquet"]],
}  # fmt: skip
#: Choices that need another line than `LINES` has. CHAT is a copy of anchor-tiny with a chat template.
NEEDS: dict[tuple[str, ...], list[str]] = {
    ("--realisation", "flex"): ["--rope", "anchor/fp32"],
    ("--depth-spacing", "linear"): [*NIAH, "--depths", "2"],
    ("--depth-spacing", "sigmoid"): [*NIAH, "--depths", "2"],
    **{("run", "--template", "chat"): ["--model", "CHAT"], ("plan", "--template", "chat"): ["--model", "CHAT"]},
    **{(name, "--template", "chat"): ["--tokenizer", "CHAT"] for name in ("samples", "show")},
    ("show", "--depth-spacing", "linear"): ["--depths", "2"],
    ("show", "--depth-spacing", "sigmoid"): ["--depths", "2"],
}
#: Flags of `run` that say which prompts are made, not what computes: tried without a model.
OF_PROMPTS = frozenset({
    "--tasks", "--lengths", "--limit", "--data-dir", "--haystack", "--wordlists", "--seed", "--depths", "--repeats",
    "--depth-spacing", "--needles", "--output", "--max-length", "--template", "--document-tokens", "--until",
    "--placebo", "--rope", "--arms",
})  # fmt: skip
#: Flags whose values go all the way through in the tests of another file, which is named.
ELSEWHERE: dict[str, str] = {
    "--tokenizer": "backends/test_openai_options.py", "--base-url": "backends/test_openai_options.py",
    "--ray": "runs/workers/test_fleet.py", "--workers": "runs/workers/test_fleet.py",
    "--no-context": "suites/longbench/test_longbench_runs.py", "--prompting": "reports/test_longbench_v2_report.py",
    "--serve": "reports/viewer/test_view_serve.py", "--windows": "suites/nll/test_nll.py",
    "--deviation": "suites/longbench/test_longbench_runs.py",
    **dict.fromkeys(
        (
            "--data", "--variant", "--recipe", "--length", "--rope-theta", "--rope-type", "--steps", "--lr",
            "--save-every", "--seeds", "--report-to", "--document-start", "--deterministic",
        ),
        "training/test_command.py",
    ),
    "kind": "cli/test_data_files.py", "action": "lm_eval_plugin/test_lm_eval_command.py",
    "arguments": "lm_eval_plugin/test_lm_eval_command.py",
}  # fmt: skip
#: Values that end with exit code 2 here and a line that says why.
REFUSED: dict[tuple[str, str], str] = {
    ("--backend", "openai"): "--base-url",
    ("--backend", "vllm"): "pip install 'anchoreval[vllm]'",
    ("--haystack", "published"): "PaulGrahamEssays.json",
}
NO_RUN_OF_THE_KIND = frozenset({"longbench", "general"})  # whose reports have nothing to say of the run at hand: 2


@cache
def flags() -> dict[str, list[argparse.Action]]:
    """Command -> its flags and positional arguments."""
    commands = next(each for each in parser()._actions if isinstance(each, argparse._SubParsersAction))
    return {name: [each for each in sub._actions if each.dest != "help"] for name, sub in commands.choices.items()}


def tried(command: str, flag: argparse.Action) -> list[list[str]] | None:
    """The words of every value of a flag, with what it needs beside it; None where no value is known."""
    name = (flag.option_strings or [flag.dest])[0]
    if (command, name) in VALUES or (name in VALUES and name not in ELSEWHERE):
        return [[name, *value] for value in VALUES.get((command, name), VALUES.get(name, []))]
    if not flag.option_strings or name in ELSEWHERE:
        return []
    if flag.choices is not None:
        needs = [NEEDS.get((command, name, str(value)), NEEDS.get((name, str(value)), [])) for value in flag.choices]
        return [[name, str(value), *more] for value, more in zip(flag.choices, needs, strict=True)]
    return [[name]] if flag.nargs == 0 else None


def each_line() -> Iterator[tuple[str, list[str]]]:
    for command, found in flags().items():
        if command in LINES:
            yield command, []
            yield from ((command, words) for flag in found for words in tried(command, flag) or [])


def test_every_flag_of_every_command_has_a_value_that_is_tried() -> None:
    untried = [
        f"{command} {flag.option_strings or flag.dest}"
        for command, found in flags().items()
        for flag in found
        if (command in LINES or (flag.option_strings or [flag.dest])[0] not in ELSEWHERE)
        and tried(command, flag) is None
    ]
    assert not untried


def test_the_files_that_try_the_other_flags_name_them() -> None:
    for name, place in ((name, place) for name, place in ELSEWHERE.items() if name.startswith("--")):
        text = (REPOSITORY / "tests" / place).read_text("utf-8")
        assert name.strip("-") in text or name.strip("-").replace("-", "_") in text, f"{place} lacks {name}"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two arms on the backend `fake`."""
    folder = tmp_path_factory.mktemp("finished")
    assert main(["run", *LINES["run"][:-1], str(folder), "--backend", "fake", "--rope", "bf16,fp32"]) == 0
    (header,) = folder.glob("*/*/header.json")
    return header.parent


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """anchor-tiny with a chat template."""
    folder = tmp_path_factory.mktemp("models") / "chat"
    shutil.copytree(REPOSITORY / "models" / "anchor-tiny", folder)
    template = "{{ bos_token }}{% for m in messages %}Note: {{ mood }} {{ m['content'] }}\n{% endfor %}Answer:"
    (folder / "chat_template.jinja").write_text(template)
    return folder


def name_of(value: str | list[str]) -> str:
    return value if isinstance(value, str) else " ".join(value) or "alone"


@pytest.mark.parametrize(("command", "words"), list(each_line()), ids=name_of)
def test_a_command_line_with_each_value_goes_through(
    command: str,
    words: list[str],
    finished: Path,
    chat: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(console, "EVERY_S", 0.05)
    text = tmp_path / "text.txt"
    (tmp_path / "file.yaml").write_text("quiet: true\n")
    text.write_text("The river runs past the old mill and the people walk beside it. " * 60)
    places = {
        "OUT": str(tmp_path / "out"),
        "RUN": str(finished),
        "TEXT": str(text),
        "FILE": str(tmp_path / "file.yaml"),
        "CHAT": str(chat),
    }
    fake = ["--backend", "fake"] if command == "run" and words[:1] and words[0] in OF_PROMPTS else []
    asked = [command, *LINES[command], *fake, *words]
    line = [places.get(word, word.replace("OUT/", f"{tmp_path}/out/")) for word in asked]
    code, said = main(line), capsys.readouterr()
    if refusal := REFUSED.get((words[0], words[1]) if len(words) > 1 else ("", "")):
        if code == 0:
            return  # the extra is installed, or the task reads no such text
        assert code == 2 and refusal in said.err
    elif command in NO_RUN_OF_THE_KIND:
        assert code in (0, 2)
    else:
        assert code == 0, said.err
    assert "Traceback" not in said.err


@pytest.mark.parametrize("name", BACKENDS)
def test_the_backend_that_is_asked_for_is_the_one_in_the_header(name: str, tmp_path: Path) -> None:
    if name not in ("hf", "fake"):
        pytest.skip(f"the header of backend {name} is read in tests/backends")
    assert main(["run", *LINES["run"][:-1], str(tmp_path), "--backend", name]) == 0
    (header,) = tmp_path.glob("*/*/header.json")
    assert json.loads(header.read_text())["backend"]["engine"] == name
