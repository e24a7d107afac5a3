"""What tests of killed workers and servers share: runs without their times, and acts in the middle of a run."""

from __future__ import annotations

import dataclasses
import os
import threading
import time
from pathlib import Path
from typing import Any

from anchoreval.records.lines import RECORDS, read_records
from anchoreval.records.run import Run
from anchoreval.schema import Record

os.environ["ANCHOREVAL_TESTS"] = MINE = str(os.getpid())  # inherited by the workers that these tests may kill


def timeless(run: Run | Path) -> dict[str, Record]:
    records = read_records(run) if isinstance(run, Path) else list(run.records)
    found = {record.key: dataclasses.replace(record, seconds=0.0) for record in records}
    assert len(found) == len(records)
    return found


def workers() -> list[int]:
    """Process ids of the workers that hold a backend, started from this process and no other."""
    found, mine = [], f"ANCHOREVAL_TESTS={MINE}".encode()
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                line, environment = ((folder / name).read_bytes() for name in ("cmdline", "environ"))
            except OSError:
                continue
            if line.startswith(b"ray::Worker") and mine in environment.split(b"\0"):
                found.append(int(folder.name))
    return found


def when_records(output: Path, least: int, act: Any) -> threading.Thread:
    """`act` in a thread, as soon as `least` records are on disk."""

    def wait() -> None:
        limit = time.monotonic() + 120
        while time.monotonic() < limit:
            lines = sum(path.read_bytes().count(b"\n") for path in output.glob(f"**/{RECORDS}"))
            if lines >= least:
                act()
                return
            time.sleep(0.05)

    thread = threading.Thread(target=wait)
    thread.start()
    return thread
