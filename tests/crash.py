"""Kills a run at points that are given, and goes on with it: a process of its own, which forks for every run.

`python tests/crash.py FOLDER POINT...`: a POINT is `write:N`, the N-th call that changes the disk (the process is
killed instead, or for every third N in the middle of a write), or `time:F`, a moment as a share of the time of a whole
run; `each` is every such call of one run after the other. After each kill the records that had been written are still
there; at the end the run is whole. One line of JSON says what happened.
"""

from __future__ import annotations

import io
import itertools
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

from longbench_v2_files import write_folder

from anchoreval import cards, evaluate
from anchoreval.records.folder import FIRSTS
from anchoreval.records.lines import RECORDS
from anchoreval.records.run import Run

CHANGES = ("write", "fsync", "replace", "rename", "unlink", "ftruncate", "mkdir", "open")
ASKED: dict[str, Any] = {"lengths": [512], "rope": "bf16,fp32", "backend": "fake", "limit": 6}


@cache
def texts() -> tempfile.TemporaryDirectory[str]:
    """A --data-dir of the task of two steps, which no run changes."""
    folder = tempfile.TemporaryDirectory()
    write_folder(Path(folder.name))
    return folder


def ruler(folder: Path, limit: int = 6) -> Run:
    """Two tasks under two arms."""
    return evaluate("anchor-tiny", "ruler/vt,ruler/niah_single_1", output=folder, **ASKED | {"limit": limit})


def run(folder: Path) -> None:
    """The runs that are killed: one that goes on with more samples once it has finished, and one of two steps."""
    for limit in (1, 3):
        ruler(folder, limit)
    more: dict[str, Any] = {"limit": 2, "lengths": [200], "settings": {"prompting": "cot"}, "data_dir": texts().name}
    evaluate("anchor-tiny", "longbench_v2/questions", output=folder, **ASKED | more)


def kill_at_change(number: int) -> None:
    """Have this process killed at its `number`-th change of the disk."""
    left = number

    def counted(name: str, stock: Callable[..., Any]) -> Callable[..., Any]:
        def change(*given: Any, **named: Any) -> Any:
            nonlocal left
            if name == "open" and not (given[1] if len(given) > 1 else 0) & (os.O_WRONLY | os.O_RDWR):
                return stock(*given, **named)
            left -= 1
            if left == 0:
                if name == "write" and number % 3 == 0:
                    stock(given[0], given[1][: len(given[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return stock(*given, **named)

        return change

    for name in CHANGES:
        setattr(os, name, counted(name, getattr(os, name)))
    stock_open = io.open

    def opened(*given: Any, **named: Any) -> Any:
        file = stock_open(*given, **named)
        if file.writable():
            for name in ("flush", "truncate"):
                setattr(file, name, counted(name, getattr(file, name)))
        return file

    io.open = opened


def forked(act: Callable[[], None], seconds: float | None = None) -> int:
    """`act` in a process of its own, killed after so many seconds; its wait status."""
    if (child := os.fork()) == 0:
        try:
            act()
        except BaseException as error:
            sys.stderr.write(f"{error!r}\n")
            sys.stderr.flush()
            os._exit(3)
        os._exit(0)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


def kill(folder: Path, point: str, whole_s: float) -> int:
    """One run that is killed at `point`; its wait status. A whole run takes `whole_s`."""
    kind, _, at = point.partition(":")
    if kind == "time":
        return forked(lambda: run(folder), float(at) * whole_s)

    def act() -> None:
        kill_at_change(int(at))
        run(folder)

    return forked(act)


def lines(folder: Path) -> list[bytes]:
    """The whole lines of the records of runs."""
    found = [path.read_bytes() for path in folder.glob(f"*/*/{RECORDS}")]
    return [line for text in found for line in text.split(b"\n")[:-1]]


def answers(folder: Path) -> set[str]:
    """The keys of all that was answered: of records, and of first answers of two as long as there is no record."""
    firsts = [line for path in folder.glob(f"*/*/{FIRSTS}") for line in path.read_bytes().split(b"\n")[:-1]]
    return {json.loads(line)["key"] for line in lines(folder)} | {json.loads(line)["name"] for line in firsts}


def main(folder: Path, points: list[str]) -> None:
    """Kill once at each point of one run, which begins anew once it is whole; with `each`, at every change of a run."""
    texts()
    cards.load_tasks = cache(cards.load_tasks)
    ruler(folder / "first", 1)  # what is read once is there in every fork
    shutil.rmtree(folder / "first")
    times = []
    for _ in range(2):  # the machine may have been busy in one of them
        start = time.perf_counter()
        forked(partial(run, folder / "first"))
        times.append(time.perf_counter() - start)
        shutil.rmtree(folder / "first")
    whole_s = min(times)
    said = {"kills": 0, "lost": 0, "failed": 0, "runs": 0}
    each = points == ["each"]
    for number, point in enumerate(f"write:{n}" for n in itertools.count(1)) if each else enumerate(points):
        place = folder / str(number if each else said["runs"])
        before = answers(place)
        status = kill(place, point, whole_s)
        ended = os.WIFEXITED(status)
        said["kills"] += not ended
        said["lost"] += len(before - answers(place))
        said["failed"] += ended and os.WEXITSTATUS(status) != 0
        if each or ended:
            said["runs"] += 1
        if each and ended:
            break
    for place in sorted(folder.iterdir()):
        said["failed"] += forked(partial(run, place)) != 0
    sys.stdout.write(json.dumps(said))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
