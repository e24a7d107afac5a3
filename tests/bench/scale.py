"""`bench scale`: what the tool itself costs as the work grows, each part at three sizes, with the exponent.

records  CPU seconds and memory of each command by the number of records, on the `fake` backend
runs     those of boards by the number of runs: a summary and a declared board, for the first time and again
driver   records (prompts times arms) a second over Ray on `fake` by the length of prompts, against one process
engines  `anchoreval bench engines`: prefill and generation of hf by the length of prompts, against other engines
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from bench.board import DEFINITION, generate

from anchoreval.errors import RunError

PARTS = ("records", "runs", "driver", "engines")
TASKS, ARMS = 13, ("bf16", "fp32", "bf16-table", "bf16-angle")
RUN_RECORDS, WORKERS = 520, 2
_MEASURED = """import json, resource, sys
from anchoreval.cli import main
if __name__ == "__main__":
    code = main(sys.argv[1:])
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    seconds = sum(one.ru_utime + one.ru_stime for one in used)
    print("\\n" + json.dumps([seconds, max(one.ru_maxrss for one in used) / 1024]))
    sys.exit(code)
"""
#: The loop of a run alone: without opening the engine, and without the first prompt of every task.
_DRIVEN = """import contextlib, json, resource, sys, time
from anchoreval import evaluate
loop = []
@contextlib.contextmanager
def watch(total):
    began, cpu = time.perf_counter(), time.process_time()
    yield lambda done: None
    if total:
        loop.extend([total, time.perf_counter() - began, time.process_time() - cpu])
if __name__ == "__main__":
    evaluate("anchor-tiny", "ruler", backend="fake", haystack="generated", watch=watch, **json.loads(sys.argv[1]))
    print(json.dumps([*loop, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]))
"""


@dataclass(frozen=True, slots=True)
class Cost:
    """What one command cost: CPU seconds and peak megabytes."""

    seconds: float
    megabytes: float


def report_scale(
    parts: Sequence[str], samples: Sequence[int], length: int, runs: Sequence[int], lengths: Sequence[int],
    prompts: int, engine_lengths: Sequence[int],
) -> Iterator[str]:  # fmt: skip
    """Yield the lines that `bench scale` prints; the parts are those of the module's documentation."""
    from anchoreval.model.machine import processor

    yield f"{processor()}, {os.cpu_count()} cores, one thread each; CPU s (MB) unless it says otherwise"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")  # what boards keep of runs is not there yet
        if "records" in parts:
            dict(_by_records(folder / "first", 1, length))  # what is made once a machine: compiled files, checks
            costs = {size * TASKS * len(ARMS): dict(_by_records(folder / str(size), size, length)) for size in samples}
            yield f"\nRULER's {TASKS} tasks at {length:,} tokens, {len(ARMS)} arms; exponent, what one more costs"
            yield from _table(costs, "records")
        if "runs" in parts:
            yield f"\nboards of runs of {RUN_RECORDS} records; exponent, what one more costs"
            yield from _table({count: dict(_by_runs(folder / f"runs-{count}", count)) for count in runs}, "runs")
        if "driver" in parts:
            yield from _driver(folder / "driver", lengths, prompts)
    if "engines" in parts:
        asked = ["bench", "engines", "--jobs", "score,generate", "--lengths", ",".join(map(str, engine_lengths))]
        yield f"\n{_ran(['-m', 'anchoreval', *asked]).strip()}"


def _driver(folder: Path, lengths: Sequence[int], prompts: int) -> Iterator[str]:
    """Yield a line for each length: records a second over Ray, and whether the bytes are those of one process."""
    yield f"\nRULER's {TASKS} tasks, {prompts} prompts each, {len(ARMS)} arms; the loop over Ray with {WORKERS} workers"
    yield f"{'tokens':>9}{'records':>9}{'a second':>10}{'CPU ms of driver':>18}{'MB':>6}{'in one process':>16}  bytes"
    costs = []
    for length in lengths:
        asked = {"lengths": [length], "limit": prompts, "arms": ",".join(ARMS), "max_length": length}
        alone, spread = folder / f"{length}-alone", folder / f"{length}-ray"
        one = json.loads(_ran(["-c", _DRIVEN, json.dumps(asked | {"output": str(alone)})]).splitlines()[-1])
        over = json.dumps(asked | {"output": str(spread), "ray": "local", "workers": WORKERS})
        count, wall, cpu, megabytes = json.loads(_ran(["-c", _DRIVEN, over]).splitlines()[-1])
        files = [next(place.glob("*/*/records.jsonl")).read_bytes() for place in (alone, spread)]
        costs.append(1e3 * cpu / count)
        rates = f"{count / wall:>10.1f}{costs[-1]:>18.1f}{megabytes:>6.0f}{count / one[1]:>16.1f}"
        yield f"{length:>9,}{count:>9,}{rates}  {'the same' if files[0] == files[1] else 'OTHERS'}"
    if len(lengths) > 1:
        slope = math.log(costs[-1] / costs[0]) / math.log(lengths[-1] / lengths[0])
        yield f"exponent of the driver's CPU a record by the tokens of a prompt: {slope:.2f}"


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
    header = json.loads((records.parent / "header.json").read_text("utf-8"))
    for key in ("finished", "seal"):
        header.pop(key)
    (records.parent / "header.json").write_text(json.dumps(header), "utf-8")
    records.write_bytes(b"".join(lines[:-1]))


def _by_runs(folder: Path, count: int) -> Iterator[tuple[str, Cost]]:
    for number in range(count):
        generate(folder / "runs" / f"model-{number:04}" / "run", number, RUN_RECORDS)
    definition = folder / "generated.yaml"
    definition.write_text(json.dumps(DEFINITION), "utf-8")
    summary = ["board", str(folder / "runs"), "-q"]
    declared = [*summary, "--definition", str(definition), "--output", str(folder)]
    yield "summary", _cost(summary)
    yield "summary again", _cost(summary)
    yield "declared, nothing kept", _cost([*declared, "--fresh"])
    yield "declared, nothing new", _cost(declared)


def _cost(command: Sequence[str]) -> Cost:
    """Return the cost of a command of the package; of its processes, CPU seconds are summed and the largest counts."""
    return Cost(*json.loads(_ran(["-c", _MEASURED, *command]).strip().splitlines()[-1]))


def _ran(arguments: Sequence[str]) -> str:
    """Run Python in a process of its own with one thread; return what it printed, raise RunError if it failed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise RunError(f"{' '.join(arguments)[-200:]} ended with {done.returncode}: {done.stderr.strip()[-300:]}")
    return done.stdout


def _table(columns: dict[int, dict[str, Cost]], unit: str) -> Iterator[str]:
    """Yield a row for each command: its cost at every size, the exponent between the ends, and what one more costs.

    The exponent holds the start of a process; that the cost of one more is the same between all sizes shows a line.
    """
    sizes = sorted(columns)
    yield f"{'':24}" + "".join(f"{size:>14,} {unit}" for size in sizes)
    for name in columns[sizes[0]]:
        costs = [columns[size][name] for size in sizes]
        shown = "".join(f"{f'{cost.seconds:.1f} ({cost.megabytes:.0f})':>{15 + len(unit)}}" for cost in costs)
        slope = math.log(costs[-1].seconds / costs[0].seconds) / math.log(sizes[-1] / sizes[0])
        steps = zip(pairwise(costs), pairwise(sizes), strict=True)
        more = "".join(f"{1e3 * (b.seconds - a.seconds) / (after - size):8.2f}" for (a, b), (size, after) in steps)
        yield f"{name:24}{shown}  {slope:5.2f} {more} ms"
