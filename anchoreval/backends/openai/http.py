"""JSON over HTTP to one address. It waits for a server that starts, retries if that can help, and leaks no key.

It waits, with random and growing pauses, for refused connections, HTTP 429 and 503. It tries a few times: broken
connections, answers that are late or not whole, other statuses from 500 upwards, 408 and 425. What the server refuses
for good comes back at once as `Refused`. A request that gets no answer, from a server that answers others, ends as
`NoAnswer`. Redirects are followed on the host that was asked, and nowhere else.
"""

from __future__ import annotations

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
from functools import partial
from typing import Any, NoReturn

import httpx2

from anchoreval.backends.openai.key import KEYS, key_of_environment
from anchoreval.backends.openai.message import one_line
from anchoreval.backends.openai.wire import Unbounded, client, content_of, json_of, within
from anchoreval.errors import ModelError
from anchoreval.schema import Json

_BUSY, _WAITED, _TRIED = frozenset({429}), frozenset({429, 503}), {408, 425}  # beside the other 5xx, which are tried
_STATUSES = frozenset(map(str, range(400, 600)))
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 20.0
_LONGEST_RETRY_AFTER_S = 60.0
_CONNECT_S = 10.0
_IDLE_S = 2.0  # servers close idle connections after 5 s: what is sent at that moment fails
_SHOWN = 240  # characters of a server's message
_TRIES = 5  # of one request; where a server that answers others says nothing that is an answer, it is lost
_OPTIONAL_TRIES = 3  # of what a server need not have: a fact, whatever it is
_FAILED_ON = 3  # requests in a row: with one more it is the server that fails, and the run waits for another day
_HOPS = 3  # redirects of one request
_ASIDE_S, _OPTIONAL_S = 3.0, 60.0
_BASE_BYTES, _PER_BYTE = 2**25, 128  # of an answer: log-probabilities of a token take a hundred bytes and more
_GET_BYTES, _ERROR_BYTES = 2**24, 2**16
_SEARCHED = 4000  # characters of it that are looked at
_TOO_LONG = re.compile(
    r"context[_ ](length|size|window)|maximum (context|model|sequence|input) |max_(total|input|new)_tokens"
    r"|max_model_len|(prompt|input|request)( is)? too (long|large)|too many tokens",
    re.IGNORECASE,
)
_SECRETS = re.compile(r"key|token|secret|sig|pass|auth|code|cred", re.IGNORECASE)  # names in an address that hold one


class Refused(ModelError):
    """A request that the server will not take however often it is sent; `status` is the HTTP status.

    `too_long` says whether it refuses for want of room.
    """

    def __init__(self, message: str, status: int, too_long: bool = False) -> None:
        super().__init__(message)
        self.status, self.too_long = status, too_long


class NoAnswer(ModelError):
    """A request that gets no answer from a server that has answered others; `why` is the last reason alone."""

    def __init__(self, message: str, why: str = "", whole: bool = False) -> None:
        super().__init__(message)
        self.why, self.whole = why or message, whole


class Unauthorised(ModelError):
    """A key that the server does not accept, or a missing key."""


class _Passing(Exception):
    """A failure that may pass, and after how many seconds the server wants to be asked again.

    `status`: the HTTP status if it is no success; `away`: no server is there; `whole`: a response came with HTTP 200,
    but holds no answer; `spoke`: the server was there, and failed on this request.
    """

    def __init__(
        self,
        message: str,
        after_s: float = 0.0,
        *,
        status: int | None = None,
        away: bool = False,
        whole: bool = False,
        spoke: bool = False,
    ) -> None:
        super().__init__(message)
        self.after_s, self.status, self.away = after_s, status, away
        self.whole, self.spoke = whole, spoke or whole or status is not None


class Link:
    """One address and what is sent along with each request; used by many threads at once.

    `confirm`, if set, is called once whenever an answer came over a new connection, before that answer is handed on:
    another server may now be there. `quit` ends all pauses: whatever waits then fails.
    """

    def __init__(self, url: str, patience_s: float, timeout_s: float) -> None:
        self.key = key_of_environment()
        self.address, self.left_out = _checked(url)
        self.confirm: Callable[[], None] | None = None
        self.quit = threading.Event()
        self._patience_s, self._timeout_s = patience_s, timeout_s
        self._client = _opened(self.address)
        self._lock, self._confirming = threading.Lock(), threading.Lock()
        self._connections = self._confirmed = 0
        self._waiting = False  # told that the server cannot be reached
        self._answered, self._failed_on = False, 0  # whether an answer ever came; requests that got none since
        self._noticed: Counter[str] = Counter()

    def get(self, url: str) -> tuple[Json, Mapping[str, str]]:
        """Return the JSON at a whole address, and the headers that came with it. A server need not have this address.

        `Refused` and `NoAnswer` say what it answers instead, ModelError that no server is there.
        """
        ask = partial(self._once, "GET", url, None, min(self._timeout_s, _OPTIONAL_S))
        return self._patiently(ask, frozenset(), optional=True)

    def aside(self, url: str, body: Json = None) -> Json:
        """Return the JSON at a whole address, None without one; ask once and briefly, by POST if there is a body."""
        try:
            return self._once("GET" if body is None else "POST", url, body, _ASIDE_S, choices=False)[0]
        except (ModelError, _Passing):
            return None

    def require_no_key(self, given: str) -> None:
        """Raise ModelError if `given`, which ends up in headers and names of folders, holds the key."""
        if self.key.hide_secret(given) != given:
            used = next((name for name in KEYS if os.environ.get(name)), KEYS[1])
            raise ModelError(f"--base-url, --model or --tokenizer holds the key in {used}: leave it out of them")

    def tell(self, text: str) -> None:
        """Write a line to stderr."""
        sys.stderr.write(f"{text}\n")

    def notice(self, kind: str, text: str) -> None:
        """Write a line to stderr about the first request of its kind; `close` says how many there were."""
        with self._lock:
            self._noticed[kind] += 1
            first = self._noticed[kind] == 1
        if first:
            self.tell(text)

    def post(self, path: str, body: Json, optional: bool = False) -> dict[str, Any]:
        """Return the answer to `body`, with `choices`, from the server that was there before.

        `Refused` and `NoAnswer` concern this request alone, `ModelError` the server. `optional` marks what a server
        need not take: it is tried fewer times.
        """
        ask = partial(self._once, "POST", f"{self.address}{path}", body, self._timeout_s)
        try:
            said, _ = self._patiently(ask, _BUSY if optional else _WAITED, optional)
        except (Refused, NoAnswer):
            self._confirm()
            raise
        self._confirm()
        answered: dict[str, Any] = said
        return answered

    def seek(self, path: str, body: Json, optional: bool = False) -> dict[str, Any]:
        """Return the answer to `body` while it is not yet known whether a server is at this address.

        `Refused`, and `NoAnswer` for a response that is no answer of this interface, say that there is none.
        """
        ask = partial(self._once, "POST", f"{self.address}{path}", body, self._timeout_s)
        said: dict[str, Any]
        said, _ = self._patiently(ask, _WAITED, optional, seeking=True)
        return said

    def clean(self, said: object) -> str:
        """Return what a server said as one short line without the key."""
        text = self.key.hide(said if isinstance(said, str) else one_line(said, _ERROR_BYTES))
        return self.key.hide(one_line(text, _SEARCHED))[:_SHOWN]

    def close(self) -> None:
        """Close all connections, and say how many requests each notice concerned."""
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

    def _patiently(
        self,
        ask: Callable[[], tuple[Json, Mapping[str, str]]],
        waited: frozenset[int],
        optional: bool,
        seeking: bool = False,
    ) -> tuple[Json, Mapping[str, str]]:
        """Return the result of `ask`, tried again until `patience_s` have passed since it first failed.

        A server that is away, or answers with a status in `waited`, is waited for that long. Anything else is tried a
        few times; a response that is no answer is tried only once while `seeking`.
        """
        since: float | None = None
        tries, failed, most = 0, 0, _OPTIONAL_TRIES if optional else _TRIES
        while True:
            try:
                given = ask()
            except _Passing as trouble:
                if self.quit.is_set():
                    raise ModelError(f"{self.address}: given up, {trouble}") from trouble
                since = since or time.monotonic()
                waits = trouble.away or trouble.status in waited
                tries, failed = tries + 1, failed + (not waits)
                left = self._patience_s - (time.monotonic() - since)
                if failed >= most or left <= 0 or (seeking and trouble.whole):
                    limit = f"within {self._patience_s:g} s (patience_s)" if failed < most else f"in {failed} tries"
                    text = f"{self.address}: no answer {limit}: {trouble}"
                    fact = (optional and not trouble.away) or (seeking and trouble.whole)
                    if fact or self._is_of_one_request(trouble):
                        raise NoAnswer(text, str(trouble), trouble.whole) from trouble
                    raise ModelError(text) from trouble
                if waits or not optional:
                    self._say_waiting(trouble, waits)
                growing = random.uniform(0, min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** min(tries - 1, 10)))
                longest = _LONGEST_PAUSE_S if optional else _LONGEST_RETRY_AFTER_S
                self.quit.wait(max(0.0, min(max(min(trouble.after_s, longest), growing), left)))
            else:
                self._waiting = False
                return given

    def _is_of_one_request(self, trouble: _Passing) -> bool:
        """Return whether the server is there and failed on this request: it spoke, and not many in a row failed so."""
        with self._lock:
            self._failed_on += trouble.spoke and not trouble.whole
            return self._answered and (trouble.whole or (trouble.spoke and self._failed_on <= _FAILED_ON))

    def _say_waiting(self, trouble: _Passing, waits: bool) -> None:
        with self._lock:
            said, self._waiting = self._waiting, True
        if not said:
            how = f"waiting up to {self._patience_s:g} s for" if waits else "trying again:"
            self.tell(f"{how} {self.address}: {trouble}")

    def _once(
        self, method: str, url: str, body: Json, seconds: float, choices: bool = True
    ) -> tuple[Json, Mapping[str, str]]:
        """Send one request; raise `_Passing` if it may succeed later."""
        try:
            with within(seconds):
                answer, content = self._received(method, url, body)
        except httpx2.RequestError as error:
            raise self._broken(error) from error
        except Unbounded as error:
            raise _Passing(f"{error}", whole=True) from error
        except ValueError as error:
            raise _Passing(f"not an answer: {self.clean(str(error))}", spoke=True) from error
        if not answer.is_success:
            self._refuse(url, answer.status_code, answer, content)
        return self._read(method, url, answer, content, choices), self._headers(answer)

    def _received(self, method: str, url: str, body: Json) -> tuple[httpx2.Response, bytes]:
        """Return the response to one request and its body, after redirects on the same host."""
        content = b"" if body is None else httpx2.Request(method, url, json=body).read()
        headers = self.key.headers | ({"Content-Type": "application/json"} if content else {})
        most = _BASE_BYTES + _PER_BYTE * len(content) if method == "POST" else _GET_BYTES
        for hop in range(_HOPS + 1):
            request = self._client.build_request(
                method, url, content=content or None, headers=headers, extensions={"trace": self._count}
            )
            answer = self._client.send(request, stream=True)
            try:
                if answer.has_redirect_location and (onwards := self._onwards(method, answer)) and hop < _HOPS:
                    url = onwards
                    continue
                failed = not answer.is_success
                return answer, content_of(answer, _ERROR_BYTES if failed else most, cut=failed)
            finally:
                answer.close()
        raise AssertionError("the last hop is answered")

    def _onwards(self, method: str, answer: httpx2.Response) -> str:
        """Return the address of a redirect if the same may be asked there: the same host, no less secure; else ""."""
        try:
            here, there = answer.request.url, answer.request.url.join(answer.headers["location"])
        except (httpx2.InvalidURL, ValueError):
            return ""
        same = here.host == there.host and (here.scheme == there.scheme or there.scheme == "https")
        same = same and (here.port == there.port or here.scheme != there.scheme) and not there.userinfo
        return str(there) if same and (method == "GET" or answer.status_code in (307, 308)) else ""

    def _broken(self, error: httpx2.RequestError) -> _Passing:
        """Return what it means that a connection cannot be made, or breaks."""
        text = f"{type(error).__name__} {self.clean(str(error))}".strip()
        apart = isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout)
        refused = any(isinstance(each, ConnectionRefusedError) for each in _causes(error))
        return _Passing(text, away=apart and (refused or self._answered), spoke=isinstance(error, httpx2.ReadTimeout))

    def _read(self, method: str, url: str, answer: httpx2.Response, content: bytes, choices: bool) -> Json:
        """Return the JSON of a response with HTTP 200."""
        try:
            said = self.key.hidden(json_of(content))
        except (Unbounded, ValueError) as error:
            what = f"{error}" if isinstance(error, Unbounded) else f"not JSON: {self._shown(content)}"
            if method == "POST" or "json" in answer.headers.get("content-type", ""):
                raise _Passing(what, whole=True) from error
            raise Refused(f"{url} is {what}", answer.status_code) from error
        if method == "POST" and choices:
            if not _has_choices(said):  # routers put errors of those behind them into a 200
                if (status := _status_inside(said)) is not None:
                    self._refuse(url, status, answer, content)
                raise _Passing(f"no choices: {self.clean(said)}", whole=True)
            self._answered, self._failed_on = True, 0
        return said

    def _headers(self, answer: httpx2.Response) -> Mapping[str, str]:
        return {name.lower(): self.key.hide(value) for name, value in answer.headers.items()}

    def _refuse(self, url: str, status: int, answer: httpx2.Response, content: bytes) -> NoReturn:
        """Raise what an HTTP status other than success means: `_Passing`, `Refused`, or `ModelError` for the run."""
        said = self._message(answer, content)
        if status in _WAITED or status in _TRIED or (status >= 500 and status != 501):
            after_s = _retry_after(answer)
            raise _Passing(f"HTTP {status}: {said}", after_s, status=status)
        posted = answer.request.method == "POST"
        if posted and (status == 401 or (status == 403 and not self._answered)):  # later, a filter says 403 of a prompt
            raise Unauthorised(self._unauthorised(status, said))
        if 300 <= status < 400:
            where = self.clean(answer.headers.get("location", "nowhere"))
            raise Refused(
                f"{url} leads to {where} (HTTP {status}), where nothing is sent: name it in --base-url", status
            )
        too_long = _TOO_LONG.search(content[:_SEARCHED].decode("utf-8", "replace")) is not None
        raise Refused(f"{url} refuses with HTTP {status}: {said}", status, too_long)

    def _count(self, event: str, _: object) -> None:
        if event == "connection.connect_tcp.complete":
            with self._lock:
                self._connections += 1

    def _message(self, answer: httpx2.Response, content: bytes) -> str:
        """Return the server's own words from an error of OpenAI's form, else the body."""
        try:
            said = json_of(content)["error"]
            return self.clean(said["message"] if isinstance(said, dict) else said)
        except (Unbounded, ValueError, KeyError, TypeError):
            return self._shown(content) or self.clean(answer.reason_phrase)

    def _shown(self, content: bytes) -> str:
        return self.clean(content[:_ERROR_BYTES].decode("utf-8", "replace"))

    def _unauthorised(self, status: int, said: str) -> str:
        used = next((name for name in KEYS if os.environ.get(name)), None)
        fix = f"the key in {used} is not taken" if used else f"put the key in the environment variable {KEYS[1]}"
        return f"{self.address}: HTTP {status}: {said}: {fix}"


def _causes(error: BaseException) -> list[BaseException]:
    """Return an error and those that it was raised from."""
    found: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in found:
        found.append(cause)
        cause = cause.__cause__ or cause.__context__
    return found


def _opened(address: str) -> httpx2.Client:
    """Return the client; raise ModelError if the environment names proxies or certificates that cannot be used."""
    try:
        return client(address, _CONNECT_S, _IDLE_S)
    except OSError as error:
        text = f"SSL_CERT_FILE or SSL_CERT_DIR names what cannot be read ({error.strerror or type(error).__name__})"
        raise ModelError(f"{text}: unset it, or name the certificates") from error
    except (ValueError, ImportError, httpx2.InvalidURL) as error:  # their texts may hold a password
        extra = ": pip install socksio" if isinstance(error, ImportError) else ""
        text = "HTTP_PROXY, HTTPS_PROXY or ALL_PROXY names a proxy that cannot be used"
        raise ModelError(f"{text} ({type(error).__name__}{extra}): unset it, or mend it") from error


def _checked(url: str) -> tuple[str, str]:
    """Return the address without a final slash, and what was left out of it; raise ModelError for a bad address."""
    try:
        parsed = httpx2.URL(url)
    except httpx2.InvalidURL as error:
        raise ModelError("--base-url is no address: http://127.0.0.1:8000/v1 is one") from error
    if parsed.userinfo or parsed.fragment or any(_SECRETS.search(name) for name in parsed.params):
        raise ModelError(f"--base-url holds more than an address: put a key in the environment variable {KEYS[1]}")
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ModelError(f"--base-url {url!r} is no address: http://127.0.0.1:8000/v1 is one")
    query = "what stands behind the question mark" if parsed.query else ""
    return str(parsed.copy_with(query=None)).rstrip("/?"), query


def _has_choices(said: Json) -> bool:
    choices = said.get("choices") if isinstance(said, dict) else None
    return isinstance(choices, list) and bool(choices) and isinstance(choices[0], dict)


def _status_inside(said: Json) -> int | None:
    """Return the HTTP status of an error that came with HTTP 200, None if it names none."""
    error = said.get("error") if isinstance(said, dict) else None
    code = error.get("code", error.get("status")) if isinstance(error, dict) else None
    return int(code) if isinstance(code, int | str) and str(code) in _STATUSES else None


def _retry_after(answer: httpx2.Response) -> float:
    """Return the seconds of a Retry-After header, which may hold a date; 0 without a header."""
    said = answer.headers.get("retry-after", "").strip()
    try:
        seconds = float(said)
        return seconds if seconds > 0 else 0.0  # not a number is neither
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(said) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError, OverflowError):
        return 0.0
