"""The server answers on this machine alone, with the files of a viewer and nothing else."""

from __future__ import annotations

import http.client
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_board import make_run
from test_view_write import stored

from anchoreval.errors import RunError
from anchoreval.reports.viewer import write_view
from anchoreval.reports.viewer.serve import ViewServer, serve


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ViewServer]:
    folder = tmp_path_factory.mktemp("served")
    page = write_view(stored(make_run(folder / "run")))
    (page.parent / "secret.txt").write_text("secret")
    (page.parent / "data" / "0123456789ab").mkdir()
    (page.parent / "data" / "0123456789ab" / "000.js").symlink_to(page.parent / "secret.txt")
    with ViewServer({"run": page.parent}, 0) as made:
        threading.Thread(target=made.serve_forever, args=(0.01,), daemon=True).start()
        yield made
        made.shutdown()


def ask(server: ViewServer, path: str, method: str = "GET", **headers: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=5)
    connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, body


def test_the_page_and_its_data_are_answered(server: ViewServer) -> None:
    status, body = ask(server, "/run/")
    assert status == 200 and body.startswith(b"<!DOCTYPE html>")
    name = body.split(b'data-files="')[1].split(b'"')[0].decode()
    assert ask(server, f"/run/{name}index.js")[1].startswith(b"anchorevalData('index'")
    assert ask(server, "/run")[0] == 302 and b"run/" in ask(server, "/")[1]
    assert ask(server, "/run/", "HEAD") == (200, b"")


@pytest.mark.parametrize(
    "path",
    [
        "/run/../run/secret.txt", "/run/secret.txt", "/run/data/../index.html", "/run/%2e%2e/header.json",
        "/run/../header.json", "/../../etc/passwd", "//etc/passwd", "/run//etc/passwd", "/run/data/",
        "/other/index.html",
        "/run/data/0123456789ab/000.js",
        "/run/index.html%00", "/run/index.html\\..\\x", "/run/data/000000000000/000.js/../../x",
    ],
)  # fmt: skip
def test_nothing_else_can_be_reached(server: ViewServer, path: str) -> None:
    status, body = ask(server, path)
    assert status in (400, 404) and b"secret" not in body and b"root:" not in body


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_it_only_reads(server: ViewServer, method: str) -> None:
    assert ask(server, "/run/", method)[0] == 501


def test_pages_of_other_sites_are_refused(server: ViewServer) -> None:
    assert ask(server, "/run/", Host="evil.example")[0] == 403
    assert ask(server, "/run/", Sec_Fetch_Site="cross-site")[0] == 403
    assert ask(server, "/run/", Sec_Fetch_Site="same-origin")[0] == 200


def test_it_is_bound_to_the_loopback_address(server: ViewServer) -> None:
    assert server.server_address[0] == "127.0.0.1" and server.url.startswith("http://127.0.0.1:")
    with pytest.raises(OSError), socket.create_connection(("127.0.0.2", server.server_address[1]), timeout=2):
        pass


def test_a_port_that_is_taken_is_one_line_with_the_fix(server: ViewServer) -> None:
    with pytest.raises(RunError, match=r"--serve .*in use.*another port"):
        serve({}, server.server_address[1], lambda _: None)


def test_the_command_prints_the_address_and_ctrl_c_ends_it_cleanly(tmp_path: Path) -> None:
    run = stored(make_run(tmp_path / "run", samples=1))
    command = [sys.executable, "-m", "anchoreval", "view", str(run.path), "--serve", "--output", str(tmp_path / "out")]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs inherit it ignored
    )  # fmt: skip
    assert process.stdout and process.stderr
    assert process.stdout.readline().strip() == str(tmp_path / "out" / "index.html")
    url = process.stdout.readline().strip()
    assert url.startswith("http://127.0.0.1:") and url.endswith("/run/")
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate(timeout=60)
    assert (process.returncode, rest, errors) == (0, "", "")
