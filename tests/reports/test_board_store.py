"""What boards keep of runs: nothing is read twice, and nothing stale is shown."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_board import make_run
from test_leaderboard import declared, saved

from anchoreval.cli.parser import main
from anchoreval.errors import RunError
from anchoreval.records.lines import RECORDS
from anchoreval.reports.board import store
from anchoreval.reports.board.declared import write_leaderboard
from anchoreval.reports.board.store import Spool, open_store, store_folder


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The names of the run folders whose records were read, in a cache folder of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    names, each_fields = list[str](), store.each_fields

    def watched(lines: Any) -> Iterator[Any]:
        names.append(lines.path.parent.name)
        return each_fields(lines)

    monkeypatch.setattr(store, "each_fields", watched)
    return names


def built(folder: Path, fresh: bool = False) -> list[bytes]:
    runs = sorted(path for path in folder.glob("run-*"))
    return [path.read_bytes() for path in write_leaderboard(runs, declared(folder), folder / "out", fresh=fresh)]


def edited(run: Path) -> None:
    """Turn every score of one arm around; the file keeps its size and its times."""
    path = run / RECORDS
    before, rows = path.stat(), [json.loads(line) for line in path.read_text("ascii").splitlines()]
    for row in rows:
        if row["arm"] == "bf16-angle" and row["score"] is not None:
            row["score"] = 1.0 - row["score"]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), "ascii")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size


def test_a_board_built_again_reads_the_runs_that_changed_and_is_that_of_all_read_anew(
    tmp_path: Path, read: list[str]
) -> None:
    for name in ("run-1", "run-2"):
        saved(make_run(tmp_path / name))
    first = built(tmp_path)
    assert read == ["run-1", "run-2"] or read == ["run-1"]  # equal records are read once
    read.clear()
    assert built(tmp_path) == first and not read
    edited(tmp_path / "run-2")
    changed = built(tmp_path)
    assert read == ["run-2"] and changed != first
    assert built(tmp_path, fresh=True) == changed and set(read) == {"run-1", "run-2"}
    saved(make_run(tmp_path / "run-3", samples=7))
    read.clear()
    grown = built(tmp_path)
    assert read == ["run-3"] and built(tmp_path, fresh=True) == grown


@pytest.mark.parametrize("harm", ["cut", "turned", "other code", "deleted"])
def test_what_is_damaged_deleted_or_of_other_code_is_read_again(
    harm: str, tmp_path: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(make_run(tmp_path / "run-1"))
    first = built(tmp_path)
    (kept,) = store_folder().iterdir()
    content = kept.read_bytes()
    if harm == "deleted":
        kept.unlink()
    elif harm == "other code":
        monkeypatch.setattr(store, "_code", lambda: "another")
    else:
        kept.write_bytes(content[:-9] if harm == "cut" else content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    read.clear()
    assert built(tmp_path) == first and read == ["run-1"]
    assert (kept.read_bytes() == content) == (harm != "other code")


def test_without_a_cache_folder_every_board_reads_all_and_is_the_same(
    tmp_path: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(make_run(tmp_path / "run-1"))
    first = built(tmp_path)
    (tmp_path / "no-folder").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "no-folder"))
    read.clear()
    assert built(tmp_path) == first and read == ["run-1"]


def test_a_broken_cell_is_an_error_of_the_boards_that_show_it_alone(tmp_path: Path, read: list[str]) -> None:
    path = saved(make_run(tmp_path / "run-1")) / RECORDS
    lines = path.read_text("ascii").splitlines()
    twice = json.loads(next(line for line in lines if '"ruler/vt"' in line)) | {"key": "f" * 64}
    path.write_text("".join(f"{line}\n" for line in [*lines, json.dumps(twice)]), "ascii")
    others = declared(tmp_path, suites=["ruler/qa_1"])
    for _ in range(2):
        write_leaderboard([path.parent], others, tmp_path / "out")
        with pytest.raises(RunError, match=f"{RECORDS}: two records of sample ruler/vt@512#0 under arm"):
            write_leaderboard([path.parent], declared(tmp_path), tmp_path / "out")
        declared(tmp_path, suites=["ruler/qa_1"])
    assert len(read) == 1


def test_files_that_were_not_used_for_the_longest_time_go_first(
    tmp_path: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for at, name in enumerate(("run-1", "run-2")):
        with open_store() as kept:
            known = kept.of(saved(make_run(tmp_path / name, samples=at + 3)) / RECORDS)
        os.utime(store_folder() / known.sha256, (at, at))
    newest = (store_folder() / known.sha256).stat().st_size
    monkeypatch.setattr(store, "MOST_BYTES", newest)
    with open_store():
        pass
    assert [path.name for path in store_folder().iterdir()] == [known.sha256]


def test_a_spool_holds_items_in_order() -> None:
    spool = Spool[tuple[int, str]]()
    for at in range(4):
        spool.append((at, "x" * at))
        assert [number for number, _ in spool] == list(range(at + 1))
    assert list(spool) == [(at, "x" * at) for at in range(4)]
    assert list(zip(spool, spool, strict=True)) == [(item, item) for item in spool]


def test_the_flag_reads_every_run_again(tmp_path: Path, read: list[str]) -> None:
    asked = ["board", str(saved(make_run(tmp_path / "run-1"))), "--definition", str(declared(tmp_path)), "-q"]
    for more, count in ([], 1), ([], 1), (["--fresh"], 2):
        assert main([*asked, "--output", str(tmp_path / "out"), *more]) == 0 and len(read) == count
