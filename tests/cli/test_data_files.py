"""`anchoreval data` against a server on the loopback: resumed, refused, dead; and what `check` says of a folder."""

from __future__ import annotations

import fcntl
import hashlib
import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from longbench_files import write_folder, write_zip

from anchoreval.cli.parser import main
from anchoreval.errors import SourceError
from anchoreval.suites import suites
from anchoreval.suites.general.rows import HUB
from anchoreval.suites.longbench.generate import LONGBENCH, RECORDS
from anchoreval.suites.longbench_v2.generate import LONGBENCH_V2
from anchoreval.texts import sources
from anchoreval.texts.download import address_of, download, unconnected
from anchoreval.texts.sources import Published

BODY = bytes(range(256)) * 40
SHA256 = hashlib.sha256(BODY).hexdigest()

ALL_FILES = (*sources.RULER_FILES, LONGBENCH, LONGBENCH_V2)


def publish(monkeypatch: pytest.MonkeyPatch, suite: str, *files: Published) -> None:
    """Let a suite have these files as the published ones."""
    monkeypatch.setitem(suites(), suite, replace(suites()[suite], files=files))
    if suite.startswith("longbench"):
        monkeypatch.setattr(f"anchoreval.suites.{suite}.generate.{suite.upper()}", files[0])


class Server(ThreadingHTTPServer):
    """Serves BODY; `cut` breaks off after so many bytes, `ranges` says whether it goes on in the middle."""

    cut: int | None = None
    ranges = True
    served: list[str | None]
    tokens: list[str | None]

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/data.zip"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.server.served.append(asked)
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and self.server.ranges else 0
        if start >= len(BODY):
            self.send_error(416)
            return
        self.server.tokens.append(self.headers.get("Authorization"))
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(BODY) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(BODY) - 1}/{len(BODY)}")
        self.end_headers()
        self.wfile.write(BODY[start : start + (self.server.cut or len(BODY))])

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server(("127.0.0.1", 0), Handler)
    made.served, made.tokens = [], []
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    yield made
    made.shutdown()
    made.server_close()
    thread.join()


@pytest.fixture
def pinned(server: Server, monkeypatch: pytest.MonkeyPatch) -> Published:
    """LongBench's archive as that server has it."""
    made = Published("longbench/data.zip", SHA256, (server.address,), revision="abcdef0123")
    publish(monkeypatch, "longbench", made)
    return made


def test_a_download_that_broke_off_goes_on_where_it_was(server: Server, tmp_path: Path) -> None:
    target = tmp_path / "in" / "data.zip"
    server.cut = 3072  # bytes; what comes is kept by the kilobyte
    for have in (3072, 6144):
        with pytest.raises(OSError, match=f"broke off after {have} of {len(BODY)} bytes; the same command goes on"):
            download(server.address, target, SHA256)
        assert not target.exists() and target.with_name("data.zip.part").stat().st_size == have
    server.cut = None
    seen: list[tuple[int, int | None]] = []
    assert download(server.address, target, SHA256, lambda have, of: seen.append((have, of))).read_bytes() == BODY
    assert server.served == [None, "bytes=3072-", "bytes=6144-"] and seen[-1] == (len(BODY), len(BODY))
    assert [path.name for path in target.parent.iterdir()] == ["data.zip"]


def test_a_server_that_cannot_go_on_in_the_middle_is_asked_from_the_start(server: Server, tmp_path: Path) -> None:
    (tmp_path / "data.zip.part").write_bytes(b"something else")
    server.ranges = False
    assert download(server.address, tmp_path / "data.zip", SHA256).read_bytes() == BODY


def test_a_part_that_is_already_whole_is_taken(server: Server, tmp_path: Path) -> None:
    (tmp_path / "data.zip.part").write_bytes(BODY)
    assert download(server.address, tmp_path / "data.zip", SHA256).read_bytes() == BODY


def test_two_processes_do_not_fetch_one_file(server: Server, tmp_path: Path) -> None:
    with (tmp_path / "data.zip.part").open("ab") as part:
        fcntl.flock(part, fcntl.LOCK_EX)
        with pytest.raises(OSError, match="another process is fetching"):
            download(server.address, tmp_path / "data.zip", SHA256)
    assert not server.served


def test_another_content_is_refused_and_leaves_nothing(server: Server, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="its SHA-256 is"):
        download(server.address, tmp_path / "data.zip", "0" * 64)
    (tmp_path / "data.zip.part").write_bytes(b"wrong beginning")
    with pytest.raises(SourceError, match="its SHA-256 is"):
        download(server.address, tmp_path / "data.zip", SHA256)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def hub(server: Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """An address of the hub, which that server mirrors."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1024)
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)
    monkeypatch.setenv("HF_ENDPOINT", server.address.removesuffix("/data.zip"))
    return "https://huggingface.co/datasets/owner/name/resolve/abcdef0123/data.zip"


def test_what_the_hub_has_is_resumed_with_its_token_from_its_mirror(
    hub: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    (tmp_path / "data.zip.part").write_bytes(BODY[:4096])
    seen: list[tuple[int, int | None]] = []
    download(hub, tmp_path / "data.zip", SHA256, lambda have, of: seen.append((have, of)))
    assert (tmp_path / "data.zip").read_bytes() == BODY and seen[-1] == (len(BODY), len(BODY))
    assert server.served == ["bytes=4096-"] and server.tokens == ["Bearer hf_mine"]
    assert [path.name for path in tmp_path.iterdir()] == ["data.zip"]


def test_a_download_from_the_hub_goes_on_by_itself_and_by_the_same_command(
    hub: str, server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server.cut = 6144
    assert download(hub, tmp_path / "data.zip", SHA256).read_bytes() == BODY
    assert server.served == [None, "bytes=6144-"]
    (tmp_path / "other.zip.part").write_bytes(BODY[:2048])
    server.cut = 100  # less than is written at once: nothing comes
    with pytest.raises(OSError, match=f"broke off after 2048 of {len(BODY)} bytes; the same command goes on") as caught:
        download(hub, tmp_path / "other.zip", SHA256)
    assert "\n" not in str(caught.value) and not caplog.records
    assert (tmp_path / "other.zip.part").read_bytes() == BODY[:2048]


def test_offline_the_hub_is_not_asked(
    hub: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match="offline mode is enabled") as caught:
        download(hub, tmp_path / "data.zip", SHA256)
    assert "\n" not in str(caught.value) and not server.served and not list(tmp_path.iterdir())


@pytest.mark.parametrize("address", ["http://example.org/data.zip", LONGBENCH.addresses[0]])
def test_a_machine_without_a_network_is_told_from_a_server_that_is_down(
    hub: str, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind, alone in (socket.gaierror, True), (ConnectionRefusedError, False):

        def unreachable(*_: object, kind: type[OSError] = kind, **__: object) -> None:
            raise kind(1, "out of reach")

        monkeypatch.setattr("socket.getaddrinfo", unreachable)
        with pytest.raises(OSError, match="out of reach") as caught:
            download(address, tmp_path / "data.zip", SHA256)
        assert unconnected(caught.value) == alone and "\n" not in str(caught.value)


def test_a_dead_server_is_one_line_with_its_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}/data.zip"
    publish(monkeypatch, "longbench", Published("longbench/data.zip", SHA256, (address,)))
    assert main(["data", "fetch", "longbench", "--data-dir", str(tmp_path)]) == 2
    captured = capsys.readouterr()
    last = captured.err.strip().splitlines()[-1]
    assert address in last and "refused" in last and not captured.out
    assert not list((tmp_path / "longbench").iterdir())


def test_fetch_prints_the_place_and_leaves_alone_what_is_right(
    server: Server, pinned: Published, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        assert main(["data", "fetch", "longbench", "--data-dir", str(tmp_path)]) == 0
        assert capsys.readouterr().out == f"{tmp_path / 'longbench' / 'data.zip'}\n"
    assert len(server.served) == 1
    (tmp_path / "longbench" / "data.zip").write_bytes(b"another")
    assert main(["data", "fetch", "longbench", "--data-dir", str(tmp_path)]) == 2
    assert "not the published file: move it away" in capsys.readouterr().err


def test_the_hubs_host_can_be_another(monkeypatch: pytest.MonkeyPatch) -> None:
    address = LONGBENCH.addresses[0]
    assert address_of(address) == address
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example/")
    assert address_of(address) == address.replace("https://huggingface.co", "https://mirror.example")


def rows(folder: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, str]]:
    code = main(["data", "check", "--data-dir", str(folder)])
    lines = [line.split(maxsplit=3) for line in capsys.readouterr().out.splitlines() if not line.startswith("babilong")]
    return code, {line[1]: " ".join(line[2:]) for line in lines}


def test_check_says_what_is_missing_and_where_it_is_published(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    code, found = rows(tmp_path / "none", capsys)
    assert code == 0 and set(found) == {source.file for source in ALL_FILES} | {hub.dataset for hub in HUB.values()}
    assert all(text.startswith("missing") for text in found.values())
    assert LONGBENCH.addresses[0] in found["longbench/data.zip"]


def test_check_tells_the_revision_of_the_published_archive_and_another_one_from_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = write_zip(tmp_path / "data.zip")
    code, found = rows(tmp_path, capsys)
    assert code == 1 and found["longbench/data.zip"].startswith("differs")
    own = Published("longbench/data.zip", hashlib.sha256(path.read_bytes()).hexdigest(), revision="abcdef0123")
    publish(monkeypatch, "longbench", own)
    code, found = rows(tmp_path, capsys)
    assert code == 0 and found["longbench/data.zip"].startswith("published revision abcdef0")


def test_check_counts_the_records_of_files_that_lie_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = write_folder(tmp_path / "data")
    (folder / "trec.jsonl").write_text(json.dumps({}) + "\n" * 1 + (json.dumps({}) + "\n") * (RECORDS["trec"] - 1))
    (folder / "lcc.jsonl").unlink()
    code, found = rows(tmp_path, capsys)
    assert code == 1 and found["qasper.jsonl"].startswith("differs 2 records")
    assert found["trec.jsonl"].startswith("unpinned 200 records") and found["lcc.jsonl"] == "missing"


def test_a_suite_of_several_files_brings_what_can_be_had(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = (Published("a.json", SHA256, (server.address,)), Published("b.json", SHA256, recipe="made by hand"))
    publish(monkeypatch, "ruler", *made)
    assert main(["data", "fetch", "ruler", "--data-dir", str(tmp_path)]) == 1
    said = capsys.readouterr()
    assert said.out == f"{tmp_path / 'a.json'}\n"
    assert said.err.splitlines()[-1] == "b.json could not be fetched: made by hand"


def test_longbench_v2_is_fetched_and_checked_like_the_others(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert LONGBENCH_V2.revision in LONGBENCH_V2.addresses[0]
    made = Published("longbench_v2/data.json", SHA256, (server.address,), revision="abcdef0123")
    publish(monkeypatch, "longbench_v2", made)
    code, found = rows(tmp_path, capsys)
    assert code == 0 and found["longbench_v2/data.json"] == f"missing published at {server.address}"
    assert main(["data", "fetch", "longbench_v2", "--data-dir", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'longbench_v2' / 'data.json'}\n"
    code, found = rows(tmp_path, capsys)
    assert code == 0 and found["longbench_v2/data.json"].startswith("published revision abcdef0")
    (tmp_path / "longbench_v2" / "data.json").write_bytes(b"[]")
    code, found = rows(tmp_path, capsys)
    assert code == 1 and found["longbench_v2/data.json"].startswith("differs")
