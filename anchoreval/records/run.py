"""A run read from disk: its header and its records."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from anchoreval.errors import RunError
from anchoreval.records.header import HEADER, read_header
from anchoreval.records.line import record_of
from anchoreval.records.lines import RECORDS, Lines, each_fields
from anchoreval.records.plain_files import there
from anchoreval.records.seal import changed_since
from anchoreval.schema import Json, Record


@dataclass(frozen=True, slots=True)
class Run:
    """A run read from disk; `changed` says what of a finished run is not what it was when it finished."""

    path: Path
    header: Mapping[str, Json]
    records: tuple[Record, ...]
    changed: str = ""


def load_run(path: Path) -> Run:
    """Header and records of one run folder; RunError for what is not of their shape."""
    run, lines = header_alone(path), Lines(path / RECORDS)
    records = [record_of(values) for _, values in each_fields(lines)] if there(path / RECORDS) else []
    return dataclasses.replace(run, records=tuple(records), changed=changed_since(run.header, lines))


def header_alone(path: Path) -> Run:
    """A run folder without its records; RunError where there is no header, or none of its shape."""
    return Run(path, read_header(path / HEADER), ())


def find_runs(paths: Iterable[Path]) -> list[Path]:
    """The run folders at or under each path, sorted; RunError for a path that holds none."""
    found: list[Path] = []
    for path in paths:
        here = [path] if there(path / HEADER) else sorted(item.parent for item in path.glob(f"**/{HEADER}"))
        if not here:
            raise RunError(f"{path}: no run here: no {HEADER} in it or under it")
        found += here
    return list(dict.fromkeys(found))


def tell_changed(run: Run, tell: Callable[[str], None]) -> None:
    """Tell of a run that is not what it was when it finished."""
    if run.changed:
        tell(f"{run.path}: {run.changed}: `anchoreval verify` says where")
