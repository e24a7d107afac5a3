"""Trainings that are killed by SIGKILL and run again, each in a fork of this process, which imports everything once."""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import transformers
from tiny_training import run, training

PARTS = ("_save_optimizer_and_scheduler", "_save_rng_state", "save_model")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def inside_a_save(case: int) -> None:
    """Die before or behind one part of the save of step 4."""
    name = PARTS[case % 3]
    stock = getattr(transformers.Trainer, name)

    def dying(trainer: Any, *args: Any, **named: Any) -> Any:
        if trainer.state.global_step != 4:
            return stock(trainer, *args, **named)
        if case % 2:
            stock(trainer, *args, **named)
        return die()

    setattr(transformers.Trainer, name, dying)


def at_any_moment(case: int) -> None:
    threading.Timer(random.Random(case).uniform(0.1, 1.5), die).start()


def forked(work: Callable[[], Any]) -> int:
    """The status of a fork that did the work."""
    child = os.fork()
    if child == 0:
        work()
        os._exit(0)
    return os.waitpid(child, 0)[1]


def main(place: Path) -> int:
    told = place / "told.txt"

    def tell(text: str) -> None:
        with told.open("a") as file:
            file.write(text + "\n")

    for case in range(10):
        prepare = inside_a_save if case < 6 else at_any_moment
        killed = forked(lambda prepare=prepare, case=case: (prepare(case), run(place / str(case), training())))
        if case < 6:
            assert os.WIFSIGNALED(killed) and os.WTERMSIG(killed) == signal.SIGKILL, killed
        assert forked(lambda case=case: run(place / str(case), training(), tell=tell)) == 0
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
