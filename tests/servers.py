"""Real `vllm` servers on free ports of loopback, and a proxy before one that makes faults on demand."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[1]
KEY = "sk-anchoreval-test-0123456789"
NAME, WINDOW = "tiny", 2048  # of the stock server
TEMPLATE = "{{ bos_token }}{% for m in messages %}Note: {{ m['content'] }}\n{% endfor %}Answer:"
_START_S = 240  # a server is up within 20 to 60 s on two busy cores
_QUIET = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "1",  # as a user has it, also where the tests set an engine in their own process
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": str(REPOSITORY),
}


def free_port() -> int:
    """A port of loopback that nothing listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Server:
    """`vllm serve MODEL` without the command of that name, which not every build of vLLM installs."""

    model: Path
    name: str
    arguments: Sequence[str] = ()
    log: Path = Path(os.devnull)
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def start(self) -> None:
        """Starts the process in a session of its own; `wait` says when it answers."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command(), env=os.environ | _QUIET, stdout=log, stderr=log, start_new_session=True
            )

    def command(self) -> list[str]:
        """What starts the server."""
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(self.model)]
        command += ["--served-model-name", self.name, "--host", "127.0.0.1", "--port", str(self.port)]
        return [*command, "--enforce-eager", "--api-key", KEY, *self.arguments]

    def wait(self) -> None:
        until = time.monotonic() + _START_S
        while not self._healthy():
            assert self.process is not None and self.process.poll() is None, f"no server: see {self.log}"
            assert time.monotonic() < until, f"the server is not up after {_START_S} s: see {self.log}"
            time.sleep(0.25)

    def kill(self) -> None:
        """SIGKILL to the server and the engine processes that it started."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def _healthy(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()


class TransformersServer(Server):
    """`transformers serve MODEL`, which serves the model under the name of its folder, in float32."""

    def command(self) -> list[str]:
        command = [
            sys.executable,
            "-m",
            "transformers.cli.transformers",
            "serve",
            str(self.model),
            "--dtype",
            "float32",
        ]
        return [*command, "--device", "cpu", "--host", "127.0.0.1", "--port", str(self.port), *self.arguments]


class LlamaServer(Server):
    """llama.cpp's `llama-server` with a GGUF file in float32; the first of `arguments` is its executable."""

    def command(self) -> list[str]:
        executable, *more = self.arguments
        command = [executable, "--model", str(self.model), "--alias", self.name, "--host", "127.0.0.1"]
        command += ["--port", str(self.port), "--threads", "1", "--parallel", "1", "--ctx-size", str(WINDOW)]
        return [*command, "--cache-type-k", "f32", "--cache-type-v", "f32", "--flash-attn", "off", *more]


@contextlib.contextmanager
def started(server: Server) -> Iterator[Server]:
    """A server that answers, killed at the end."""
    server.start()
    try:
        server.wait()
        yield server
    finally:
        server.kill()


def serving(model: Path, name: str, arguments: Sequence[str], log: Path) -> contextlib.AbstractContextManager[Server]:
    """A vLLM server that answers, killed at the end."""
    return started(Server(model, name, arguments, log))


def stock(folder: Path) -> contextlib.AbstractContextManager[Server]:
    """The embedded model in float32 on vLLM's own code, with a chat template; its log is in `folder`."""
    (folder / "chat.jinja").write_text(TEMPLATE)
    arguments = ["--dtype", "float32", "--max-model-len", str(WINDOW), "--chat-template", str(folder / "chat.jinja")]
    return serving(REPOSITORY / "models" / "anchor-tiny", NAME, arguments, folder / "log")


class Fault:
    """What the proxy does instead of answering, named for messages."""

    def __init__(self, name: str, act: Callable[[Handler], None]) -> None:
        self.name, self.act = name, act

    def __repr__(self) -> str:
        return self.name


class Proxy(ThreadingHTTPServer):
    """Hands everything on to a server, but for `faults`, one per POST in order, and what the two hooks change.

    `on_request` may change a POST's body, or return a status and an object to answer with; `on_answer` may change the
    object that is answered to a path. `bodies` are those received, `most` how many were under way at once.
    """

    daemon_threads = True

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.behind = port
        self.faults: deque[Fault] = deque()
        self.at_opening: deque[Fault] = deque()
        self.made: list[str] = []
        self.bodies: list[dict[str, Any]] = []
        self.on_request: Callable[[str, dict[str, Any]], tuple[int, Any] | None] = lambda path, body: None
        self.on_answer: Callable[[str, Any], Any] = lambda path, said: said
        self.under_way = self.most = 0
        self.released = threading.Event()
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Broken connections are what this proxy is for."""


class Handler(BaseHTTPRequestHandler):
    server: Proxy
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""

    def do_GET(self) -> None:
        if self.server.at_opening:
            self._break(self.server.at_opening.popleft())
        else:
            self._hand_on(None)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.bodies.append(body)
            self.server.under_way += 1
            self.server.most = max(self.server.most, self.server.under_way)
            fault = self.server.faults.popleft() if self.server.faults else None
        try:
            if fault is not None:
                self._break(fault)
            elif (refusal := self.server.on_request(self.path, body)) is not None:
                self.say(refusal[0], json.dumps(refusal[1]).encode())
            else:
                self._hand_on(json.dumps(body).encode())
        finally:
            with self.server.lock:
                self.server.under_way -= 1

    def say(self, status: int, body: bytes, headers: dict[str, str] | None = None, length: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body) if length is None else length))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _break(self, fault: Fault) -> None:
        self.server.made.append(fault.name)
        fault.act(self)

    def _hand_on(self, body: bytes | None) -> None:
        behind = http.client.HTTPConnection("127.0.0.1", self.server.behind, timeout=120)
        kept = {name: self.headers[name] for name in ("Authorization", "Content-Type") if name in self.headers}
        behind.request(self.command, self.path, body, kept)
        answer = behind.getresponse()
        said = answer.read()
        behind.close()
        if answer.status == 200:
            said = json.dumps(self.server.on_answer(self.path, json.loads(said))).encode()
        self.say(answer.status, said)


def _reset(handler: Handler) -> None:
    """Closes at once with RST instead of FIN."""
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()
    handler.close_connection = True


def _truncated(handler: Handler) -> None:
    handler.say(200, b'{"choices": [{"text": "ha', length=400)
    handler.close_connection = True


def _error(status: int, headers: dict[str, str] | None = None) -> Callable[[Handler], None]:
    body = json.dumps({"error": {"message": f"made by the proxy: {status}"}}).encode()
    return lambda handler: handler.say(status, body, headers)


FAULTS = {
    fault.name: fault
    for fault in (
        Fault("429", _error(429, {"Retry-After": "1"})),
        Fault("500", _error(500)),
        Fault("503", _error(503)),
        Fault("reset", _reset),
        Fault("hang", lambda handler: handler.server.released.wait(60) and None),
        Fault("truncated", _truncated),
        Fault("not JSON", lambda handler: handler.say(200, b"{'choices': [")),
        Fault("no choices", lambda handler: handler.say(200, b'{"error": {"message": "upstream"}}')),
    )
}


@contextlib.contextmanager
def proxied(server: Server) -> Iterator[Proxy]:
    """A proxy before a server."""
    with Proxy(server.port) as proxy:
        thread = threading.Thread(target=proxy.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield proxy
        finally:
            proxy.released.set()
            proxy.shutdown()
            thread.join()
