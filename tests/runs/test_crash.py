"""A run that is killed at any moment loses no record, and the same command ends it. `make test-crash` kills oftener."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from crash import ASKED, lines, ruler, run, texts

from anchoreval import evaluate
from anchoreval.errors import RunError
from anchoreval.records import folder as results
from anchoreval.records.run import load_run
from anchoreval.runs.verify.records import findings

SCRIPT = Path(__file__).parents[1] / "crash.py"

FILES = {"header.json", "lock", "records.jsonl", "logprobs.jsonl"}


def killed(folder: Path, points: list[str]) -> dict[str, int]:
    """What `crash.py` says of runs that are killed at these points."""
    done = subprocess.run([sys.executable, SCRIPT, folder, *points], capture_output=True, text=True, timeout=1700)
    assert done.returncode == 0, done.stderr
    said: dict[str, int] = json.loads(done.stdout)
    return said


def check(folder: Path, whole: Path) -> None:
    """Every run in `folder` is whole, verifies without a difference, and has the answers of the runs in `whole`."""
    expected = {path.name: contents(path) for path in whole.glob("*/*")}
    for place in folder.iterdir():
        assert {path.name: contents(path) for path in place.glob("*/*")} == expected
        assert not list(place.rglob("*.part"))
        assert {path.name for path in place.rglob("*") if path.is_file()} == FILES
        for path in place.glob("*/*"):
            assert load_run(path).header["finished"]
            assert not [str(finding) for finding in findings(path, Path(texts().name)) if finding.differs]


def contents(path: Path) -> list[tuple[str, str, float | None]]:
    """Key, output and score of each record of a run."""
    return [(record.key, record.output, record.score) for record in load_run(path).records]


def test_ten_kills_lose_nothing_and_the_same_command_ends_the_run(tmp_path: Path) -> None:
    draw = random.Random(0)
    points = [f"write:{draw.randrange(1, 80)}" for _ in range(7)]
    points += [f"time:{draw.uniform(0.0, 0.9):.2f}" for _ in range(3)]
    said = killed(tmp_path / "killed", points)
    assert said["kills"] >= 5 and said["lost"] == said["failed"] == 0
    run(tmp_path / "whole")
    check(tmp_path / "killed", tmp_path / "whole")


@pytest.mark.crash
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("points", "least"),
    [(["each"], 60), ([f"time:{random.Random(n).uniform(0.0, 0.9):.3f}" for n in range(60)], 20)],
    ids=["at every change of the disk", "at random moments"],
)
def test_kills_lose_nothing_and_the_same_commands_end_the_runs(tmp_path: Path, points: list[str], least: int) -> None:
    run(tmp_path / "whole")
    said = killed(tmp_path / "killed", points)
    assert said["kills"] >= least and said["lost"] == said["failed"] == 0
    check(tmp_path / "killed", tmp_path / "whole")


def files(output: Path) -> list[Path]:
    """The files of runs that hold anything."""
    return [path for path in output.glob("*/*/*") if path.is_file() and path.stat().st_size]


@pytest.mark.parametrize("at", [0, 1, 5, 11])
def test_a_full_disk_is_one_line_and_costs_no_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    stock, written = os.write, 0

    def full(file: int, data: bytes) -> int:
        nonlocal written
        if data.startswith(b'{"') and b"sample_id" in data:
            if written == at:
                stock(file, data[:20])
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            written += 1
        return stock(file, data)

    monkeypatch.setattr(results.os, "write", full)
    with pytest.raises(RunError, match=r"cannot write .*No space left") as caught:
        ruler(tmp_path)
    assert "\n" not in str(caught.value) and len(lines(tmp_path)) == at
    assert not list(tmp_path.rglob("*.part")) and all(path.read_bytes().endswith(b"\n") for path in files(tmp_path))
    monkeypatch.undo()
    ruler(tmp_path)
    [path] = tmp_path.glob("*/*")
    assert len(load_run(path).records) == 24 and not [f for f in findings(path) if f.differs]


@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 0.6, 0.9, 1.0])
def test_a_disk_that_is_full_at_any_moment_is_one_line_and_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    stock, left = os.fsync, 10**9

    def full(file: int) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        stock(file)

    monkeypatch.setattr(os, "fsync", full)
    ruler(tmp_path / "whole", 2)
    left = round((10**9 - left - 1) * share)
    with pytest.raises(RunError, match=r"cannot write .*No space left") as caught:
        ruler(tmp_path / "full", 2)
    assert "\n" not in str(caught.value) and not list(tmp_path.rglob("*.part"))
    assert all(path.read_bytes().endswith(b"\n") for path in files(tmp_path / "full"))
    left = 10**9
    ruler(tmp_path / "full", 2)
    [one], [other] = (list((tmp_path / name).glob("*/*")) for name in ("whole", "full"))
    assert contents(one) == contents(other) and not [f for f in findings(other) if f.differs]


def test_a_limit_on_the_size_of_files_is_met_as_a_full_disk_is(tmp_path: Path) -> None:
    """The kernel refuses the write itself: the run stops, and goes on once there is room."""
    limit = 12_000

    def confined() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

    command = [sys.executable, "-m", "anchoreval", "run", "--model", "anchor-tiny", "--tasks", "ruler/vt"]
    command += ["--backend", "fake", "--lengths", "512", "--limit", "20", "--output", str(tmp_path / "runs")]
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=confined, timeout=120)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "cannot write" in done.stderr.splitlines()[-1]
    before = lines(tmp_path / "runs")
    assert all(path.read_bytes().endswith(b"\n") for path in files(tmp_path / "runs"))
    result = evaluate("anchor-tiny", "ruler/vt", output=tmp_path / "runs", **ASKED | {"limit": 20, "rope": "native"})
    assert len(result.records) == 20 and 0 < len(before) < 20
    assert not [finding for finding in findings(result.path) if finding.differs]


def test_a_folder_that_cannot_be_written_is_one_line_and_nothing_is_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunError, match="cannot write") as caught:
        evaluate("anchor-tiny", "ruler/vt", output=tmp_path / "file", **ASKED)
    assert "\n" not in str(caught.value) and (tmp_path / "file").read_text() == "in the way"
    if os.geteuid() != 0:  # root writes into every folder
        locked = tmp_path / "locked"
        locked.mkdir(mode=0o555)
        with contextlib.suppress(RunError):
            evaluate("anchor-tiny", "ruler/vt", output=locked, **ASKED)
        assert not list(locked.iterdir())
