"""Files of every suite that are torn, foreign or half in another encoding: one line, exit code 2, nothing written."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from babilong_files import babi_text, published_rows, write_babi, write_published
from longbench_files import record, write_folder, write_zip
from longbench_v2_files import record as record_v2

from anchoreval.cli.parser import main

GOOD = json.dumps(record("qasper", 0)).encode() + b"\n"
V2 = json.dumps([record_v2(i) for i in range(4)], ensure_ascii=False).encode()
BABI = babi_text("qa1").encode()
PUBLISHED = json.dumps(published_rows("qa1", 20)).encode()
DEEP = b"[" * 100_000
HALF = "half a character"


def changed(**change: Any) -> bytes:
    """Two records, the second with other values."""
    return GOOD + json.dumps(record("qasper", 1) | change).encode() + b"\n"


Case = tuple[str, str, int, bytes, str]
#: Task, file, length, what the file holds, what the line says of it.
CASES: dict[str, Case] = {
    f"{task}-{name}": (task, file, length, content, says)
    for task, file, length, kinds in (
        (
            "longbench/qasper", "qasper.jsonl", 2000,
            {
                "torn": (GOOD + GOOD[:-40], "qasper.jsonl:2 is not JSON"),
                "empty": (b"", "has 0 records of qasper, 2 were asked for and 200 are published: anchoreval data"),
                "latin-1": (GOOD + GOOD.replace(b"Lorn", b"L\xf6rn"), "qasper.jsonl:2 is not JSON ('utf-8' codec"),
                "zeros": (GOOD + b"\0" * 99 + b"\n", "qasper.jsonl:2 is not JSON"),
                "deep": (GOOD + DEEP + b"\n", "qasper.jsonl:2 is not JSON that can be read: nested too deeply"),
                "half": (changed(context="\ud800 x"), HALF),
                "answers": (changed(answers=[None]), "qasper.jsonl:2: 'answers' is not a str"),
                "answer": (changed(answers="Aude"), "qasper.jsonl:2: 'answers' is not a list"),
                "words": (changed(length=True), "qasper.jsonl:2: 'length' is not a number of words"),
                "classes": (changed(all_classes=5), "qasper.jsonl:2: 'all_classes' is not a list"),
            },
        ),
        (
            "longbench/trec", "trec.jsonl", 2000,
            {"classes": (GOOD * 2, "trec.jsonl:1: 'all_classes' is empty, and answers are judged by it")},
        ),
        (
            "longbench_v2", "longbench_v2/data.json", 2000,
            {
                "torn": (V2[: len(V2) // 3], "the file ends inside it"),
                "lines": (V2.replace(b"}, {", b"}\n{"), "expected a comma or the end of the array"),
                "latin-1": (V2.replace(b"Lorn", b"L\xf6rn"), "not UTF-8"),
                "empty": (b"[]", "has 0 records, 2 were asked for and 503 are published: anchoreval data fetch"),
                "second": (V2.replace(b'"answer": "B"', b'"answer": "E"'), "record 2: 'answer' is 'E', not one of A, "),
            },
        ),
        (
            "babilong/qa1", "tasks_1-20_v1-2/en-10k/qa1_single-supporting-fact_train.txt", 1024,
            {
                "empty": (b"", "holds no question of qa1"),
                "latin-1": (BABI.replace(b"Mary", b"M\xe4ry"), "cannot be read as UTF-8"),
                "support": (BABI.replace(b"\t4", b"\tx"), ":5: behind the answer stand the numbers of the lines"),
                "number": ("\u00b2 Mary left.\n".encode() + BABI, ":1: not a line of bAbI"),
            },
        ),
        (
            "babilong_published/qa1", "babilong/data/qa1/0k.json", 900,
            {
                "torn": (PUBLISHED[:-20], "0k.json is not JSON"),
                "latin-1": (PUBLISHED.replace(b"Mary", b"M\xe4ry"), "cannot be read as UTF-8"),
                "deep": (DEEP, "nested too deeply"),
                "half": (PUBLISHED.replace(b"Mary", b"\\ud800"), HALF),
                "empty": (b"[]", "has 0 samples, 2 were asked for"),
            },
        ),
        (
            "niah/single", "PaulGrahamEssays.json", 1024,
            {
                "foreign": (b"{}", 'expected {"text": "..."} with a text'),
                "list": (b"[]", 'expected {"text": "..."} with a text'),
                "blank": (b'{"text": " "}', 'expected {"text": "..."} with a text'),
                "half": (b'{"text": "\\ud800 a. b. c."}', HALF),
            },
        ),
        (
            "ruler/qa_1", "squad.json", 2048,
            {
                "foreign": (b"{}", "expected SQuAD 2.0's own articles"),
                "none": (b'{"data": []}', "own articles; move the file away, or use --haystack generated (Value"),
                "null": (b"null", "expected SQuAD 2.0's own articles"),
                "paragraph": (b'{"data": [{"paragraphs": [{}]}]}', "expected SQuAD 2.0's own articles"),
                "number": (b'{"data": [{"paragraphs": [{"context": 3}]}]}', "own articles; move the file away, or use"),
            },
        ),
        (
            "ruler-balanced/qa_2", "hotpotqa.json", 2048,
            {
                "foreign": (b'{"a": 1}', "expected HotpotQA's own questions"),
                "none": (b"[]", "own questions; move the file away, or use --haystack generated (ValueError: no q"),
                "question": (b'[{"question": "q"}]', "expected HotpotQA's own questions"),
                "deep": (DEEP, "nested too deeply"),
            },
        ),
    )
    for name, (content, says) in kinds.items()
}  # fmt: skip


def run(task: str, length: int, folder: Path, output: Path) -> int:
    haystack = ["--haystack", "generated" if "babilong/" in task else "published"]
    arguments = ["run", "--model", "anchor-tiny", "--backend", "fake", "--tasks", task, "--lengths", str(length)]
    return main([*arguments, *haystack, "--limit", "2", "--data-dir", str(folder), "--output", str(output)])


def refused(capsys: pytest.CaptureFixture[str], code: int, output: Path) -> str:
    """The one line that was said; nothing else was, and nothing was written."""
    out, err = capsys.readouterr()
    (line,) = [line for line in err.splitlines() if line.startswith("anchoreval: ")]
    assert code == 2 and not out and "Traceback" not in err and not output.exists()
    return line


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Good files of every suite, of which a test spoils one; the user's cache is empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return write_folder(write_published(write_babi(tmp_path / "data"), {"0k": 20}))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_spoiled_file_is_one_line_before_anything_is_written(
    case: Case, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task, file, length, content, says = case
    (folder / file).parent.mkdir(parents=True, exist_ok=True)
    (folder / file).write_bytes(content)
    line = refused(capsys, run(task, length, folder, tmp_path / "runs"), tmp_path / "runs")
    assert says in line and str(folder / file) in line


def flipped(path: Path) -> None:
    """Bytes of a member are others than were packed."""
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo("data/qasper.jsonl").header_offset + 60
    whole = path.read_bytes()
    path.write_bytes(whole[:start] + bytes(byte ^ 255 for byte in whole[start : start + 100]) + whole[start + 100 :])


def marked(at: int, value: int) -> Callable[[Path], None]:
    """Every entry says that it is encrypted, or packed in an unknown way."""

    def spoil(path: Path) -> None:
        whole = bytearray(path.read_bytes())
        for head, offset in ((b"PK\x01\x02", at + 2), (b"PK\x03\x04", at)):
            start = whole.find(head)
            while start >= 0:
                whole[start + offset] = value
                start = whole.find(head, start + 1)
        path.write_bytes(bytes(whole))

    return spoil


SPOILED: dict[str, Callable[[Path], object]] = {
    "no zip": lambda path: path.write_bytes(b"<html>not found</html>"),
    "cut off": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "flipped": flipped,
    "encrypted": marked(6, 1),
    "unknown": marked(8, 99),
}


@pytest.mark.parametrize("spoil", SPOILED.values(), ids=SPOILED)
def test_a_spoiled_archive_names_the_command_that_brings_it_anew(
    spoil: Callable[[Path], object], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = write_zip(tmp_path / "data" / "data.zip")
    spoil(path)
    line = refused(capsys, run("longbench/qasper", 2000, path.parent, tmp_path / "runs"), tmp_path / "runs")
    assert f"{path} cannot be read (" in line and "anchoreval data fetch longbench makes it anew" in line
    assert main(["data", "check", "--data-dir", str(path.parent)]) == 1
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("longbench ")]
    assert "longbench/data.zip" in rows[0] and " differs " in rows[0]


def test_check_tells_of_an_archive_that_holds_nothing_of_longbench(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        archive.writestr("readme.txt", "another")
    assert main(["data", "check", "--data-dir", str(tmp_path)]) == 1
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("longbench ")]
    assert " differs " in rows[0] and len(rows) == 1 + 34 and all(" missing" in row for row in rows[1:])


def test_books_that_are_empty_are_none(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "pg19").mkdir()
    (folder / "pg19" / "1.txt").write_text(" \n")
    arguments = ["run", "--model", "anchor-tiny", "--backend", "fake", "--tasks", "babilong/qa1", "--limit", "2"]
    arguments += ["--haystack", "published", "--data-dir", str(folder), "--output", str(tmp_path / "runs")]
    line = refused(capsys, main([*arguments, "--lengths", "1024"]), tmp_path / "runs")
    assert "every text is empty" in line and "--haystack generated" in line
