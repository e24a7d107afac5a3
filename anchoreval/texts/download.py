"""Download one file from a published address; resume after a cut connection; keep it only if its SHA-256 is right."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import http.client
import os
import re
import socket
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from anchoreval.errors import SourceError
from anchoreval.files import sha256_of

DOWNLOAD_SECONDS = 60  # without a byte
BLOCK = 1 << 20
GIT_DIGITS = 40
Progress = Callable[[int, int | None], None]


def download(address: str, target: Path, sha256: str, progress: Progress = lambda _have, _of: None) -> Path:
    """Fetch a file to `target`, which appears only when its SHA-256 is right.

    The part of a download that broke off stays in `<target>.part`, and the next call resumes it. `sha256` may be the id
    of a git blob (see digest_of). `progress` is called with the bytes received so far and the bytes in all (None if the
    server does not say). Raise OSError if the file cannot be fetched or written, SourceError if its hash is wrong; then
    nothing is kept.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with _part(target.with_name(f"{target.name}.part")) as (part, file):
        _receive(address, file, progress)
        digest = digest_of(part, sha256)
        if digest != sha256:
            part.unlink()
            raise SourceError(f"its SHA-256 is {digest}, expected {sha256}")
        part.replace(target)
    return target


def digest_of(path: Path, like: str) -> str:
    """Return the hash of a file of the same kind as `like`: SHA-256, or a git blob's id if `like` has 40 digits."""
    if len(like) != GIT_DIGITS:
        return sha256_of(path)
    digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def address_of(address: str) -> str:
    """Return the address with the hub's host replaced by $HF_ENDPOINT if that is set."""
    endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/")
    return re.sub("^https://huggingface.co", endpoint, address) if endpoint else address


def unconnected(error: Exception) -> bool:
    """Return whether a download failed because this machine has no network: no name is found, no way leads out."""
    reason = getattr(error, "reason", None)
    return isinstance(reason, socket.gaierror) or getattr(reason, "errno", None) in (errno.ENETUNREACH, errno.ENETDOWN)


@contextlib.contextmanager
def _part(path: Path) -> Iterator[tuple[Path, BinaryIO]]:
    """Yield the partial file, opened at its end and locked; delete it afterwards if it is empty."""
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise OSError(f"another process is fetching {path}") from error
        try:
            yield path, file
        finally:
            file.flush()
            if path.exists() and not path.stat().st_size:
                path.unlink()


def _receive(address: str, file: BinaryIO, progress: Progress) -> None:
    """Append the missing bytes to the file; start again if the server cannot resume in the middle."""
    have = file.tell()
    request = urllib.request.Request(address, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        answer = urllib.request.urlopen(request, timeout=DOWNLOAD_SECONDS)
    except urllib.error.HTTPError as error:
        if have and error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return  # the file is complete, or it is another file: the hash will tell
        raise
    with answer:
        if answer.status != http.HTTPStatus.PARTIAL_CONTENT:
            file.truncate(0)
            have = 0
        size = answer.headers.get("Content-Length")
        total = have + int(size) if size else None
        while block := _read(answer, have):
            file.write(block)
            have += len(block)
            progress(have, total)
        file.flush()
    if total is not None and have < total:
        raise OSError(f"the connection broke off after {have} of {total} bytes; the same command goes on from there")


def _read(answer: http.client.HTTPResponse, have: int) -> bytes:
    """Return the next bytes; raise OSError if the connection breaks off."""
    try:
        return answer.read(BLOCK)
    except (OSError, http.client.HTTPException) as error:
        raise OSError(
            f"the connection broke off after {have} bytes ({error}); the same command goes on from there"
        ) from error
