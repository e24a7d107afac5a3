"""What is committed of smollm2-135m-q4: run folders, tables of `probe` and tables of `nll`."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anchoreval.records.run import Run, find_runs, load_run
from anchoreval.reports.nll.tables import TASK

MODEL = "smollm2-135m-q4"
REPOSITORY = Path(__file__).parents[2]
RESULTS = REPOSITORY / "leaderboards" / "results" / MODEL
COMPARATORS = "comparators"  # runs of all models, beside the models' own
HOSTS = {"float32": "float32 host", "bfloat16": "bf16 host"}

Line = dict[str, str]


@dataclass(frozen=True)
class Table:
    """Committed CSV lines of one measurement: the folder's name, its lines, those of single texts."""

    name: str
    lines: tuple[Line, ...]
    texts: tuple[Line, ...]
    header: dict[str, Any]


@dataclass(frozen=True)
class Evidence:
    """Runs by what they measure, then the tables of the probe and of losses by the names of their folders."""

    runs: dict[str, Run]
    probes: dict[str, Table]
    losses: dict[str, Table]
    unfinished: dict[str, str]
    comparators: tuple[Run, ...] = ()


def read(folder: Path = RESULTS) -> Evidence:
    """Everything under `folder`; what is not finished is named with how far it is."""
    runs, unfinished = {}, {}
    for path in find_runs([folder]) if list(folder.glob("*/header.json")) else []:
        run = load_run(path)
        if run.tasks == (TASK,):  # whose tables are read
            continue
        name = name_of(run)
        if run.header.get("finished"):
            runs[name] = run
        else:
            unfinished[name] = f"{len(run.records):,} records so far"
    probes = {path.parent.name: table(path) for path in sorted(folder.glob("probe-*/probe.csv"))}
    losses = {path.parent.name: table(path) for path in sorted(folder.glob("nll-*/nll.csv"))}
    for kept in sorted([*folder.glob("probe-*/probe.jsonl"), *folder.glob("nll-*/losses.jsonl")]):
        if kept.parent.name not in {*probes, *losses}:
            unfinished[kept.parent.name] = f"{len(kept.read_bytes().splitlines()):,} lines so far"
    compared = folder.parent / COMPARATORS
    comparators = tuple(load_run(path) for path in find_runs([compared])) if compared.is_dir() else ()
    return Evidence(runs, probes, losses, unfinished, comparators)


def table(path: Path) -> Table:
    """A CSV with what lies beside it."""
    texts, header = path.with_name("texts.csv"), path.with_name("nll.json")
    return Table(
        path.parent.name,
        tuple(lines(path)),
        tuple(lines(texts)) if texts.is_file() else (),
        json.loads(header.read_text("utf-8")) if header.is_file() else {},
    )


def lines(path: Path) -> list[Line]:
    """The lines of a CSV."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def name_of(run: Run) -> str:
    """`ruler-1024`, `ruler-4096-chat`, `ruler-1024-bfloat16`, `niah-8192`, `documents-1024`: as the plan has them."""
    header = run.header
    suites = "+".join(dict.fromkeys(str(task).split("/")[0] for task in header["tasks"]))
    masked = any(arm["name"].startswith(("anchor/", "intra-doc/")) for arm in header["arms"])
    parts = ["documents" if masked else suites, "-".join(map(str, header["lengths"]))]
    parts += ["chat"] if header["template"] == "chat" else []
    parts += ["bfloat16"] if header["backend"]["dtype"] == "bfloat16" else []
    return "-".join(parts)
