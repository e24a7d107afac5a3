"""One answer over HTTP within bounds: seconds for all of it, bytes as sent and as unpacked, nesting of its JSON."""

from __future__ import annotations

import contextlib
import ipaddress
import itertools
import json
import re
import socket
import threading
import time
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

import httpcore2
import httpx2

from anchoreval.schema import Json

ENCODINGS = "gzip, deflate"  # which this module unpacks piece by piece; no other is asked for
_GZIP, _ZLIB, _RAW = 31, 15, -15  # zlib's window bits
_WBITS = {"gzip": _GZIP, "x-gzip": _GZIP, "deflate": _ZLIB}
_PIECE = 2**16  # bytes that are unpacked at a time
_SENT = 2**13  # bytes that are sent at a time, so that a server that reads slowly meets the deadline too
_OVER = "the time for the whole answer is over"
_DEEPEST = 100  # arrays and objects in one another; answers have fewer than ten
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)', re.DOTALL)
_NO_BRACKET = bytes(set(range(256)) - set(b"[]{}"))
_STEP = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}


class Unbounded(Exception):
    """An answer that is larger or deeper than any proper answer, or packed in a way that was not asked for."""


class _Time(threading.local):
    """The time by which the answer that this thread waits for must be there."""

    until: float | None = None

    @property
    def over(self) -> bool:
        """Whether that time is over."""
        return self.until is not None and time.monotonic() >= self.until

    def left(self, timeout: float | None) -> float | None:
        """Return the seconds that one operation may take; raise ReadTimeout if none are left."""
        if self.until is None:
            return timeout
        left = self.until - time.monotonic()
        if left <= 0:
            raise httpcore2.ReadTimeout(_OVER)
        return left if timeout is None else min(left, timeout)


_time = _Time()


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    """End everything that this thread does over HTTP in the block, from connection to last byte, within `seconds`."""
    _time.until = time.monotonic() + seconds
    try:
        yield
    finally:
        _time.until = None


class _Stream(httpcore2.NetworkStream):
    """A connection whose every operation ends in time."""

    def __init__(self, inner: httpcore2.NetworkStream) -> None:
        self._inner = inner

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._inner.read(max_bytes, _time.left(timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        for start in range(0, len(buffer), _SENT):
            self._inner.write(buffer[start : start + _SENT], _time.left(timeout))

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self, ssl_context: Any, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.NetworkStream:
        return _Stream(self._inner.start_tls(ssl_context, server_hostname, _time.left(timeout)))

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)


class _Network(httpcore2.SyncBackend):
    """Connections whose every operation ends in time."""

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Any = None,
    ) -> httpcore2.NetworkStream:
        return _Stream(super().connect_tcp(host, port, _time.left(timeout), local_address, socket_options))


def client(url: str, connect_s: float, idle_s: float) -> httpx2.Client:
    """Return a client for an address. It uses the proxies of the environment, but not for this machine itself."""
    limits = httpx2.Limits(max_connections=None, keepalive_expiry=idle_s)
    timeout = httpx2.Timeout(None, connect=connect_s)
    direct = httpx2.HTTPTransport(limits=limits) if is_loopback(httpx2.URL(url).host) else None
    headers = {"Accept-Encoding": ENCODINGS}
    made = httpx2.Client(headers=headers, timeout=timeout, limits=limits, transport=direct)
    for transport in (made._transport, *made._mounts.values()):
        if isinstance(transport, httpx2.HTTPTransport):
            transport._pool._network_backend = _Network()
    return made


def is_loopback(host: str) -> bool:
    """Return whether a host is this machine: localhost and its subdomains, 127.0.0.0/8, ::1, or 0.0.0.0."""
    name = host.strip("[]").rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    with contextlib.suppress(OSError):
        if name[:1].isdigit() and ":" not in name:
            name = socket.inet_ntoa(socket.inet_aton(name))  # 127.1 and 2130706433 are addresses too
    try:
        address = ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback or (mapped or address).is_unspecified


def content_of(answer: httpx2.Response, most: int, cut: bool = False) -> bytes:
    """Return the body of an answer being received, unpacked; over `most` bytes `cut` it there, or raise Unbounded."""
    content = bytearray()
    for piece in _unpacked(answer.iter_raw(), answer.headers.get("content-encoding", "")):
        content += piece
        if len(content) > most:
            if cut:
                return bytes(content[:most])
            raise Unbounded(f"an answer of more than {most} bytes")
    return bytes(content)


def json_of(content: bytes) -> Json:
    """Return the JSON of a body; raise ValueError if it is not JSON, Unbounded if it is nested too deeply."""
    brackets = _STRING.sub(b"", content).translate(None, _NO_BRACKET)
    if max(itertools.accumulate(map(_STEP.__getitem__, brackets)), default=0) > _DEEPEST:
        raise Unbounded(f"JSON nested more than {_DEEPEST} deep")
    try:
        return json.loads(content)
    except RecursionError as error:
        raise Unbounded("JSON nested too deeply") from error


def _unpacked(chunks: Iterable[bytes], encodings: str) -> Iterator[bytes]:
    """Yield the bytes that a Content-Encoding header says were packed, in pieces, checking the deadline."""
    names = [name.strip().lower() for name in encodings.split(",") if name.strip().lower() not in ("", "identity")]
    if unknown := [name for name in names if name not in _WBITS]:
        raise Unbounded(f"Content-Encoding {unknown[0][:20]!r}, which was not asked for")
    if len(names) > 2:
        raise Unbounded(f"an answer packed {len(names)} times")
    for name in reversed(names):
        chunks = _inflated(chunks, _WBITS[name])
    for chunk in chunks:
        if _time.over:
            raise httpx2.ReadTimeout(_OVER)
        yield chunk


def _inflated(chunks: Iterable[bytes], wbits: int) -> Iterator[bytes]:
    """Yield what zlib unpacks, in pieces of at most `_PIECE` bytes; raise ValueError if it is broken or ends early."""
    unpacker, begun = None, False
    for chunk in chunks:
        while chunk:
            if unpacker is None:
                unpacker = zlib.decompressobj(_RAW if wbits == _ZLIB and not _is_zlib(chunk) else wbits)
            try:
                piece = unpacker.decompress(chunk, _PIECE)
            except zlib.error as error:
                raise ValueError(f"it cannot be unpacked: {error}") from error
            begun, chunk = True, unpacker.unconsumed_tail
            if unpacker.eof:
                chunk, unpacker = unpacker.unused_data, None  # another part of it may follow
            yield piece
    while unpacker is not None and not unpacker.eof:
        piece = unpacker.decompress(unpacker.unconsumed_tail, _PIECE)
        if not piece:
            break
        yield piece
    if not begun or (unpacker is not None and not unpacker.eof):
        raise ValueError("it ends before it is unpacked")


def _is_zlib(chunk: bytes) -> bool:
    """Return whether deflated bytes begin with zlib's header; some servers send them without."""
    return chunk[0] & 15 == 8 and (len(chunk) < 2 or (chunk[0] * 256 + chunk[1]) % 31 == 0)
