"""BABILong and recall through the whole program: asked for by ranges, run, re-scored, shown, verified, fetched."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from babilong_files import write_babi, write_published

from anchoreval import evaluate
from anchoreval.cards import folder as folder_of_cards
from anchoreval.cards import load_tasks, select_tasks
from anchoreval.cli.parser import main
from anchoreval.errors import UnknownName
from anchoreval.records.rescore import rescored
from anchoreval.suites import suites
from anchoreval.suites.babilong.stories import BABI
from anchoreval.texts.download import digest_of
from anchoreval.texts.sources import Published

ASKED = "babilong/qa1..qa10,recall/json_kv,recall/icl_labels,passkey"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_published(write_babi(tmp_path_factory.mktemp("data"), zipped=True), {"0k": 20, "1k": 300})


def test_ranges_and_the_passkey_are_selected_as_the_command_line_writes_them() -> None:
    chosen, single = select_tasks(ASKED)
    expected = [f"babilong/qa{n}" for n in range(1, 11)] + ["recall/json_kv", "recall/icl_labels", "recall/passkey"]
    assert [task.address for task in chosen] == expected
    assert single == {"recall/json_kv", "recall/icl_labels"}
    for name in ("babilong/qa9..11", "babilong/qa9..babilong/qa11"):
        assert [task.name for task in select_tasks(name)[0]] == ["qa9", "qa10", "qa11"]


@pytest.mark.parametrize("name", ["babilong/qa19..qa21", "babilong/qa5..qa4", "babilong/qa1..vt3", "recall/qa1..qa2"])
def test_a_range_with_a_name_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(UnknownName):
        select_tasks(name)


def test_all_twenty_tasks_stand_in_each_of_the_three_suites() -> None:
    _, known = load_tasks()
    for suite in ("babilong", "babilong_corrected", "babilong_published"):
        assert known[suite] == tuple(f"{suite}/qa{n}" for n in range(1, 21))
    assert len(known["babilong-5"]) == 5 and len(known["babilong-10"]) == 10


def test_what_was_asked_for_runs_whole_and_is_scored_and_made_again(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = f"{ASKED},babilong_corrected/qa7,babilong_published/qa1"
    arguments = ["run", "--model", "anchor-tiny", "--backend", "fake", "--tasks", tasks, "--data-dir", str(folder)]
    assert main([*arguments, "--lengths", "1900", "--limit", "2", "--output", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "babilong/qa10" in out and "recall/passkey" in out and "babilong_published/qa1" in out
    (header,) = tmp_path.rglob("header.json")
    assert json.loads(header.read_text())["comparable"] is False
    records = [json.loads(line) for line in (header.parent / "records.jsonl").read_text().splitlines()]
    assert len(records) == 15 * 2
    assert {record["score"] for record in records if record["references"] != ["none"]} == {1.0}
    assert main(["verify", str(header.parent), "--data-dir", str(folder)]) == 0
    tokenizer = ["--tokenizer", str(folder_of_cards("models") / "anchor-tiny")]
    assert main(["show", *tokenizer, "recall/passkey@1900#0"]) == 0
    assert "The pass key is" in capsys.readouterr().out


def test_the_answer_none_counts_under_the_corrected_metric_only_and_the_record_says_so(
    tmp_path: Path, folder: Path
) -> None:
    asked = "babilong/qa7,babilong_corrected/qa7"
    run = evaluate("anchor-tiny", asked, output=tmp_path, data_dir=folder, backend="fake", lengths=[700], limit=10)
    none = [record for record in run.records if record.references == ("none",)]
    assert {(record.task, record.score, record.why) for record in none} == {
        ("babilong/qa7", 0.0, "the corrected metric gives 1"),
        ("babilong_corrected/qa7", 1.0, None),
    }
    assert {record.score for record in run.records if record not in none} == {1.0}


def test_an_empty_answer_scores_nothing_and_records_are_scored_again_alike(tmp_path: Path, folder: Path) -> None:
    run = evaluate(
        "anchor-tiny", "babilong-5,recall", output=tmp_path, data_dir=folder, backend="fake", lengths=[1500], limit=2,
        backend_args={"mode": "empty"},
    )  # fmt: skip
    assert {record.score for record in run.records} == {0.0} and len(run.records) == 16
    assert not list(rescored(run))


def test_without_the_stories_the_command_says_in_one_line_how_to_get_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    arguments = ["run", "--model", "anchor-tiny", "--backend", "fake", "--tasks", "babilong/qa1", "--lengths", "1024"]
    assert main([*arguments, "--output", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert "anchoreval data fetch babilong" in line and "--data-dir" in line


@pytest.fixture
def served(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Published]:
    """The zip of the fixture as the published one, named by its git blob, on a server of this machine."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

    content = (folder / BABI.file).read_bytes()
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder / "babilong")))
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}/tasks_1-20_v1-2.zip"
    made = Published(BABI.file, blob, (address,), revision="abcdef0123")
    monkeypatch.setitem(suites(), "babilong", replace(suites()["babilong"], files=(made,)))
    for module in ("stories", "published"):
        monkeypatch.setattr(f"anchoreval.suites.babilong.{module}.BABI", made)
    yield made
    server.shutdown()
    server.server_close()
    thread.join()


def test_data_fetch_brings_the_stories_and_data_check_says_what_is_there(
    tmp_path: Path, served: Published, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    there = ["--data-dir", str(tmp_path)]
    assert main(["data", "check", *there]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("babilong ")]
    assert len(rows) == 2 and all(" missing " in row for row in rows)
    for _ in range(2):
        assert main(["data", "fetch", "babilong", *there]) == 0
    assert digest_of(tmp_path / served.file, served.sha256) == served.sha256
    write_published(tmp_path, {"0k": 20})
    capsys.readouterr()
    assert main(["data", "check", *there]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("babilong ")]
    assert " published  revision abcdef0 " in rows[0] and len(rows) == 21
    assert all(" unpinned " in row and "revision ee0d588 has no hash" in row for row in rows[1:])
    (tmp_path / served.file).write_bytes(b"another")
    assert main(["data", "check", *there]) == 1
    assert main(["data", "fetch", "babilong", *there]) == 2
    assert "is not the published file" in capsys.readouterr().err


def test_a_git_blob_is_named_as_git_names_it(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"hello\n")
    assert digest_of(tmp_path / "x", "0" * 40) == "ce013625030ba8dba906f756967f9e9ca394464a"
    assert digest_of(tmp_path / "x", "0" * 64) == hashlib.sha256(b"hello\n").hexdigest()
