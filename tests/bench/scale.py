"""`bench scale`: what the tool itself costs by the number of records and of runs, on the `fake` backend, one thread."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.board import generate

from anchoreval.errors import RunError

TASKS, ARMS = 13, ("bf16", "fp32", "bf16-table", "bf16-angle")
_MEASURED = """import json, resource, sys
from anchoreval.cli import main
code = main(sys.argv[1:])
used = resource.getrusage(resource.RUSAGE_SELF)
sys.stderr.write("\\n" + json.dumps([used.ru_utime + used.ru_stime, used.ru_maxrss / 1024]))
sys.exit(code)
"""


@dataclass(frozen=True, slots=True)
class Cost:
    """What one command cost: CPU seconds and peak megabytes of its process."""

    seconds: float
    megabytes: float


def report_scale(samples: Sequence[int], runs: Sequence[int], length: int) -> Iterator[str]:
    """Yield the lines that `bench scale` prints: a table by records, and one by runs in a folder."""
    with tempfile.TemporaryDirectory() as name:
        costs = {size: dict(_by_records(Path(name) / str(size), size, length)) for size in samples}
        records = {size: size * TASKS * len(ARMS) for size in samples}
        yield f"RULER's {TASKS} tasks at {length:,} tokens, {len(ARMS)} arms: CPU s (MB); exponent, what one more costs"
        yield from _table({records[size]: costs[size] for size in samples}, "records")
        yield "520 records a run; the plain board of all of them, drawn for the first time and again"
        yield from _table({count: dict(_by_runs(Path(name) / f"runs-{count}", count)) for count in runs}, "runs")


def _by_records(folder: Path, samples: int, length: int) -> Iterator[tuple[str, Cost]]:
    run = ["run", "--model", "anchor-tiny", "--tasks", "ruler", "--lengths", str(length), "--limit", str(samples)]
    run += ["--arms", ",".join(ARMS), "--haystack", "generated", "--backend", "fake", "--output", str(folder), "-q"]
    yield "run", _cost(run)
    (found,) = folder.glob("*/*/records.jsonl")
    yield "the same again", _cost(run)
    lines = found.read_bytes().splitlines(keepends=True)
    _cut(found, lines)
    yield "resume, one record lost", _cost(run)
    for command in ("verify", "score", "compare", "view", "board"):
        yield command, _cost([command, str(found.parent)])


def _cut(records: Path, lines: Sequence[bytes]) -> None:
    """Make the run look as one that was killed before its last record: neither finished nor sealed."""
    import json

    header = json.loads((records.parent / "header.json").read_text("utf-8"))
    for key in ("finished", "seal"):
        header.pop(key)
    (records.parent / "header.json").write_text(json.dumps(header), "utf-8")
    records.write_bytes(b"".join(lines[:-1]))


def _by_runs(folder: Path, count: int) -> Iterator[tuple[str, Cost]]:
    for number in range(count):
        generate(folder / f"model-{number:04}" / "run", number, 520)
    yield "board", _cost(["board", str(folder), "-q"])
    yield "board again", _cost(["board", str(folder), "-q"])


def _cost(command: Sequence[str]) -> Cost:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", _MEASURED, *command], capture_output=True, text=True, check=False, env=environment
    )
    *_, last = done.stderr.strip().splitlines() or [""]
    if done.returncode:
        raise RunError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr.strip()[-300:]}")
    seconds, megabytes = last.strip("[]").split(",")
    return Cost(float(seconds), float(megabytes))


def _table(columns: dict[int, dict[str, Cost]], unit: str) -> Iterator[str]:
    """Yield a row for each command: its cost at every size, the exponent between the ends, and what one more costs."""
    sizes = sorted(columns)
    yield f"{'':24}" + "".join(f"{size:>14,} {unit}" for size in sizes)
    for name in columns[sizes[0]]:
        costs = [columns[size][name] for size in sizes]
        shown = "".join(f"{f'{cost.seconds:.1f} ({cost.megabytes:.0f})':>{15 + len(unit)}}" for cost in costs)
        more, times = costs[-1].seconds - costs[0].seconds, costs[-1].seconds / costs[0].seconds
        slope = math.log(times) / math.log(sizes[-1] / sizes[0])
        yield f"{name:24}{shown}  {slope:5.2f} {1e3 * more / (sizes[-1] - sizes[0]):8.2f} ms"
