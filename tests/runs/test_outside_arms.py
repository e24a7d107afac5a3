"""A run under an arm from outside, from its spelling to its verdict; and what only reads it, which imports nothing."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from anchoreval import cli, evaluate, load_run
from anchoreval.errors import UnsupportedArm

EXAMPLES = Path(__file__).parents[2] / "examples"
ARM = "fp32+x:evict_of_test:window:32"
ONE: dict[str, Any] = {"lengths": [512], "limit": 2, "haystack": "generated"}
TRAP = "raise AssertionError('a header or record had this imported')\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a run under the example, whose module then becomes one that must not be imported."""
    place = tmp_path_factory.mktemp("outside")
    source = place / "evict_of_test.py"
    shutil.copy(EXAMPLES / "evict.py", source)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(place)
        evaluate("anchor-tiny", "ruler/niah_single_1", arms=f"fp32,{ARM}", placebo=True, output=place / "runs", **ONE)
        del sys.modules["evict_of_test"]
    source.write_text(TRAP, "utf-8")
    return place


@pytest.fixture
def run(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the run, with the trap on the path."""
    monkeypatch.syspath_prepend(folder)
    shutil.copytree(folder / "runs", tmp_path / "runs")
    [header] = (tmp_path / "runs").rglob("header.json")
    return header.parent


def test_a_run_has_its_arm_with_a_hash_and_a_paired_verdict(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = load_run(run)
    asked = {arm["name"]: arm["asked"].get("outside") for arm in found.header["arms"]}
    assert list(asked) == ["fp32", ARM, "fp32~placebo"] and asked["fp32"] is None
    assert len(asked[ARM][0]["sha256"]) == 64 and found.header["arms"][1]["applied"]["outside"]
    assert {record.outcome for record in found.records} <= {"answered", "cut"}
    assert cli.main(["compare", str(run)]) == 0
    said = capsys.readouterr().out
    assert f"{ARM} minus fp32" in said and "floor 0 here" in said


@pytest.mark.parametrize(
    "command",
    [
        ["verify", "RUN"],
        ["compare", "RUN"],
        ["board", "RUN", "--output", "OUT"],
        ["view", "RUN", "--output", "OUT"],
        ["score", "RUN"],
        ["export", "RUN", "--format", "csv", "--output", "OUT"],
        ["export", "RUN", "--format", "lm-eval", "--output", "OUT"],
    ],
    ids=lambda command: " ".join(command[:1] + command[2:4]),
)
def test_what_reads_a_run_imports_nothing_that_its_header_names(
    command: list[str], run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = {"RUN": str(run), "OUT": str(tmp_path / "out")}
    assert cli.main([words.get(word, word) for word in command]) == 0, capsys.readouterr().err
    assert "evict_of_test" not in sys.modules


def test_a_run_beside_one_under_an_arm_from_outside_imports_nothing_of_it(run: Path) -> None:
    evaluate("anchor-tiny", "ruler/niah_single_1", arms="fp32", backend="fake", output=run.parents[1], **ONE)
    assert "evict_of_test" not in sys.modules


def test_a_changed_hash_in_a_header_is_a_difference(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    header = json.loads((run / "header.json").read_text("utf-8"))
    header["arms"][1]["asked"]["outside"][0]["sha256"] = "0" * 64
    (run / "header.json").write_text(json.dumps(header), "utf-8")
    assert cli.main(["verify", str(run)]) != 0
    assert "not those of its identity" in "".join(capsys.readouterr())


def test_the_same_command_goes_on_with_the_run_where_the_source_is_the_same(folder: Path, run: Path) -> None:
    output = run.parents[1]
    shutil.copy(EXAMPLES / "evict.py", folder / "evict_of_test.py")
    try:
        again = evaluate("anchor-tiny", "ruler/niah_single_1", arms=f"fp32,{ARM}", placebo=True, output=output, **ONE)
        assert again.path == run and "evict_of_test" in sys.modules
    finally:
        sys.modules.pop("evict_of_test", None)
        (folder / "evict_of_test.py").write_text(TRAP, "utf-8")


@pytest.mark.parametrize("backend", ["fake", "vllm"])
def test_another_backend_refuses_it_before_anything_is_imported(backend: Any, run: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedArm, match="only hf can"):
        evaluate("anchor-tiny", "ruler/vt", arms=ARM, backend=backend, output=tmp_path / "other", **ONE)
    assert "evict_of_test" not in sys.modules


def test_a_module_that_raises_is_one_line_and_exit_2(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["run", "--model", "anchor-tiny", "--tasks", "ruler/vt", "--lengths", "512", "--limit", "1"]
    assert cli.main([*asked, "--arms", ARM, "--haystack", "generated", "--output", str(tmp_path / "o")]) == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    assert "importing evict_of_test failed: AssertionError: a header or record had this imported" in line
    assert not (tmp_path / "o").exists()
