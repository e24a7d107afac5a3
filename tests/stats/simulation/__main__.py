"""Measure every question, write the page named on the command line, and name each promise that is not kept.

`make test-stats` runs it: some minutes in two processes. Seeds are fixed, so that one machine writes one page.
"""

from __future__ import annotations

import sys
import time
from multiprocessing import Pool
from pathlib import Path

from simulation.page import SECTIONS, figures_of, rendered
from simulation.promises import broken
from simulation.questions import Question, Rates, measured

WORKERS = 2


def answered(question: Question) -> tuple[Question, Rates, float]:
    """A question, its figures and the seconds that they took."""
    started = time.process_time()
    return question, measured(question), time.process_time() - started


def size(question: Question) -> int:
    """How long a question takes, roughly: the longest are measured first."""
    return getattr(question, "n", 500) * getattr(question, "sims", 1000)


def main(path: Path) -> int:
    asked = {question for section in SECTIONS for table in section.tables for question in table.questions()}
    found: dict[Question, Rates] = {}
    seconds: dict[Question, float] = {}
    with Pool(WORKERS) as pool:
        for question, rates, took in pool.imap_unordered(answered, sorted(asked, key=size, reverse=True)):
            found[question], seconds[question] = rates, took
    path.parent.mkdir(exist_ok=True)
    path.write_text(rendered(SECTIONS, figures_of(found)), encoding="utf-8")
    slowest = max(seconds, key=lambda question: seconds[question])
    lost = broken(found)
    sys.stdout.write(
        f"{len(asked)} questions in {sum(seconds.values()):.0f} seconds of a processor, "
        f"the longest {seconds[slowest]:.0f}: {str(slowest)[:100]}\n{path} written; "
        + (f"{len(lost)} figures break their promise:\n" + "\n".join(lost) if lost else "every promise is kept")
        + "\n"
    )
    return bool(lost)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
