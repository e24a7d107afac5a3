"""The command line that asks for a run again, read from its header."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from command_line import cli

from anchoreval.cli.parser import parsed
from anchoreval.records.command import command_of, words_of
from anchoreval.records.header import Header
from anchoreval.records.run import load_run

REPOSITORY = Path(__file__).parents[2]


def test_options_are_written_as_the_command_line_reads_them() -> None:
    asked = {
        "model": "a model", "tasks": "ruler", "lengths": [512, 1024], "arms": "bf16,fp32", "placebo": True,
        "rehash": False, "limit": None, "seed": -7, "backend_args": {"rows": 8, "unused_weights": "allow"},
        "template_args": {"enable_thinking": False, "effort": "high"},
    }  # fmt: skip
    options = parsed(["run", *words_of(asked)])
    assert {name: getattr(options, name) for name in asked} == asked


def test_the_line_of_a_run_asks_for_the_same_run(tmp_path: Path) -> None:
    asked = ["--model", "anchor-tiny", "--tasks", "niah/single", "ruler/vt", "--lengths", "512", "--depths", "2"]
    asked += ["--arms", "bf16", "fp32", "--placebo", "--backend", "fake", "--haystack", "generated", "--seed", "3"]
    assert cli("run", *asked, "--limit", "2", "--output", str(tmp_path)).returncode == 0
    (path,) = (tmp_path / "anchor-tiny").iterdir()
    line = command_of(load_run(path).header)
    assert line.startswith("anchoreval run --model anchor-tiny --tasks 'niah/single ruler/vt' --lengths 512 --arms")
    again = cli(*shlex.split(line)[1:], "--output", str(tmp_path))
    assert again.returncode == 0 and [path] == list((tmp_path / "anchor-tiny").iterdir())
    assert cli("run", *asked, "--limit", "3", "--output", str(tmp_path)).returncode == 0
    assert "--limit 3" in command_of(load_run(path).header)


def test_a_run_of_before_is_asked_for_by_what_its_header_tells() -> None:
    path = REPOSITORY / "leaderboards" / "results" / "anchor-tiny" / "8e482709f10cc4ba" / "header.json"
    header = Header(json.loads(path.read_text("utf-8")))
    options = parsed(shlex.split(command_of(header))[1:])
    assert options.tasks.split(",") == header.tasks and options.lengths == [2048]
    assert options.arms.split(",") == header.arms and options.limit == 20
    assert (options.haystack, options.backend, options.dtype) == ("generated", "hf", "float32")
