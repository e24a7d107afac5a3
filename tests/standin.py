"""A stand-in for a server with OpenAI's interface, in this process: answers what a test says, and counts as it says."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from anchoreval.tokenizer import load_tokenizer

TINY = Path(__file__).parents[1] / "models" / "anchor-tiny"
TOKENIZER = load_tokenizer(TINY)
NAME = "m"
TEMPLATE_TOKENS = 7  # that its chat template puts around a turn
_PROBE = "another purple"  # what the backend asks when it opens ends so
Said = dict[str, Any]


@dataclass
class Rules:
    """What a stand-in does; `change` may change an answer, or return a status and anything to send instead."""

    change: Callable[[Said, Said], tuple[int, Any] | None] = lambda body, said: None
    #: By path: objects that GET and POST beside the interface answer with, or a status and anything.
    pages: dict[str, Any] = field(default_factory=dict)
    interfaces: tuple[str, ...] = ("/v1/completions", "/v1/chat/completions")
    heeds_template_args: bool = True
    row: Said = field(default_factory=dict)  # more of its model's row
    at_opening: bool = False  # whether `change` sees what is asked when the backend opens
    token_prompts: bool = True
    bodies: list[Said] = field(default_factory=list)  # without those of the opening
    asked: list[str] = field(default_factory=list)  # paths beside /v1/completions and /v1/chat/completions


def prompt_of(body: Said) -> str:
    """The text that a body asks to continue."""
    prompt = body["messages"][-1]["content"] if "messages" in body else body["prompt"]
    return prompt if isinstance(prompt, str) else TOKENIZER.decode(prompt)


def tokens_of(body: Said) -> int:
    """The tokens of a body's prompt as a good server counts them."""
    if "messages" in body:
        return TOKENIZER.count(prompt_of(body)) + TEMPLATE_TOKENS + len(body.get("chat_template_kwargs", ()))
    prompt = body["prompt"]
    return len(prompt) if isinstance(prompt, list) else len(TOKENIZER.encode(prompt, special_tokens=True))


def answer_of(body: Said) -> Said:
    """A good answer."""
    content: Said = {"message": {"role": "assistant", "content": " 42."}} if "messages" in body else {"text": " 42."}
    usage = {"prompt_tokens": tokens_of(body), "completion_tokens": 3}
    return {"choices": [{"index": 0, "finish_reason": "stop"} | content], "usage": usage}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing."""

    def do_GET(self) -> None:
        rules = self.server.rules
        rules.asked.append(self.path)
        pages = {"/v1/models": {"data": [{"id": NAME, "owned_by": "someone"} | rules.row]}} | rules.pages
        self._say(*self._page(pages))

    def do_POST(self) -> None:
        rules, body = self.server.rules, json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path not in rules.interfaces:
            rules.asked.append(self.path)
            return self._say(*self._page(rules.pages))
        if not rules.token_prompts and isinstance(body.get("prompt"), list):
            return self._say(400, {"error": {"message": "prompt must be a string"}})
        opening = prompt_of(body).rstrip().endswith(_PROBE)
        said = answer_of(body if rules.heeds_template_args else {k: v for k, v in body.items() if "kwargs" not in k})
        if not opening:
            rules.bodies.append(body)
        other = rules.change(body, said) if rules.at_opening or not opening else None
        self._say(*(other or (200, said)))

    def _page(self, pages: dict[str, Any]) -> tuple[int, Any]:
        page = pages.get(self.path, (404, {"detail": "Not Found"}))
        return page if isinstance(page, tuple) else (200, page)

    def _say(self, status: int, said: Any) -> None:
        body = said if isinstance(said, bytes) else json.dumps(said).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    rules: Rules

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Broken connections are the test's own."""


@contextlib.contextmanager
def standing_in(rules: Rules) -> Iterator[str]:
    """The address of a stand-in, up to /v1."""
    with _Server(("127.0.0.1", 0), _Handler) as server:
        server.rules = rules
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/v1"
        finally:
            server.shutdown()
            thread.join()
