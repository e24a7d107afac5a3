"""What the openai backend takes of a server: so many seconds, bytes and brackets, and the key in no form at all."""

from __future__ import annotations

import base64
import contextlib
import gzip
import json
import socket
import threading
import time
import urllib.parse
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytest.importorskip("httpx2", reason="HTTPX2 ABSENT: no server was asked (pip install 'anchoreval[openai]')")

from anchoreval.backends.openai_http import Link, NoAnswer, Refused
from anchoreval.backends.openai_key import Key
from anchoreval.backends.openai_wire import Unbounded, client, is_loopback, json_of
from anchoreval.errors import ModelError

KEY = "sk-proj/abc+DEF_0123456789"
GOOD = b'{"choices": [{"index": 0, "text": " 42", "finish_reason": "stop"}]}'
Send = Callable[[bytes], None]


@contextlib.contextmanager
def saying(say: Callable[[int, Send], None]) -> Iterator[str]:
    """A server that says what a test writes to its socket, given how often it was asked before; then it closes."""
    listener = socket.create_server(("127.0.0.1", 0))
    over = threading.Event()

    def serve() -> None:
        asked = 0
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(connection, asked), daemon=True).start()
            asked += 1

    def answer(connection: socket.socket, asked: int) -> None:
        with connection, contextlib.suppress(OSError):
            received = b""
            while b"\r\n\r\n" not in received:
                received += connection.recv(65536)
            head, _, body = received.partition(b"\r\n\r\n")
            length = next((int(x[15:]) for x in head.split(b"\r\n") if x.lower().startswith(b"content-length:")), 0)
            while len(body) < length:
                body += connection.recv(65536)
            requests.append(head)

            def send(data: bytes) -> None:
                if over.is_set():
                    raise OSError
                connection.sendall(data)

            say(asked, send)

    requests: list[bytes] = []
    threading.Thread(target=serve, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    finally:
        over.set()
        listener.close()


def head(status: str = "200 OK", **headers: str) -> bytes:
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([f"HTTP/1.1 {status}", "Content-Type: application/json", *lines, "", ""]).encode()


def whole(body: bytes, status: str = "200 OK", **headers: str) -> bytes:
    return head(status, Content_Length=str(len(body)), **headers) + body


@contextlib.contextmanager
def linked(url: str, patience_s: float = 0.2, timeout_s: float = 0.5) -> Iterator[Link]:
    link = Link(url, patience_s, timeout_s)
    try:
        yield link
    finally:
        link.close()


def posted(say: Callable[[int, Send], None], **bounds: float) -> Any:
    with saying(say) as url, linked(url, **bounds) as link:
        return link.post("/completions", {"prompt": "a"})


def dripping(first: bytes, drop: bytes) -> Callable[[int, Send], None]:
    def say(_: int, send: Send) -> None:
        send(first)
        while True:
            send(drop)
            time.sleep(0.05)

    return say


DRIPS = {
    "a status line": (b"HTTP/1.1 2", b"0"),
    "a header": (b"HTTP/1.1 200 OK\r\nX-A: ", b"a"),
    "headers": (b"HTTP/1.1 200 OK\r\n", b"X-A: a\r\n"),
    "a body": (head(), b" "),
    "a body of known length": (head(Content_Length="100000"), b" "),
    "chunks": (head(Transfer_Encoding="chunked"), b"1\r\n \r\n"),
    "informational answers": (b"", b"HTTP/1.1 102 Processing\r\n\r\n"),
    "a gzip": (head(Content_Encoding="gzip") + gzip.compress(b"")[:10], b"\0"),
    "nothing": (b"", b""),
}


@pytest.mark.parametrize("name", DRIPS)
def test_an_answer_that_drips_in_ends_with_the_time_for_all_of_it(name: str) -> None:
    before = time.monotonic()
    with pytest.raises(ModelError, match="no answer"):
        posted(dripping(*DRIPS[name]))
    assert time.monotonic() - before < 20  # on a busy machine; tries of 0.5 s within 0.2 s of patience


def packed(body: bytes, wbits: int) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, wbits)
    return packer.compress(body) + packer.flush()


PACKED = {
    "gzip": ("gzip", gzip.compress(GOOD)),
    "x-gzip": ("x-gzip", gzip.compress(GOOD)),
    "deflate": ("deflate", packed(GOOD, 15)),
    "raw deflate": ("deflate", packed(GOOD, -15)),
    "gzip twice": ("gzip, gzip", gzip.compress(gzip.compress(GOOD))),
    "two parts": ("gzip", gzip.compress(GOOD[:20]) + gzip.compress(GOOD[20:])),
    "identity": ("identity", GOOD),
}


@pytest.mark.parametrize("name", PACKED)
def test_a_packed_answer_is_unpacked(name: str) -> None:
    encoding, body = PACKED[name]
    said = posted(lambda _, send: send(whole(body, Content_Encoding=encoding)), timeout_s=10.0)
    assert said == json.loads(GOOD)


BOMB = b'{"choices": [{"text": "' + b"A" * 2**26 + b'"}]}'
LARGE = {
    "gzip": lambda: ("gzip", gzip.compress(BOMB, 1)),
    "deflate": lambda: ("deflate", zlib.compress(BOMB, 1)),
    "gzip in gzip": lambda: ("gzip, gzip", gzip.compress(gzip.compress(BOMB, 1))),
    "brotli": lambda: ("br", b"\x0b\x02\x80"),
    "an unknown one": lambda: ("zstd", b"(\xb5/\xfd"),
    "five times gzip": lambda: (", ".join(["gzip"] * 5), b"a"),
    "a cut gzip": lambda: ("gzip", gzip.compress(GOOD)[:-9]),
    "no gzip": lambda: ("gzip", GOOD),
}


@pytest.mark.parametrize("name", LARGE)
def test_an_answer_that_unpacks_to_more_than_any_is_or_not_at_all_is_none(name: str) -> None:
    encoding, body = LARGE[name]()
    with pytest.raises(ModelError, match="no answer") as caught:
        posted(lambda _, send: send(whole(body, Content_Encoding=encoding)), timeout_s=20.0, patience_s=0.01)
    assert "\n" not in str(caught.value)


def test_chunks_without_end_are_left_at_the_bound() -> None:
    chunk = b"100000\r\n" + b" " * 2**20 + b"\r\n"
    with pytest.raises(ModelError, match="an answer of more than"):
        posted(dripping(head(Transfer_Encoding="chunked"), chunk * 16), timeout_s=60.0, patience_s=0.01)


@pytest.mark.parametrize("length", [len(GOOD) - 9, len(GOOD) + 9, 10**15])
def test_a_length_that_is_no_length_is_no_answer(length: int) -> None:
    with pytest.raises(ModelError, match="no answer"):
        posted(lambda _, send: send(head(Content_Length=str(length)) + GOOD))


def test_nesting_is_bounded_and_brackets_in_texts_are_none() -> None:
    assert json_of(b'{"a": "' + b"[" * 1000 + b'\\"[", "b": [[[1]]]}')["b"] == [[[1]]]
    for body in (b"[" * 200 + b"]" * 200, b'{"a":' * 5000 + b"1" + b"}" * 5000, b"[" * 10**6):
        with pytest.raises(Unbounded, match="nested"):
            json_of(body)
    before = time.monotonic()
    with pytest.raises(ValueError):
        json_of(b'"' + b'\\"' * 2**20)  # a text without end, whose every character could begin one
    assert time.monotonic() - before < 20


def spelled(key: str) -> dict[str, str]:
    return {
        "as it is": key,
        "broken by a newline": f"{key[:9]}\n{key[9:]}",
        "broken in a text of a text": f"{key[:9]}\\n{key[9:]}",
        "one letter a line": "\n".join(key),
        "in an address": urllib.parse.quote(key, safe=""),
        "all of it in an address": "".join(f"%{ord(letter):02x}" for letter in key),
        "as escapes": "".join(f"\\u{ord(letter):04x}" for letter in key),
        "as entities": "".join(f"&#{ord(letter)};" for letter in key),
        "with hidden characters": "\u200b".join(key),
        "basic": base64.b64encode(f":{key}".encode()).decode(),
        "basic of a user": base64.b64encode(f"me:{key}".encode()).decode(),
        "base64": base64.b64encode(key.encode()).decode(),
        "base64 of an address": base64.urlsafe_b64encode(f"Bearer {key}".encode()).decode(),
        "base64 in lines": base64.encodebytes(f"Host: a.example.org\nAuthorization: Bearer {key}".encode()).decode(),
    }


@pytest.mark.parametrize("how", spelled(KEY))
def test_a_key_is_hidden_however_it_is_said_back(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANCHOREVAL_API_KEY", KEY)
    said = spelled(KEY)[how]
    hidden = Key(KEY).hide(f"you sent {said}, which is wrong")
    assert hidden.startswith("you sent ") and hidden.endswith(", which is wrong") and "***" in hidden
    left = "".join(hidden.split()).removeprefix("yousent").removesuffix(",whichiswrong").replace("***", "")
    assert len(left) < 64 and KEY[:6] not in left  # what is left of base64 holds `Authorization: Bearer`
    for body in (json.dumps({"error": {"message": f"no: {said}"}}).encode(), f"<p>{said}".encode()):
        with saying(lambda _, send, body=body: send(whole(body, "400 Bad"))) as url, linked(url) as link:
            with pytest.raises(Refused) as caught:
                link.post("/completions", {"prompt": "a"})
            assert "***" in str(caught.value) and KEY not in str(caught.value)
    answer = json.dumps({"id": said, "choices": [{"text": said}]}).encode()
    assert "***" in posted(lambda _, send: send(whole(answer)), timeout_s=10.0)["choices"][0]["text"]


def test_a_short_key_is_no_secret_and_hides_no_word_of_an_answer() -> None:
    assert Key("EMPTY").hidden({"text": "EMPTY"}) == {"text": "EMPTY"} and "EMPTY" not in Key("EMPTY").hide("is EMPTY")
    assert KEY not in repr(Key(KEY))


def test_an_address_that_holds_the_key_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with linked("http://127.0.0.1:1/v1") as link:
        with pytest.raises(ModelError, match="holds the key in") as caught:
            link.require_no_key(f"http://a/{urllib.parse.quote(KEY, safe='')}/v1 m")
        assert KEY not in str(caught.value)
        link.require_no_key("http://a/v1 m")


@pytest.mark.parametrize(
    ("host", "here"),
    [
        ("localhost", True), ("LOCALHOST.", True), ("a.localhost", True), ("127.0.0.1", True), ("127.9.8.7", True),
        ("127.1", True), ("::1", True), ("[::1]", True), ("::ffff:127.0.0.1", True), ("0.0.0.0", True),
        ("localhost.example.org", False), ("10.0.0.1", False), ("128.0.0.1", False), ("example.org", False),
        ("127.0.0.1.example.org", False), ("fe80::1", False),
    ],
)  # fmt: skip
def test_this_machine_is_reached_past_the_proxies_of_the_environment(
    host: str, here: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert is_loopback(host) == here
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    made = client(f"http://{f'[{host}]' if ':' in host and '[' not in host else host}:8000/v1", 1.0, 1.0)
    assert (not made._mounts) == here
    made.close()


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "307 Temporary", "308 Permanent"])
def test_a_redirect_to_another_host_is_named_and_not_followed(status: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with saying(lambda _, send: send(whole(GOOD))) as other:
        elsewhere = other.replace("127.0.0.1", "localhost") + "/completions"
        with pytest.raises(Refused, match=r"leads to http://localhost.* name it in --base-url"):
            posted(lambda _, send: send(whole(b"", status, Location=elsewhere)), timeout_s=10.0)


def test_a_redirect_on_the_same_host_is_followed_a_few_times() -> None:
    def once(asked: int, send: Send) -> None:
        send(whole(GOOD) if asked else whole(b"", "308 Permanent", Location="/v1/completions/", Connection="close"))

    assert posted(once, timeout_s=10.0) == json.loads(GOOD)
    with pytest.raises(Refused, match="leads to /again"):
        posted(lambda _, send: send(whole(b"", "307 Again", Location="/again", Connection="close")), timeout_s=10.0)


@pytest.mark.parametrize("after", ["86400", "inf", "nan", "-5", "Fri, 31 Dec 9999 23:59:59 GMT", "soon"])
def test_a_server_that_wants_to_be_asked_again_in_a_day_is_waited_for_as_long_as_patience(after: str) -> None:
    before = time.monotonic()
    with pytest.raises(ModelError, match=r"no answer within 0.3 s \(patience_s\): HTTP 429"):
        posted(lambda _, send: send(whole(b"{}", "429 Busy", Retry_After=after)), patience_s=0.3, timeout_s=10.0)
    assert time.monotonic() - before < 20


def test_another_failure_than_being_busy_is_tried_a_few_times() -> None:
    asked = []
    with pytest.raises(ModelError, match="no answer in 5 tries: HTTP 502"):
        posted(lambda n, send: (asked.append(n), send(whole(b"{}", "502 Bad")))[1], patience_s=600.0, timeout_s=10.0)
    assert len(asked) == 5


def test_what_a_server_need_not_have_is_a_fact_after_three_tries() -> None:
    with saying(lambda _, send: send(whole(b"oh", "503 Busy"))) as url, linked(url, 600.0, 10.0) as link:
        with pytest.raises(NoAnswer) as caught:
            link.get(f"{url}/models")
        assert caught.value.why == "HTTP 503: oh" and link.aside(f"{url}/props") is None


@pytest.mark.parametrize(
    "text", ["s" + "\\" * 5000, "\\" * 50_000, "s\\n" * 20_000, "s" + " " * 50_000, "sk-proj/" * 9000]
)
def test_a_key_is_looked_for_in_no_time_whatever_a_server_says(text: str) -> None:
    before = time.process_time()
    assert Key(KEY).hide(text) == text
    assert time.process_time() - before < 5


@pytest.mark.parametrize("status", ["301 Moved", "304 Not Modified", "307 Again"])
def test_a_redirect_to_nowhere_is_refused_in_one_line(status: str) -> None:
    with pytest.raises(Refused, match="leads to nowhere"):
        posted(lambda _, send: send(whole(b"", status)), timeout_s=10.0)
