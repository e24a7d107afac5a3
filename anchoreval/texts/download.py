"""Download one file from a published address; go on after a cut connection; keep it only if its hash is right.

huggingface_hub receives what the hub serves, with its token, mirror ($HF_ENDPOINT) and offline mode, and pooch receives
the rest. `hf_hub_download` and `pooch.retrieve` begin anew after a broken connection and know no id of a git blob:
therefore the partial file and the check of its hash are ours.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import logging
import os
import re
import socket
from collections.abc import Callable, Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any, BinaryIO

from anchoreval.errors import SourceError
from anchoreval.files import sha256_of

DOWNLOAD_SECONDS = 60  # without a byte
BLOCK = 1 << 20
GIT_DIGITS = 40
HUB = "https://huggingface.co"
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
        file.flush()
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
    return re.sub(f"^{HUB}", endpoint, address) if endpoint else address


def unconnected(error: BaseException) -> bool:
    """Return whether a download failed because this machine has no network: no name is found, no way leads out."""
    reason = _root(error)
    return isinstance(reason, socket.gaierror) or getattr(reason, "errno", None) in (errno.ENETUNREACH, errno.ENETDOWN)


def _root(error: BaseException) -> BaseException:
    """Return the first error of a chain: what the network said."""
    while (before := error.__cause__ or error.__context__) is not None:
        error = before
    return error


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
    bar, have = _bar_of(file, progress), file.tell()
    try:
        (_of_hub if address.startswith(f"{HUB}/") else _of_web)(address, file, bar)
        progress(file.tell(), bar.size)
    except Exception as error:  # of httpx, its successors, requests and urllib3, which share no base
        answer = getattr(error, "response", None)
        if have and getattr(answer, "status_code", None) == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return  # the file is complete, or it is another file: the hash will tell
        reason = " ".join(str(_root(error) if answer is None else error).split())[:300]
        if answer is None and (have := file.tell()):
            total = f" of {bar.size}" if bar.size else ""
            reason = f"{reason}: broke off after {have}{total} bytes; the same command goes on from there"
        raise OSError(reason) from error


def _of_hub(address: str, file: BinaryIO, bar: type[Any]) -> None:
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    log = logging.getLogger(http_get.__module__)
    log.disabled = True  # it warns of every new try
    try:
        http_get(address_of(address), file, resume_size=file.tell(), headers=build_hf_headers(), tqdm_class=bar)
    finally:
        log.disabled = False


def _of_web(address: str, file: BinaryIO, bar: type[Any]) -> None:
    from pooch import HTTPDownloader

    def answered(answer: Any, **_: object) -> None:
        if answer.status_code == HTTPStatus.OK:  # the whole file, whatever part of it was asked for
            file.seek(0)
            file.truncate()
        rest = int(answer.headers.get("Content-Length") or 0)
        bar.size = file.tell() + rest if rest else None

    have = file.tell()
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    get = HTTPDownloader(bar(), timeout=DOWNLOAD_SECONDS, headers=headers, hooks={"response": answered})
    get(address, file, None)


def _bar_of(file: BinaryIO, progress: Progress) -> type[Any]:
    """Return the class of a progress bar, as huggingface_hub and pooch use one, that tells `progress` of the file."""

    class Bar(contextlib.ExitStack):  # can be entered and closed, as theirs can
        size: int | None = None  # of the whole file

        def __init__(self, total: int | None = None, **_: object) -> None:
            super().__init__()
            type(self).size = total

        def update(self, _: int) -> None:
            progress(file.tell(), self.size)

        def reset(self) -> None: ...

    return Bar
