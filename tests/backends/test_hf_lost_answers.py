"""Answers that are lost, through the command line: a record where a sample is, one line where every one would be."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from checkpoints import save_model
from safetensors.torch import load_file, save_file
from test_hf_probe import BROKEN

from anchoreval.cards import find_model
from anchoreval.cli.parser import main
from anchoreval.records.run import load_run

ASKED = ["--tasks", "ruler/niah_single_1", "--lengths", "512", "--limit", "2", "--haystack", "generated"]


def test_a_run_whose_logits_are_not_finite_goes_on_and_asks_again_on_resume(tmp_path: Path) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(Path(find_model("anchor-tiny")[1].checkpoint), folder)
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.3.mlp.down_proj.weight"][0, 0] = torch.nan
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    for _ in range(2):
        main(["run", "--model", str(folder), *ASKED, "--dtype", "float32", "--output", str(tmp_path / "runs")])
        (run,) = [load_run(path.parent) for path in (tmp_path / "runs").glob("*/*/records.jsonl")]
        assert [(r.outcome, r.why, r.score) for r in run.records] == 2 * [
            ("not_finite", "the logits are not finite", None)
        ]
        assert all(r.reference_logprob is None for r in run.records)


def test_a_model_that_cannot_be_answered_is_one_line_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save_model(tmp_path / "model", BROKEN["whisper"][0])
    (folder / "tokenizer_config.json").write_text('{"bos_token": "<s>", "eos_token": "</s>"}', "utf-8")
    capsys.readouterr()
    asked = [
        "run",
        "--model",
        str(folder),
        *ASKED,
        "--lengths",
        "1024",
        "--max-length",
        "1024",
        "--output",
        str(tmp_path / "runs"),
    ]
    assert main(asked) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("anchoreval: model type 'whisper' cannot be answered by this backend: ")
