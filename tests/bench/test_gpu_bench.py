"""`bench gpu` end to end on the CPU at toy sizes; a measurement that fails is a row of the table."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from anchoreval.arms.patterns import mask
from anchoreval.bench import gpu
from anchoreval.cli.parser import main

TOY = ["bench", "gpu", "--device", "cpu", "--lengths", "256", "--documents", "4", "--repeats", "1"]
NAMES = ["full", "anchor rows", "anchor flex", "rope bf16", "rope fp32", "probe"]


@pytest.fixture(autouse=True)
def nothing_to_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between measurements all objects of the process are looked through, which takes seconds beside other tests."""
    monkeypatch.setattr(gpu, "gc", SimpleNamespace(collect=lambda: 0))


@pytest.mark.half
def test_every_figure_is_printed_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "deep" / "cpu.json"
    assert main([*TOY, "--output", str(path)]) == 0
    printed = capsys.readouterr()
    made = json.loads(path.read_text("utf-8"))
    assert [figure["name"] for figure in made["figures"]] == NAMES
    assert all(name in printed.out for name in NAMES) and str(path) in printed.err
    assert made["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert {"transformers", "triton", "python", "cuda"} <= made["versions"].keys()
    assert made["command"].startswith("anchoreval bench gpu --lengths 256") and str(tmp_path) not in made["command"]
    by_name = {figure["name"]: figure for figure in made["figures"]}
    for name in NAMES[:3]:
        # bf16: outputs below 4, half a unit of 2^-8 relative, and weights rounded to bf16 before the sum
        assert 0 < by_name[name]["error"] < 4 * 2**-7
        assert by_name[name]["ratio"] > 0 and by_name[name]["failed"] is None
    assert by_name["full"]["ratio"] == by_name["rope bf16"]["ratio"] == 1
    # random q and k: the measured shift difference of bf16 rotation, about 4e-3 for every key and length
    assert 2e-3 < by_name["probe"]["facts"]["logit_other"] < 8e-3


def test_rows_of_the_bench_are_the_anchor_pattern() -> None:
    bench = gpu.open_bench("cpu", 1)
    x, blocks = bench.inputs(90), gpu.prompt(90, 3)
    wide = gpu.Inputs(x.q.double(), x.k.double(), x.v.double())
    k, v = (t.repeat_interleave(4, 1) for t in (wide.k, wide.v))
    scores = wide.q @ k.transpose(-1, -2) * gpu.HEAD**-0.5
    want = scores.masked_fill(~torch.tensor(mask(blocks, "anchor", 90)), -torch.inf).softmax(-1) @ v
    assert (gpu.by_rows(wide, blocks) - want).abs().max() < 1e-12
    assert gpu._error(want, x, blocks, "anchor") < 1e-5 < 0.1 < gpu._error(want, x, blocks, "full")


def test_one_failing_measurement_is_named_and_the_others_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_triton(*_: object, **__: object) -> None:
        raise RuntimeError("Cannot find a working triton installation\nsecond line")

    monkeypatch.setattr(gpu, "attend", no_triton)
    monkeypatch.setattr(gpu, "compare", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("too large")))
    assert main([*TOY, "--output", str(tmp_path / "made.json")]) == 1
    printed = capsys.readouterr()
    assert "failed: RuntimeError: Cannot find a working triton installation" in printed.out
    assert "second line" not in printed.out and "OutOfMemoryError: too large" in printed.out
    assert "2 of 6 measurements failed" in printed.err
    made = json.loads((tmp_path / "made.json").read_text("utf-8"))["figures"]
    assert [figure["name"] for figure in made if figure["failed"]] == ["anchor flex", "probe"]
    assert all(figure["seconds"] is None for figure in made if figure["failed"])


def test_too_many_documents_and_no_device_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TOY[:-4], "--documents", "999", "--repeats", "1"]) == 1
    assert "too few for 999 documents" in capsys.readouterr().out
    if not torch.cuda.is_available():
        assert main(["bench", "gpu"]) == 2
        assert "use --device cpu" in capsys.readouterr().err
