"""`bench samples`: CPU seconds and peak memory of making samples."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TextIO

from anchoreval.cards import Task
from anchoreval.errors import LengthError, SourceError
from anchoreval.runs.prompts import LengthRule
from anchoreval.suites import Recipe, generator_of
from anchoreval.texts.sources import Sources
from anchoreval.tokenizer import TextTokenizer

RULE = LengthRule()


@dataclass(frozen=True, slots=True)
class Row:
    """The cost of one cell: CPU seconds (user + system), samples made, mean share of the length that they fill."""

    task: str
    length: int
    samples: int
    cpu_seconds: float
    fill: float
    why: str = ""


def cpu_seconds() -> float:
    """Return the user and system seconds of this process so far, with start-up and imports."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def peak_megabytes() -> float:
    """Return the largest resident size of this process so far, in 10^6 bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def measure(
    tasks: Sequence[Task], lengths: Sequence[int], count: int, tokenizer: TextTokenizer, sources: Sources
) -> Iterator[Row]:
    """Make `count` samples of every task at every length, keep none, and yield a row per cell.

    The row of a cell that cannot be made holds the reason in `why`.
    """
    for length in lengths:
        for task in tasks:
            start, made, filled, why = cpu_seconds(), 0, 0.0, ""
            recipe = Recipe(task.address, length, task.max_new_tokens, count, task.args, tokenizer, sources)
            uncounted = RULE.anchor if generator_of(task).published else 0
            recipe = replace(recipe, outside=RULE.anchor + RULE.template, uncounted=uncounted)
            try:
                for sample in generator_of(task)(recipe):
                    made += 1
                    filled += RULE.settled(sample, task, tokenizer, None).facts["tokens"] / length
            except (LengthError, SourceError) as error:
                why = str(error)
            yield Row(task.address, length, made, cpu_seconds() - start, filled / max(made, 1), why)


def bench_samples(
    tasks: Sequence[Task],
    lengths: Sequence[int],
    count: int,
    tokenizer: TextTokenizer,
    sources: Sources,
    out: TextIO | None = None,
) -> list[Row]:
    """Return the rows of `measure`; print each as it is done, then the CPU seconds and peak memory of the process."""
    stream, rows = out or sys.stdout, []
    stream.write(f"{'task':24}{'length':>8}{'samples':>9}{'CPU s':>9}{'filled':>9}\n")
    for row in measure(tasks, lengths, count, tokenizer, sources):
        rows.append(row)
        figures = f"{row.task:24}{row.length:>8}{row.samples:>9}{row.cpu_seconds:>9.2f}{row.fill:>9.1%}"
        stream.write(f"{figures}{'  ' + row.why if row.why else ''}\n")
        stream.flush()
    total = f"{cpu_seconds():.2f} CPU s (start-up and imports included), peak {peak_megabytes():.0f} MB"
    stream.write(f"process: {total}\n")
    return rows
