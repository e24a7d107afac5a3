"""Runs shown together: a damaged one is named and costs no other run its place."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from anchoreval import evaluate
from anchoreval.cli.parser import main
from anchoreval.records.header import HEADER
from anchoreval.records.lines import RECORDS

FOLDER = "0123456789abcdef"
RUN = ["run", "--model", "anchor-tiny", "--backend", "fake", "--tasks", "ruler/vt", "--lengths", "512", "--limit", "1"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing is wrong with."""
    output = tmp_path_factory.mktemp("whole")
    return evaluate("anchor-tiny", "ruler/vt", lengths=[512], limit=1, backend="fake", output=output).path


def damaged(whole: Path, output: Path, header: str | None, records: bytes | None) -> Path:
    """A copy of the run with another header, or more records, in a folder of runs."""
    path = Path(shutil.copytree(whole, output / "other" / FOLDER))
    if header is not None:
        (path / HEADER).write_text(header, "latin-1")
    if records is not None:
        (path / RECORDS).write_bytes((path / RECORDS).read_bytes() + records)
    return path


DAMAGE: dict[str, tuple[str | None, bytes | None]] = {
    "empty": ("", None),
    "no JSON": ("{", None),
    "no text": ("\xff\xfe", None),
    "a list": ("[]", None),
    "deep": ("[" * 100_000, None),
    "arms": ('{"arms": 3}', None),
    "asked": ('{"asked": [{"task": 1}]}', None),
    "unmakeable": ('{"unmakeable": [{}]}', None),
    "backend": ('{"backend": 7, "model": [], "sources": 3, "lengths": ["x"]}', None),
    "folders": (None, None),
    "broken line": (None, b"not a record\n"),
    "broken field": (None, b'{"key": 3}\n'),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_neighbour_is_named_and_costs_no_other_run_its_place(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    shutil.copytree(whole, tmp_path / "good" / whole.name)
    path = damaged(whole, tmp_path, *DAMAGE[kind])
    if kind == "folders":
        for name in (HEADER, RECORDS):
            (path.with_name(name) / name).mkdir(parents=True)
        (path / RECORDS).unlink()
        (path / RECORDS).mkdir()
    assert main(["board", str(tmp_path)]) == 0
    said = capsys.readouterr().err
    assert str(path) in said or kind in ("arms", "backend"), said
    assert f"good/{whole.name}" in (tmp_path / "board.html").read_text("utf-8")


def test_a_run_writes_its_own_board_into_its_folder_and_reads_no_neighbour(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = damaged(whole, tmp_path, *DAMAGE["broken line"])
    assert main([*RUN, "--output", str(tmp_path)]) == 0
    said = capsys.readouterr().err
    (own,) = tmp_path.glob(f"anchor-tiny/*/{RECORDS}")
    assert f"board: {own.parent / 'board.html'}" in said and str(path) not in said
    assert not (tmp_path / "board.html").exists()


@pytest.mark.parametrize("kind", ["empty", "a list", "broken line"])
@pytest.mark.parametrize("declared", [False, True])
def test_a_board_leaves_out_what_lies_in_a_folder_and_refuses_what_was_named(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, declared: bool
) -> None:
    shutil.copytree(whole, tmp_path / "good" / whole.name)
    path = damaged(whole, tmp_path, *DAMAGE[kind])
    definition = Path(__file__).parents[2] / "leaderboards" / "anchor-tiny.yaml"
    more = ["--output", str(tmp_path), *(["--definition", str(definition)] if declared else [])]
    assert main(["board", str(tmp_path), *more]) == 0
    assert f"left out: {path}" in capsys.readouterr().err
    assert main(["board", str(path), *more]) in (1, 2)
    assert str(path) in capsys.readouterr().err.splitlines()[-1]


def test_a_folder_in_which_no_run_can_be_read_is_an_error(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged(whole, tmp_path, *DAMAGE["empty"])
    assert main(["board", str(tmp_path)]) in (1, 2)
    assert "no run here" in capsys.readouterr().err.splitlines()[-1]
    assert json.loads((whole / HEADER).read_text())["finished"]


@pytest.mark.parametrize("header", [{"tasks": 5}, {"until": 5}, {"asked": [{"task": 1}]}, {"unmakeable": [5]}])
@pytest.mark.parametrize("command", ["score", "view", "verify", "compare"])
def test_every_command_names_a_header_of_another_shape(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, header: dict[str, Any]
) -> None:
    path = Path(shutil.copytree(whole, tmp_path / FOLDER))
    (path / HEADER).write_text(json.dumps(json.loads((path / HEADER).read_text()) | header))
    assert main([command, str(path)]) in (1, 2)
    said = capsys.readouterr()
    assert f"{path / HEADER}: " in (said.out + said.err if command == "verify" else said.err)


@pytest.mark.parametrize("command", ["score", "view", "verify", "compare"])
def test_every_command_names_a_folder_or_a_pipe_in_the_place_of_the_records(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    for make in (Path.mkdir, os.mkfifo):
        path = Path(shutil.copytree(whole, tmp_path / make.__name__))
        (path / RECORDS).unlink()
        make(path / RECORDS)
        assert main([command, str(path)]) in (1, 2)
        assert f"{path / RECORDS} is no file" in capsys.readouterr().err
