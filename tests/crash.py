"""Kills a run at points that are given, and goes on with it: a process of its own, which forks for every run.

`python tests/crash.py FOLDER POINT...`: a POINT is `write:N`, the N-th call that changes the disk (the process is
killed instead, or for every third N in the middle of a write), or `time:S`, a moment in seconds; `each` is every such
call of one run after the other. After each kill the records that had been written are still there; at the end the run
is whole. One line of JSON says what happened.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from anchoreval import evaluate
from anchoreval.results import RECORDS

CHANGES = ("write", "fsync", "replace", "rename", "unlink", "ftruncate", "mkdir", "open")
ASKED: dict[str, Any] = {"lengths": [512], "rope": "bf16,fp32", "backend": "fake", "limit": 6}


def run(folder: Path) -> None:
    """The run that is killed: two tasks, two arms, six samples."""
    evaluate("anchor-tiny", "ruler/vt,ruler/niah_single_1", output=folder, **ASKED)


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


def kill(folder: Path, point: str) -> int:
    """One run that is killed at `point`; its wait status."""
    kind, _, at = point.partition(":")
    if kind == "time":
        return forked(lambda: run(folder), float(at))

    def act() -> None:
        kill_at_change(int(at))
        run(folder)

    return forked(act)


def lines(folder: Path) -> list[bytes]:
    """The whole lines of the run's records."""
    found = [path.read_bytes() for path in folder.glob(f"*/*/{RECORDS}")]
    return [line for text in found for line in text.split(b"\n")[:-1]]


def main(folder: Path, points: list[str]) -> None:
    """Kill once at each point of one run, which begins anew once it is whole; with `each`, at every change of a run."""
    said = {"kills": 0, "lost": 0, "failed": 0, "runs": 0}
    each = points == ["each"]
    for number, point in enumerate(f"write:{n}" for n in itertools.count(1)) if each else enumerate(points):
        place = folder / str(number if each else said["runs"])
        before = {json.loads(line)["key"] for line in lines(place)}
        status = kill(place, point)
        ended = os.WIFEXITED(status)
        said["kills"] += not ended
        said["lost"] += len(before - {json.loads(line)["key"] for line in lines(place)})
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
