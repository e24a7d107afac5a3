"""Measure every question, write docs/statistics.md and say which promise is not kept."""

from __future__ import annotations

import sys
import time
from multiprocessing import Pool
from pathlib import Path

from simulation.promises import TABLES, broken
from simulation.questions import Question, Rates, measured

WORKERS = 2


def answered(question: Question) -> tuple[Question, Rates, float]:
    started = time.perf_counter()
    return question, measured(question), time.perf_counter() - started


def size(question: Question) -> int:
    """How long a question takes, roughly."""
    return getattr(question, "n", 500) * getattr(question, "sims", 1000)


def main() -> int:
    asked = sorted({question for table in TABLES for question in table.questions()}, key=size, reverse=True)
    found: dict[Question, Rates] = {}
    slow = []
    with Pool(WORKERS) as pool:
        for question, rates, seconds in pool.imap_unordered(answered, asked):
            found[question] = rates
            slow.append((seconds, str(question)[:150]))
    for seconds, name in sorted(slow, reverse=True)[:12]:
        print(f"{seconds:6.1f}s {name}", file=sys.stderr)
    print(f"{sum(s for s, _ in slow):.0f} CPU seconds, {len(asked)} questions", file=sys.stderr)
    lost = broken(found)
    print("\n".join(lost) or "every promise is kept")
    return bool(lost)


if __name__ == "__main__":
    sys.exit(main())
