"""Read files of folders that come from strangers: only regular files that lie in the folder itself."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

from anchoreval.errors import RunError

MOST_BYTES = 64 * 2**20  # limit for a file that is read whole, and for a line


def there(path: Path) -> bool:
    """Return True if anything has this name, even a dangling link."""
    return os.path.lexists(path)


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
