"""Whether results can be written where they are to go, tried before anything is computed."""

from __future__ import annotations

import errno
import tempfile
from pathlib import Path

from anchoreval.errors import RunError

#: Errors of a disk that is full, over its quota or failing: what no other input would have helped.
BROKEN = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG, errno.ESTALE, errno.ENODEV, errno.ENXIO})


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
