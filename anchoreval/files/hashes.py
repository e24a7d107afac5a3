"""SHA-256 of files. The hash of a large file is cached in the user's cache folder by path, size, times and inode.

The cache is a convenience: if it is damaged, locked or cannot be written, that costs time and nothing else.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from anchoreval.errors import RunError
from anchoreval.files import sha256_of, write_whole

LARGE_BYTES = 1 << 23  # smaller files are read in milliseconds
SETTLED_NS = 2_000_000_000  # a file changed more recently than this may change again within one tick of its clock
_MOST = 4096  # entries that the cache keeps
Kept = dict[str, list[Any]]  # path -> size, times of change, inode, SHA-256


def known_sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file; that of a large one as the cache knows it, until the file changes."""
    place, before = str(path.resolve()), _mark(path)
    if before[0] < LARGE_BYTES:
        return sha256_of(path)
    if (kept := _load().get(place)) is not None and kept[:-1] == before:
        return str(kept[-1])
    sha256, now = sha256_of(path), time.time_ns()
    if before == _mark(path) and now - max(before[1], before[2]) > SETTLED_NS:
        _update(lambda known: known | {place: [*before, sha256]})
    return sha256


def forget(folder: Path) -> None:
    """Drop the cached hashes of the files in a folder, so that they are read again."""
    gone = {str(path.resolve()) for path in folder.rglob("*") if path.is_file()}
    _update(lambda known: {place: entry for place, entry in known.items() if place not in gone})


def cache_file() -> Path:
    """Return $XDG_CACHE_HOME/anchoreval/hashes.json, or the same below ~/.cache."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "anchoreval" / "hashes.json"


def _mark(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _load() -> Kept:
    """Return the entries that are whole; no entries if the file is missing or damaged."""
    try:
        known = json.loads(cache_file().read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return {place: entry for place, entry in _rows(known) if _whole(entry)}


def _rows(known: object) -> Iterable[tuple[str, list[Any]]]:
    return known.items() if isinstance(known, dict) else ()


def _whole(entry: Any) -> bool:
    numbers = isinstance(entry, list) and len(entry) == 5 and all(type(part) is int for part in entry[:4])
    return numbers and isinstance(entry[4], str) and len(entry[4]) == 64


def _update(change: Callable[[Kept], Kept]) -> None:
    """Apply `change` to the entries as other processes left them, and write the result."""
    file = cache_file()
    with contextlib.suppress(OSError, RunError), _alone(file):
        before = _load()
        after = dict(list(change(before).items())[-_MOST:])
        if after != before:
            write_whole(file, [json.dumps(after)])


@contextlib.contextmanager
def _alone(file: Path) -> Iterator[None]:
    """Hold the lock that admits one writer at a time; raise OSError if the folder cannot be written."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = os.open(file.with_suffix(".lock"), os.O_CREAT | os.O_RDWR, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)
