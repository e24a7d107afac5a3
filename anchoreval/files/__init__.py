"""Write files whole or not at all; read files of folders that come from strangers.

A half-written file is named after the process that writes it, and is deleted once that process is gone. Of a stranger's
folder only regular files are read that lie in the folder itself.

The SHA-256 of a large file is cached in the user's cache folder by path, size, times and inode. The cache is a
convenience: if it is damaged, locked or cannot be written, that costs time and nothing else.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import io
import json
import os
import stat
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from anchoreval.errors import RunError
from anchoreval.schema import Json

PART = ".part"
MOST_BYTES = 64 * 2**20  # limit for a file that is read whole, and for a line
#: Errors of a disk that is full, over its quota or failing: what no other input would have helped.
BROKEN = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG, errno.ESTALE, errno.ENODEV, errno.ENXIO})
LARGE_BYTES = 1 << 23  # smaller files are read in milliseconds
SETTLED_NS = 2_000_000_000  # a file changed more recently than this may change again within one tick of its clock
_MOST = 4096  # entries that the cache keeps
there = os.path.lexists  # whether anything has this name, even a dangling link
Kept = dict[str, list[Any]]  # path -> size, times of change, inode, SHA-256


def clear_parts(path: Path) -> None:
    """Delete half-written files beside `path` whose processes are gone; delete nothing else, and follow no links."""
    prefix = f"{path.name}."
    with contextlib.suppress(OSError), os.scandir(path.parent) as entries:
        for entry in entries:
            process = entry.name.removeprefix(prefix).removesuffix(PART)
            named = entry.name == f"{prefix}{process}{PART}" and process.isascii() and process.isdigit()
            if named and entry.is_file(follow_symlinks=False) and not _alive(int(process)):
                with contextlib.suppress(OSError):
                    os.unlink(entry.path)


def write_whole(path: Path, pieces: Iterable[str | bytes]) -> Path:
    """Write all pieces to a file beside `path`, sync it and rename it to `path`; return `path`.

    Text becomes UTF-8. Missing folders are created. Raise RunError if the file cannot be written: `path` then keeps its
    old content, and no half-written file stays.
    """
    clear_parts(path)
    part = path.with_name(f"{path.name}.{os.getpid()}{PART}")
    try:
        with write_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            part.unlink(missing_ok=True)  # left by a killed process that had the same number
            with part.open("xb") as file:  # "x" never writes through a link that lies there
                file.writelines(piece.encode("utf-8") if isinstance(piece, str) else piece for piece in pieces)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
    return path


def write_json_lines(path: Path, rows: Iterable[Json], **how: Any) -> Path:
    """Write a line of JSON for each row as `write_whole` does; `how` goes to `json.dumps`. Return `path`."""
    import jsonlines

    def lines() -> Iterator[str]:
        buffer = io.StringIO()
        writer = jsonlines.Writer(buffer, dumps=partial(json.dumps, **{"ensure_ascii": False, **how}))
        for row in rows:
            writer.write(row)
            yield buffer.getvalue()
            buffer.seek(0)
            buffer.truncate()

    return write_whole(path, lines())


@contextlib.contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Raise RunError with the name of the file or folder if a write inside the block fails."""
    try:
        yield
    except OSError as error:
        why = "it is a link: delete it" if error.errno == errno.ELOOP and path.is_symlink() else error.strerror
        raise RunError(f"cannot write {path}: {why or error}") from error


def require_writable(folder: Path) -> None:
    """Raise RunError where `folder` is no folder that files can be written in, or cannot be made.

    A file is made in it, or in the nearest folder above that is there, and is gone again; nothing else is made.
    """
    try:
        place = folder.expanduser().absolute()
        place.is_dir() or place.lstat()  # too long a name, or a character that no name has, shows here
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        raise RunError(f"cannot write {folder}: {_why(error)}: name another --output") from error
    while not place.exists() and place != place.parent:
        if place.is_symlink():
            raise RunError(f"cannot write {folder}: {place} is a link to nowhere: name another --output")
        place = place.parent
    if not place.is_dir():
        raise RunError(f"cannot write {folder}: {place} is a file, no folder: name another --output")
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(b"0")
    except OSError as error:
        raise RunError(f"cannot write {folder}: {_why(error)}: name another --output") from error


def _why(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def _alive(process: int) -> bool:
    """Return whether a process of this number runs on this machine."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True


def opened(path: Path, folder: Path | None = None) -> BinaryIO:
    """Open a file for reading; raise RunError for no regular file or a link out of `folder` (default: its own folder).

    Raise FileNotFoundError if nothing has this name. A pipe without a writer does not block.
    """
    real, inside = os.path.realpath(path), os.path.realpath(folder or path.parent)
    if os.path.commonpath([real, inside]) != inside:
        raise RunError(f"{path} is a link out of its folder: put the file itself there, or move the link away")
    try:
        number = os.open(real, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError as error:
        if there(Path(real)) and not os.path.isfile(real):  # a socket cannot be opened
            raise RunError(f"{path} is no file: move it away") from None
        raise RunError(f"{path}: cannot be read ({error.strerror or error})") from error
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise RunError(f"{path} is no file: move it away")
    return os.fdopen(number, "rb")


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, read block by block."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_of(path: Path, folder: Path | None = None) -> bytes:
    """Return the bytes of a file opened as in `opened`; raise RunError if it has more than MOST_BYTES."""
    try:
        with opened(path, folder) as file:
            content = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror or error})") from error
    if len(content) > MOST_BYTES:
        raise RunError(f"{path}: larger than {MOST_BYTES >> 20} MiB: not a file of a run")
    return content


def known_sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file; that of a large one as the cache knows it, until the file changes."""
    if path.stat().st_size < LARGE_BYTES:
        return sha256_of(path)
    place, before = str(path.resolve()), _mark(path)
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


def cache_folder() -> Path:
    """Return $XDG_CACHE_HOME/anchoreval, or else ~/.cache/anchoreval."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "anchoreval"


def cache_file() -> Path:
    """Return the file of the known hashes."""
    return cache_folder() / "hashes.json"


def _mark(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _load() -> Kept:
    """Return the entries that are whole; no entries if the file is missing or damaged."""
    try:
        known = json.loads(cache_file().read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return {place: entry for place, entry in known.items() if _whole(entry)} if isinstance(known, dict) else {}


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
