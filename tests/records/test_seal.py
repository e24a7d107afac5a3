"""A seal is compared before it is renewed; what a run goes on with is its own; files lie in their folder."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import cli

from anchoreval.records.header import HEADER
from anchoreval.records.lines import RECORDS

RUN = ["run", "--model", "anchor-tiny", "--tasks", "ruler/niah_single_1", "--rope", "bf16,fp32", "--lengths", "512",
       "--haystack", "generated", "--backend", "fake", "--limit", "2"]  # fmt: skip


def made(output: Path, *more: str) -> Path:
    """The folder of a finished run."""
    assert cli(*RUN, *more, "--output", str(output)).returncode == 0
    (header,) = output.glob(f"*/*/{HEADER}")
    return header.parent


def changed(path: Path, change: Callable[[list[dict[str, Any]]], Any]) -> None:
    rows = [json.loads(line) for line in (path / RECORDS).read_text().splitlines()]
    change(rows)
    (path / RECORDS).write_text("".join(json.dumps(row) + "\n" for row in rows))


def unfinished(path: Path) -> None:
    header = json.loads((path / HEADER).read_text())
    del header["seal"], header["finished"]
    (path / HEADER).write_text(json.dumps(header))


def test_a_run_whose_sealed_bytes_changed_is_marked_by_every_command(tmp_path: Path) -> None:
    path = made(tmp_path / "r")
    changed(path, lambda rows: rows[0].update(output=f"still right: {rows[0]['output']}"))
    says, out = "the records changed since it finished (seal)", tmp_path / "out"
    for command in (
        ["board", str(path), "--output", str(out)], ["compare", str(path)], ["view", str(path), "--output", str(out)],
        ["score", str(path)], ["export", str(path), "--format", "csv", "--output", str(out)], ["general", str(path)],
        ["longbench", str(path)],
    ):  # fmt: skip
        done = cli(*command)
        assert f"{path}: {says}" in done.stderr and done.returncode == 0, command
        assert command[0] not in ("compare", "score") or says in done.stdout
    assert says in (out / "board.html").read_text() and says in next(out.glob("data/*/index.js")).read_text()
    refused = cli(*RUN, "--output", str(tmp_path / "r"))
    assert refused.returncode != 0 and says in refused.stderr and cli("verify", str(path)).returncode == 1


def test_a_seal_that_is_gone_is_not_renewed(tmp_path: Path) -> None:
    path = made(tmp_path)
    header = json.loads((path / HEADER).read_text())
    del header["seal"]
    (path / HEADER).write_text(json.dumps(header))
    assert "its seal is gone" in cli("compare", str(path)).stderr
    assert "its seal is gone" in cli(*RUN, "--output", str(tmp_path)).stderr
    more = cli(*RUN, "--limit", "3", "--output", str(tmp_path))
    assert more.returncode != 0 and "its seal is gone" in more.stderr


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda rows: rows[1].update(score=0.25), ":2: ruler/niah_single_1@512#1 under bf16 has the score 0.25"),
        (lambda rows: rows[3].update(references=["7"]), ":4: references is not that of ruler/niah_single_1@512#1 on"),
        (lambda rows: rows[2].update(prompt_sha256="0" * 64), ":3: prompt_sha256 is not that of"),
        (lambda rows: rows[1].update(index=0), ":2: ruler/niah_single_1@512#1 is not sample 0"),
        (lambda rows: rows[1].update(index=7, sample_id="ruler/niah_single_1@512#7"), ":2: the run asks for no sample"),
        (lambda rows: rows[0].update(arm="fp64"), ":1: the run has no arm fp64"),
        (lambda rows: rows[0].update(environment=3), ":1: the run has no environment 3"),
    ],
)
def test_a_record_that_was_edited_is_named_with_its_line_and_the_way_out(
    tmp_path: Path, change: Callable[[list[dict[str, Any]]], Any], says: str
) -> None:
    path = made(tmp_path)
    unfinished(path)
    changed(path, change)
    done = cli(*RUN, "--output", str(tmp_path))
    assert done.returncode != 0 and f"{path / RECORDS}{says}" in done.stderr, done.stderr
    assert "delete this line and give the same command again" in done.stderr


def test_a_line_of_another_run_is_named_and_the_way_out_works(tmp_path: Path) -> None:
    path, other = made(tmp_path / "a"), made(tmp_path / "b", "--seed", "43")
    unfinished(path)
    own = (path / RECORDS).read_text()
    (path / RECORDS).write_text(own + (other / RECORDS).read_text().splitlines(keepends=True)[0])
    done = cli(*RUN, "--output", str(tmp_path / "a"))
    assert (
        done.returncode != 0
        and f"{path / RECORDS}:5: ruler/niah_single_1@512#0 under bf16 stands on line 1" in done.stderr
    )
    (path / RECORDS).write_text(own)
    assert cli(*RUN, "--output", str(tmp_path / "a")).returncode == 0 and cli("verify", str(path)).returncode == 0


@pytest.mark.parametrize("name", [HEADER, RECORDS])
@pytest.mark.parametrize("kind", ["pipe", "socket", "device", "folder", "link", "link to nothing"])
def test_what_is_no_file_of_the_folder_is_named_by_every_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, kind: str
) -> None:
    path = made(tmp_path / "r")
    content = (path / name).read_bytes()
    (path / name).unlink()
    monkeypatch.chdir(path)  # a socket's path is short
    if kind == "socket":
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(name)
    elif kind == "link":
        (tmp_path / "outside").write_bytes(content)
        (path / name).symlink_to(tmp_path / "outside")
    else:
        make: dict[str, Callable[[Path], Any]] = {
            "pipe": os.mkfifo, "folder": Path.mkdir, "device": lambda place: place.symlink_to("/dev/zero"),
            "link to nothing": lambda place: place.symlink_to(tmp_path / "none"),
        }  # fmt: skip
        make[kind](path / name)
    for command in (["compare", str(path)], ["score", str(path)], ["verify", str(path)], ["view", str(path)]):
        done = cli(*command)
        assert done.returncode in (1, 2) and str(path / name) in done.stderr + done.stdout, (command, done)
    if name == HEADER:
        assert cli(*RUN, "--output", str(tmp_path / "r")).returncode != 0


def test_a_link_within_the_folder_is_read(tmp_path: Path) -> None:
    path = made(tmp_path)
    (path / RECORDS).rename(path / "kept.jsonl")
    (path / RECORDS).symlink_to("kept.jsonl")
    assert cli("verify", str(path)).returncode == 0 and cli("score", str(path)).returncode == 0
