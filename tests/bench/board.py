"""`bench board`: wall and CPU seconds and peak memory of a declared board over generated run folders."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from anchoreval.cards import select_tasks
from anchoreval.errors import RunError

NEEDLES = {"niah_multikey_1": 4, "niah_multivalue": 4, "niah_multiquery": 4, "vt": 5, "cwe": 0, "fwe": 0, "qa_2": 2}
ARMS = ("native", "bf16")
LENGTHS = (4096, 8192, 16384, 32768, 65536, 131072)
DEFINITION = {
    "title": "Generated runs", "suites": ["ruler"], "baseline": "native",
    "columns": ["by_length", "ruler_13", "ruler_effective_length", "difference", "verdict", "p_holm", "samples"],
    "order": ["-ruler_13"],
}  # fmt: skip
_MEASURED = """import json, resource, sys, time
from pathlib import Path
from anchoreval.reports.board.declared import write_leaderboard
start = time.perf_counter()
workers = int(sys.argv[4])
csv, html = write_leaderboard([Path(sys.argv[1])], Path(sys.argv[2]), Path(sys.argv[3]), workers)
own, others = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
cpu = own.ru_utime + own.ru_stime + others.ru_utime + others.ru_stime
peak = (own.ru_maxrss + workers * others.ru_maxrss) * (1 if sys.platform == "darwin" else 1024)
print(json.dumps([time.perf_counter() - start, cpu, peak, csv.stat().st_size, html.stat().st_size]))
"""


@dataclass(frozen=True, slots=True)
class Cost:
    """What building a board cost, in seconds and bytes; `peak` is the process plus its largest worker per worker."""

    runs: int
    records: int
    seconds: float
    cpu_seconds: float
    peak: int
    csv: int
    html: int

    def __str__(self) -> str:
        """Return the cost as one line."""
        size = f"{self.runs:,} runs, {self.runs * self.records:,} records"
        files = f"CSV {self.csv / 1e6:.1f} MB, HTML {self.html / 1e6:.1f} MB"
        return f"{size}: {self.seconds:.1f} s ({self.cpu_seconds:.1f} CPU s), peak {self.peak / 1e6:.0f} MB; {files}"


def report_board(runs: int, records: int) -> str:
    """Return the line that `bench board` prints."""
    return str(measure(runs, records, os.cpu_count() or 1))


def measure(runs: int, records: int, workers: int = 1) -> Cost:
    """Generate the runs in a temporary folder, then build their board in a separate process."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number in range(runs):
            generate(folder / "runs" / f"model-{number:04}" / "run", number, records)
        definition = folder / "generated.yaml"
        definition.write_text(json.dumps(DEFINITION), "utf-8")
        command = [sys.executable, "-c", _MEASURED, str(folder / "runs"), str(definition), str(folder / "boards")]
        command.append(str(workers))
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RunError(f"the board was not built: {done.stderr.strip().splitlines()[-1]}")
        return Cost(runs, records, *json.loads(done.stdout))


def generate(folder: Path, seed: int, records: int) -> None:
    """Write a run folder of RULER's 13 tasks at one of six lengths under two arms, `records` in all, with no model."""
    folder.mkdir(parents=True)
    length = LENGTHS[seed % len(LENGTHS)]
    header = {
        "run": f"generated-{seed}", "model": {"name": f"model-{seed}", "sha256": f"{seed:064x}", "dtype": "bfloat16"},
        "template": "base", "sources": {"haystack": "generated"}, "comparable": False, "created": "",
        "tasks": [task.address for task in select_tasks("ruler")[0]], "lengths": [length], "arms": list(ARMS),
    }  # fmt: skip
    (folder / "header.json").write_text(json.dumps(header), "utf-8")
    with (folder / "records.jsonl").open("w", encoding="ascii", newline="") as file:
        file.writelines(_lines(random.Random(seed), length, records))


def _lines(rng: random.Random, length: int, records: int) -> Iterator[str]:
    from anchoreval.records.lines import to_line
    from anchoreval.schema import Record

    depths: list[float] = []
    tasks = [task.address for task in select_tasks("ruler")[0]]
    for number in range(records):
        index, at = divmod(number // len(ARMS), len(tasks))
        task, arm = tasks[at], ARMS[number % len(ARMS)]
        facts = {"tokens": length - 20, "unit": "sentences", "fit": "refined", "haystack": "generated"}
        if arm == ARMS[0]:
            depths = [round(rng.random(), 4) for _ in range(NEEDLES.get(task.partition("/")[2], 1))]
        graded = task.endswith(("vt", "cwe", "fwe", "multivalue", "multiquery"))
        score = rng.randrange(5) / 4 if graded else float(rng.random() < 0.8)
        record = Record(
            f"{number:064x}", f"{task}@{length}#{index}", task, length, index, arm, f"{index:064x}", length - 150,
            ("5437923",), facts | {"depths": depths}, " 5437923." + " and so on" * 8, 40, "stop", score, None,
            -rng.random(), 8, 0.27,
        )  # fmt: skip
        yield to_line(record).decode("ascii")
