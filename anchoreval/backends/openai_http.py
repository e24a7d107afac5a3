"""JSON over HTTP to one address: waits for a server that starts, tries again where that helps, gives no key away.

Tried again, after a pause that grows and is drawn at random: refused and broken connections, timeouts, HTTP 408, 425,
429 and 5xx, and answers that are not whole. What the server refuses for good comes back at once as `Refused`; a request
that a server which answers others does not answer ends as `NoAnswer`.
"""

from __future__ import annotations

import json
import os
import random
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, NoReturn

import httpx2

from anchoreval.backends.openai_message import one_line
from anchoreval.errors import ModelError
from anchoreval.schema import Json

KEYS = ("ANCHOREVAL_API_KEY", "OPENAI_API_KEY")  # the first that is set is sent
_PASSING = {408, 425, 429}  # beside 5xx
_STATUSES = frozenset(map(str, range(400, 600)))
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 20.0
_CONNECT_S = 10.0
_IDLE_S = 2.0  # servers close idle connections after 5 s: what is sent at that moment fails
_SHOWN = 240  # characters of a server's message
_TRIES = 5  # of one request, where a server that answers others says nothing that is an answer
_FAILED_ON = 3  # requests in a row: with one more it is the server that fails, and the run waits for another day
_ASIDE_S, _ASIDE_BYTES = 3.0, 2**24  # for what a server need not have
_SEARCHED = 4000  # characters of it that are looked at
_TOO_LONG = re.compile(
    r"context[_ ](length|size|window)|maximum (context|model|sequence|input) |max_(total|input|new)_tokens"
    r"|max_model_len|(prompt|input|request)( is)? too (long|large)|too many tokens",
    re.IGNORECASE,
)


class Refused(ModelError):
    """A request that the server will not take however often it is asked; `status` is that of HTTP.

    `too_long` says whether it refuses for want of room.
    """

    def __init__(self, message: str, status: int, too_long: bool = False) -> None:
        super().__init__(message)
        self.status, self.too_long = status, too_long


class NoAnswer(ModelError):
    """A request that gets no answer from a server that has answered others."""


class _Passing(Exception):
    """What may be different the next time, and after how many seconds the server wants to be asked again.

    `whole`: it came with HTTP 200 and all of its bytes; `spoke`: the server itself said that it failed.
    """

    def __init__(self, message: str, after_s: float = 0.0, *, whole: bool = False, spoke: bool = False) -> None:
        super().__init__(message)
        self.after_s, self.whole, self.spoke = after_s, whole, spoke or whole


class Link:
    """One address and what is sent along with each request; used by many threads at once.

    `confirm`, where it is set, is called once whenever an answer came over a new connection, before that answer is
    handed on: behind it may be another server than before. `quit` ends all pauses: what waits then fails.
    """

    def __init__(self, url: str, patience_s: float, timeout_s: float) -> None:
        self.address = _checked(url)
        self.confirm: Callable[[], None] | None = None
        self.quit = threading.Event()
        self._key = _key()
        self._patience_s = patience_s
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        timeout = httpx2.Timeout(timeout_s, connect=_CONNECT_S)
        limits = httpx2.Limits(max_connections=None, keepalive_expiry=_IDLE_S)
        self._client = httpx2.Client(headers=headers, timeout=timeout, limits=limits)
        self._lock, self._confirming = threading.Lock(), threading.Lock()
        self._connections = self._confirmed = 0
        self._waiting = False  # told that the server cannot be reached
        self._answered, self._failed_on = False, 0  # whether an answer ever came; requests that got none since
        self._noticed: Counter[str] = Counter()

    def get(self, url: str) -> tuple[Json, Mapping[str, str]]:
        """The JSON at a whole address and the headers that came with it; `Refused`, `ModelError`."""
        return self._patiently(lambda: self._once("GET", url, None))

    def aside(self, url: str, body: Json = None) -> Json:
        """The JSON at a whole address, None where there is none; asked once and briefly, posted with a body."""
        method, until, content = "GET" if body is None else "POST", time.monotonic() + _ASIDE_S, bytearray()
        try:
            with self._client.stream(method, url, json=body, timeout=_ASIDE_S) as answer:
                for chunk in answer.iter_bytes() if answer.is_success else ():
                    content += chunk
                    if len(content) > _ASIDE_BYTES or time.monotonic() > until:
                        return None
            return json.loads(content)
        except (httpx2.RequestError, ValueError, RecursionError):
            return None

    def tell(self, text: str) -> None:
        """A line on stderr."""
        sys.stderr.write(f"{text}\n")

    def notice(self, kind: str, text: str) -> None:
        """A line on stderr about the first request of its kind; `close` says how many there were."""
        with self._lock:
            self._noticed[kind] += 1
            first = self._noticed[kind] == 1
        if first:
            self.tell(text)

    def post(self, path: str, body: Json) -> dict[str, Any]:
        """What is answered to `body` by the server that was there before, with `choices`.

        `Refused` and `NoAnswer` are of this request alone, `ModelError` of the server.
        """
        try:
            said, _ = self._patiently(lambda: self._once("POST", f"{self.address}{path}", body))
        except (Refused, NoAnswer):
            self._confirm()
            raise
        self._confirm()
        answered: dict[str, Any] = said
        return answered

    def clean(self, said: object) -> str:
        """What a server said as one short line, in which the key does not stand."""
        text = one_line(said, _SEARCHED)
        return (text.replace(self._key, "***") if self._key else text)[:_SHOWN]

    def close(self) -> None:
        """Closes all connections, and says of how many requests there was a notice."""
        with self._lock:
            many, self._noticed = {kind: times for kind, times in self._noticed.items() if times > 1}, Counter()
        for kind, times in many.items():
            self.tell(f"{kind}: {times} requests")
        self.quit.set()
        self._client.close()

    def _confirm(self) -> None:
        with self._confirming:
            connections = self._connections
            if self.confirm is not None and connections != self._confirmed:
                self.confirm()
                self._confirmed = connections

    def _patiently(self, ask: Callable[[], tuple[Json, Mapping[str, str]]]) -> tuple[Json, Mapping[str, str]]:
        """What `ask` gives, tried again until `patience_s` have gone by since it first failed."""
        since: float | None = None
        tries = 0
        while True:
            try:
                given = ask()
            except _Passing as trouble:
                if self.quit.is_set():
                    raise ModelError(f"{self.address}: given up, {trouble}") from trouble
                since = since or time.monotonic()
                if trouble.whole and self._answered and tries + 1 >= _TRIES:
                    raise NoAnswer(f"{self.address}: no answer in {_TRIES} tries: {trouble}") from trouble
                pause = max(
                    trouble.after_s, random.uniform(0, min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** min(tries, 10)))
                )
                if time.monotonic() + pause - since > self._patience_s:
                    text = f"{self.address}: no answer within {self._patience_s:g} s (patience_s): {trouble}"
                    raise (NoAnswer if self._is_of_one_request(trouble) else ModelError)(text) from trouble
                self._say_waiting(trouble)
                tries += 1
                self.quit.wait(pause)
            else:
                self._waiting = False
                return given

    def _is_of_one_request(self, trouble: _Passing) -> bool:
        """Whether the server is there and failed on this request: it spoke, and did not so on many in a row."""
        with self._lock:
            self._failed_on += trouble.spoke
            return trouble.spoke and self._answered and self._failed_on <= _FAILED_ON

    def _say_waiting(self, trouble: _Passing) -> None:
        with self._lock:
            said, self._waiting = self._waiting, True
        if not said:
            sys.stderr.write(f"waiting up to {self._patience_s:g} s for {self.address}: {trouble}\n")

    def _once(self, method: str, url: str, body: Json) -> tuple[Json, Mapping[str, str]]:
        """One request; `_Passing` where it may succeed later."""
        try:
            answer = self._client.request(method, url, json=body, extensions={"trace": self._count})
        except httpx2.RequestError as error:
            raise _Passing(f"{type(error).__name__} {self.clean(error)}".strip()) from error
        if not answer.is_success:
            self._refuse(url, answer.status_code, answer)
        try:
            said = json.loads(answer.content)
        except (ValueError, RecursionError) as error:
            if method == "POST" or "json" in answer.headers.get("content-type", ""):
                raise _Passing(f"not JSON: {self.clean(answer.text)}", whole=True) from error
            raise Refused(f"{url} is not JSON: {self.clean(answer.text)}", answer.status_code) from error
        if method == "POST":
            if not _has_choices(said):  # routers put errors of those behind them into a 200
                if (status := _status_inside(said)) is not None:
                    self._refuse(url, status, answer)
                raise _Passing(f"no choices: {self.clean(said)}", whole=True)
            self._answered, self._failed_on = True, 0
        return said, answer.headers

    def _refuse(self, url: str, status: int, answer: httpx2.Response) -> NoReturn:
        """What an HTTP status that is no success means: `_Passing`, `Refused`, or `ModelError` for the whole run."""
        if status in _PASSING or status >= 500:
            raise _Passing(f"HTTP {status}: {self._message(answer)}", _retry_after(answer), spoke=True)
        if status == 401 or (status == 403 and not self._answered):  # later, 403 is what a filter says of a prompt
            raise ModelError(self._unauthorised(status, answer))
        too_long = _TOO_LONG.search(answer.text[:_SEARCHED]) is not None
        raise Refused(f"{url} refuses with HTTP {status}: {self._message(answer)}", status, too_long)

    def _count(self, event: str, _: object) -> None:
        if event == "connection.connect_tcp.complete":
            with self._lock:
                self._connections += 1

    def _message(self, answer: httpx2.Response) -> str:
        """The server's own words out of an error of OpenAI's form, else the body."""
        try:
            said = json.loads(answer.content)["error"]
            return self.clean(said["message"] if isinstance(said, dict) else said)
        except (ValueError, KeyError, TypeError, RecursionError):
            return self.clean(answer.text) or answer.reason_phrase

    def _unauthorised(self, status: int, answer: httpx2.Response) -> str:
        used = next((name for name in KEYS if os.environ.get(name)), None)
        fix = f"the key in {used} is not taken" if used else f"put the key in the environment variable {KEYS[1]}"
        return f"{self.address}: HTTP {status}: {self._message(answer)}: {fix}"


def _key() -> str:
    """The key of the environment, empty where there is none."""
    for name in KEYS:
        if key := os.environ.get(name, "").strip():
            if not (key.isascii() and key.isprintable() and " " not in key):
                raise ModelError(f"the key in {name} holds characters that no HTTP header takes")
            return key
    return ""


def _checked(url: str) -> str:
    """The address without a slash at its end; `ModelError` for one that is none or that holds credentials."""
    try:
        parsed = httpx2.URL(url)
    except httpx2.InvalidURL as error:
        raise ModelError("--base-url is no address: http://127.0.0.1:8000/v1 is one") from error
    if parsed.userinfo or parsed.query or parsed.fragment:
        raise ModelError(f"--base-url holds more than an address: put a key in the environment variable {KEYS[1]}")
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ModelError(f"--base-url {url!r} is no address: http://127.0.0.1:8000/v1 is one")
    return str(parsed).rstrip("/")


def _has_choices(said: Json) -> bool:
    choices = said.get("choices") if isinstance(said, dict) else None
    return isinstance(choices, list) and bool(choices) and isinstance(choices[0], dict)


def _status_inside(said: Json) -> int | None:
    """The HTTP status of an error that came with HTTP 200, None where it names none."""
    error = said.get("error") if isinstance(said, dict) else None
    code = error.get("code", error.get("status")) if isinstance(error, dict) else None
    return int(code) if isinstance(code, int | str) and str(code) in _STATUSES else None


def _retry_after(answer: httpx2.Response) -> float:
    """The seconds of a Retry-After header, which may hold a date; 0 where there is none."""
    said = answer.headers.get("retry-after", "").strip()
    try:
        return max(0.0, float(said))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(said) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return 0.0
