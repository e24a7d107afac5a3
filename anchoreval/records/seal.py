"""The seal of a finished run: hashes of header, records and log-probabilities, so that a later change shows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from anchoreval.errors import RunError
from anchoreval.records.header import SCHEMA
from anchoreval.records.lines import RECORDS, Lines
from anchoreval.records.logprobs import sha256_of
from anchoreval.records.plain_files import there
from anchoreval.schema import Json


def changed_since(header: Mapping[str, Json], lines: Lines) -> str:
    """Return a phrase for the parts of a finished run that differ from its seal; empty if none does.

    All `lines` must have been read. A missing seal counts as a change, except in format 1, whose runs may have none.
    """
    if not header.get("finished"):
        return ""
    seal = header.get("seal")
    if seal is None:
        return "its seal is gone" if header.get("schema") == SCHEMA else ""
    today = seal_of(header, lines.sha256, lines.count, sha256_of(lines.path.parent))
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
