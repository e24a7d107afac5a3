"""Lines of a long measurement: on the disk at once, read again, and whole after a kill in the middle of one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from anchoreval.errors import RunError
from anchoreval.records.header import fingerprint
from anchoreval.records.kept import Kept


def test_what_was_kept_is_there_again(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "new" / "kept.jsonl")
    kept.add("a", [1.5, "ü"])
    kept.add("b", None)
    assert Kept(tmp_path / "new" / "kept.jsonl").lines == {"a": [1.5, "ü"], "b": None}


@pytest.mark.parametrize("torn", [b'{"name": "c", "con', b"\xff\xfe", b"[" * 100_000, b"null", b'{"name": "c"}'])
def test_a_torn_line_is_left_out_and_the_next_one_stands_alone(tmp_path: Path, torn: bytes) -> None:
    file = tmp_path / "kept.jsonl"
    Kept(file).add("a", 1)
    with file.open("ab") as out:
        out.write(torn)
    again = Kept(file)
    assert again.lines == {"a": 1}
    again.add("b", 2)
    assert Kept(file).lines == {"a": 1, "b": 2}


def test_a_file_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written"):
        Kept(tmp_path / "file" / "kept.jsonl").add("a", 1)


def test_a_name_follows_from_the_facts_and_not_from_their_order() -> None:
    assert fingerprint({"a": 1, "b": [2]}) == fingerprint({"b": [2], "a": 1}) != fingerprint({"a": 1, "b": [3]})


@pytest.mark.parametrize("kind", ["pipe", "folder", "link", "link to nothing"])
def test_what_is_no_file_of_its_own_is_refused_before_anything_is_written(tmp_path: Path, kind: str) -> None:
    file, mine = tmp_path / "kept" / "kept.jsonl", tmp_path / "mine"
    file.parent.mkdir()
    mine.write_text("gold")
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    else:
        file.symlink_to(mine if kind == "link" else tmp_path / "nowhere")
    with pytest.raises(RunError, match=r"kept.jsonl is (no file: move it away|a link: delete it)"):
        Kept(file)
    assert mine.read_text() == "gold" and not (tmp_path / "nowhere").exists()


def test_a_line_that_is_not_what_it_should_be_counts_as_none() -> None:
    kept = Kept(lines={"a": "7", "b": "x"})
    assert [kept.read(name, int) for name in "abc"] == [7, None, None]
