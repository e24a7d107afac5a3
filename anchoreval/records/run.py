"""A run read from disk: header, records, and the seal of a finished run, hashes by which a later change shows."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from pydantic import ValidationError

from anchoreval.errors import MissingExtra, RunError
from anchoreval.files import there
from anchoreval.records.header import HEADER, READ, SCHEMA, Header, read_header
from anchoreval.records.lines import RECORDS, Lines, TokenLogprobs, each_fields, logprobs_sha256, record_of
from anchoreval.records.parts import HeaderParts
from anchoreval.schema import Json, Record
from anchoreval.stats import Place, Scores, Subject, by_arm, per_token


@dataclass(frozen=True)
class Run:
    """A run read from disk; `changed` tells which parts of a finished run changed since it finished, or is empty.

    `name` and `model` are those of the header; without them, the name of the folder and that of the run. `tasks` and
    `arms` are the header's, then any others of the records; `lengths` are the header's.
    """

    path: Path
    header: Header
    records: tuple[Record, ...]
    changed: str = ""
    name: str = field(init=False, repr=False, compare=False)
    model: str = field(init=False, repr=False, compare=False)
    tasks: tuple[str, ...] = field(init=False, repr=False, compare=False)
    arms: tuple[str, ...] = field(init=False, repr=False, compare=False)
    lengths: list[int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Fill in the names, and make a header that is given as plain JSON a `Header`."""
        header = self.header if isinstance(self.header, Header) else Header(self.header)
        name = header.run or self.path.name
        tasks = tuple(dict.fromkeys((*header.tasks, *sorted({record.task for record in self.records}))))
        arms = tuple(dict.fromkeys((*header.arms, *sorted({record.arm for record in self.records}))))
        model = str(header.model.get("name") or name)
        vars(self).update(header=header, name=name, model=model, tasks=tasks, arms=arms, lengths=header.lengths)

    @cached_property
    def parts(self) -> HeaderParts:
        """The parts of the header that prompts follow from; RunError with the first key that is missing or wrong."""
        try:
            parts = HeaderParts.model_validate(self.header)
        except ValidationError as error:
            first = error.errors()[0]
            where = " > ".join(str(part) for part in first["loc"]) or "top level"
            raise RunError(f"{self.path / HEADER}: {where}: {first['msg'].lower()}") from None
        if parts.identity.version_ not in READ:
            known = " and ".join(map(str, READ))
            raise RunError(f"{self.path / HEADER}: schema {parts.identity.version_}, this version reads {known}")
        return parts

    def subjects(self, run: str = "") -> dict[Subject, dict[Place, Scores]]:
        """Return the subjects of comparison, each with its scores by task and length, in the header's order.

        `run` is the name to print for the run; empty for its own name. Raise RunError for a sample recorded twice.
        """
        scores = by_arm(self.records, self.header.arms)
        for arm, cells in self.header.stopped.items():
            for place, words in cells.items():
                if place in scores.get(arm, {}):
                    scores[arm][place].stopped = words
        return {self.header.subject(arm, run or self.name): cells for arm, cells in scores.items() if cells}

    def token_logprobs(self) -> TokenLogprobs:
        """Return record key -> log-probabilities of the reference's tokens, for the records that have any.

        Values are read from disk when they are used. Raise RunError if the file is not that of a run.

            >>> logprobs = run.token_logprobs()
            >>> losses = {record.sample_id: logprobs[record.key] for record in run.records if record.key in logprobs}
        """
        return TokenLogprobs(self.path)

    def to_pandas(self) -> Any:
        """Return a pandas DataFrame with a row per record, in their order; raise MissingExtra without pandas.

        Columns are the fields of a record as export names them (scores 0..1, log-probabilities in nats), with
        `logprob_per_token`, and one per fact that is a number, a text or true or false: `facts.depth`. Facts that are
        lists or objects are on `records` alone.

            >>> table = load_run(Path("runs/anchor-tiny/31bf25797b7ffa79")).to_pandas()
            >>> table.pivot_table("score", ["task", "length"], "arm")
            >>> table[table.outcome != "answered"].groupby(["arm", "outcome"]).size()
        """
        try:
            import pandas
        except ImportError as error:
            raise MissingExtra("to_pandas needs pandas: pip install 'anchoreval[export]'") from error
        rows = []
        for record in self.records:
            fields = {name: getattr(record, name) for name in _FIELDS} | {PER_TOKEN: per_token(record)}
            simple = {name: value for name, value in record.facts.items() if isinstance(value, str | int | float)}
            rows.append(fields | {f"facts.{name}": value for name, value in simple.items()})
        return pandas.DataFrame(rows, columns=None if rows else [*_FIELDS, PER_TOKEN])


_FIELDS = [each.name for each in dataclasses.fields(Record) if each.name != "facts"]
PER_TOKEN = "logprob_per_token"


def load_run(path: Path) -> Run:
    """Return a run folder with header and records; raise RunError if either has another shape."""
    run, lines = header_alone(path), Lines(path / RECORDS)
    records = [record_of(values) for _, values in each_fields(lines)] if there(path / RECORDS) else []
    return dataclasses.replace(run, records=tuple(records), changed=changed_since(run.header, lines))


def header_alone(path: Path) -> Run:
    """Return a run folder without its records; raise RunError if there is no header or it has another shape."""
    return Run(path, read_header(path / HEADER), ())


def find_runs(paths: Iterable[Path]) -> list[Path]:
    """Return the run folders at or under each path, sorted; raise RunError for a path without any."""
    folders: list[Path] = []
    for path in paths:
        here = [path] if there(path / HEADER) else sorted(item.parent for item in path.glob(f"**/{HEADER}"))
        if not here:
            raise RunError(f"{path}: no run here: no {HEADER} in it or under it")
        folders += here
    return list(dict.fromkeys(folders))


def tell_changed(run: Run, tell: Callable[[str], None]) -> None:
    """Tell if a run changed since it finished."""
    if run.changed:
        tell(f"{run.path}: {run.changed}: `anchoreval verify` says where")


class Counted(Protocol):
    """A records file that was read: its path, its hash and the number of its lines."""

    @property
    def path(self) -> Path: ...

    @property
    def sha256(self) -> str: ...

    @property
    def count(self) -> int: ...


def changed_since(header: Mapping[str, Json], lines: Counted) -> str:
    """Return a phrase for the parts of a finished run that differ from its seal; empty if none does.

    All `lines` must have been read. A missing seal counts as a change, except in format 1, whose runs may have none.
    """
    if not header.get("finished"):
        return ""
    seal = header.get("seal")
    if seal is None:
        return "its seal is gone" if header.get("schema") == SCHEMA else ""
    today = seal_of(header, lines.sha256, lines.count, logprobs_sha256(lines.path.parent))
    parts = changed_parts(seal, today)
    return f"the {' and the '.join(parts)} changed since it finished (seal)" if parts else ""


def changed_parts(seal: Mapping[str, Json], said: Mapping[str, Json]) -> list[str]:
    """Return the parts of a run that differ from its seal; `said` is the seal that the run would get today."""
    parts = [part for part in _PARTS if seal.get(f"{part}_sha256") != said.get(f"{part}_sha256")]
    return [part.replace("_", " ") for part in parts] or (["seal"] if seal != said else [])


_PARTS = ("header", "records", "log_probabilities")


def seal_of(
    header: Mapping[str, Json], records_sha256: str, records: int, logprobs_sha256: str | None = None
) -> dict[str, Json]:
    """Return the seal of a finished run: the hashes of its header, records and log-probabilities."""
    rest = {key: value for key, value in header.items() if key != "seal"}
    header_sha256 = hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
    more = {"log_probabilities_sha256": logprobs_sha256} if logprobs_sha256 else {}
    return {"header_sha256": header_sha256, "records_sha256": records_sha256, "records": records} | more


def require_seal(path: Path, header: Mapping[str, Json]) -> None:
    """Raise RunError if a finished run changed since it finished."""
    lines = Lines(path / RECORDS)
    if header.get("finished") and there(lines.path):
        for _ in lines:
            pass
    if (changed := changed_since(header, lines)) and header.get("seal") is not None:
        raise RunError(f"{path}: {changed}: `anchoreval verify {path}` says where; use another --output")
