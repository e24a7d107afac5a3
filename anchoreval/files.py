"""Half-written files: named after the process that writes them, and deleted once it is gone."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

PART = ".part"


def part_of(path: Path) -> Path:
    """Return the name beside `path` under which this process writes what `path` is to hold."""
    return path.with_name(f"{path.name}.{os.getpid()}{PART}")


def clear_parts(path: Path) -> None:
    """Delete what processes that are gone left half written beside `path`; nothing else, and nothing through a link."""
    prefix = f"{path.name}."
    with contextlib.suppress(OSError), os.scandir(path.parent) as entries:
        for entry in entries:
            process = entry.name.removeprefix(prefix).removesuffix(PART)
            named = entry.name == f"{prefix}{process}{PART}" and process.isascii() and process.isdigit()
            if named and entry.is_file(follow_symlinks=False) and not _alive(int(process)):
                with contextlib.suppress(OSError):
                    os.unlink(entry.path)


def _alive(process: int) -> bool:
    """Whether a process of this number runs on this machine."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True
