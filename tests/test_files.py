"""Half-written files of processes that are gone are deleted, and nothing else is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from anchoreval import files
from anchoreval.files import write_whole


@pytest.fixture(scope="module")
def gone() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_whoever_writes_a_file_deletes_what_processes_that_are_gone_left_of_it(tmp_path: Path, gone: int) -> None:
    kept = [f"board.csv.{os.getpid()}.part", f"board.csv.{os.getppid()}.part", f"other.csv.{gone}.part"]
    kept += ["board.csv.mine.part", "board.csv..part", f"board.csv.{gone}.part.txt", f"board.csv.-{gone}.part"]
    for name in [*kept, f"board.csv.{gone}.part"]:
        (tmp_path / name).write_text("half")
    (tmp_path / "text").write_text("a user's")
    (tmp_path / f"board.csv.{gone}0000000.part").symlink_to(tmp_path / "text")
    (tmp_path / f"board.csv.{10**40}.part").mkdir()
    write_whole(tmp_path / "board.csv", ["whole"])
    left = {path.name for path in tmp_path.iterdir()}
    # The name of this process's own part is the one that was written under, so it is gone too.
    assert left == {*kept[1:], "board.csv", "text", f"board.csv.{gone}0000000.part", f"board.csv.{10**40}.part"}
    assert (tmp_path / "text").read_text() == "a user's"


def test_the_cache_of_hashes_keeps_no_half_written_files(
    tmp_path: Path, gone: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    file = files.cache_file()
    file.parent.mkdir()
    (file.parent / f"hashes.json.{gone}.part").write_text("{")
    files._update(lambda known: known | {"/a": [1, 2, 3, 4, "0" * 64]})
    assert {path.name for path in file.parent.iterdir()} == {"hashes.json", "hashes.lock"}
