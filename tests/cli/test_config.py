"""A file of `--config`: its options are those of the flags, which win over it."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
from command_line import cli
from test_cli import FAKE

from anchoreval.cli.parser import parsed


def configured(tmp_path: Path, text: str, *words: str) -> argparse.Namespace:
    path = tmp_path / "asked.yaml"
    path.write_text(text)
    return parsed(["run", *words[:1], "--config", str(path), *words[1:]])


def test_a_file_gives_any_option_and_flags_win_over_it(tmp_path: Path) -> None:
    text = (
        "model: anchor-tiny\ntasks: [ruler/vt, ruler/qa_1]\nlengths: [512, 1k]\narms: bf16,fp32\nlimit: 3\n"
        "placebo: true\nrehash: false\nmax-length: 4k\nseed: -7\n"
        "template_args: {enable_thinking: false, mood: plain}\nbackend_args: {rows: 8, unused_weights: allow}\n"
    )
    options = configured(tmp_path, text)
    assert (options.model, options.tasks, options.lengths) == ("anchor-tiny", "ruler/vt,ruler/qa_1", [512, 1024])
    assert (options.arms, options.limit, options.placebo, options.rehash) == ("bf16,fp32", 3, True, False)
    assert (options.max_length, options.seed, options.backend) == (4096, -7, "hf")
    assert options.template_args == {"enable_thinking": False, "mood": "plain"}
    assert options.backend_args == {"rows": 8, "unused_weights": "allow"}
    options = configured(tmp_path, text, "--arms=native", "--limit", "5", "--template-args", "mood=bright")
    assert (options.arms, options.limit) == ("native", 5)
    assert options.template_args == {"enable_thinking": False, "mood": "bright"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("limt: 3", "asked.yaml: 'limt': did you mean limit or"),
        ("limit: many", "asked.yaml: limit: 'many' is not a whole number"),
        ("limit: true", "asked.yaml: limit: True: expected a value"),
        ("placebo: 1", "asked.yaml: placebo: 1: expected true or false"),
        ("backend: hff", "asked.yaml: backend: 'hff': one of fake, hf, openai, vllm"),
        ("dtype:", "asked.yaml: dtype: has no value"),
        ("seed: -x", "asked.yaml: seed: '-x' is no whole number"),
        ("rope: bf16", "asked.yaml: 'rope'"),
        ("limit: 3\nlimit: 4", "asked.yaml:2: key 'limit' is repeated"),
        ("- 3", "each as NAME: VALUE"),
    ],
)
def test_a_file_that_is_wrong_is_one_line_that_names_the_key(text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "asked.yaml").write_text(text)
    done = cli("run", *FAKE, "--tasks", "ruler/vt", "--config", str(tmp_path / "asked.yaml"))
    assert done.returncode == 2 and says in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_run_of_a_file_says_what_was_asked_and_is_the_run_of_the_flags(tmp_path: Path) -> None:
    (tmp_path / "asked.yaml").write_text("tasks: ruler/vt\narms: bf16,fp32\n")
    file = cli("run", *FAKE, "--config", str(tmp_path / "asked.yaml"), "--output", str(tmp_path / "runs"))
    assert file.returncode == 0, file.stderr
    (path,) = (tmp_path / "runs" / "anchor-tiny").iterdir()
    asked = json.loads((path / "header.json").read_text())["options"]
    assert asked == {
        "model": "anchor-tiny", "tasks": "ruler/vt", "lengths": [512], "arms": "bf16,fp32", "limit": 3,
        "backend": "fake",
    }  # fmt: skip
    again = cli("run", *FAKE, "--tasks", "ruler/vt", "--arms", "bf16,fp32", "--output", str(tmp_path / "runs"))
    assert again.returncode == 0 and [path] == list((tmp_path / "runs" / "anchor-tiny").iterdir())
