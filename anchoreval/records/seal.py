"""The seal of a finished run, over its header and its records, so that a later change of either shows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from anchoreval.errors import RunError
from anchoreval.records.header import SCHEMA
from anchoreval.records.lines import RECORDS, Lines
from anchoreval.records.plain_files import there
from anchoreval.schema import Json


def changed_since(header: Mapping[str, Json], lines: Lines) -> str:
    """What of a finished run is not as its seal has it, once all `lines` were read; empty where all is, or it has none.

    Runs of format 1 may have none.
    """
    if not header.get("finished"):
        return ""
    seal = header.get("seal")
    if seal is None:
        return "its seal is gone" if header.get("schema") == SCHEMA else ""
    said = seal_of(header, lines.sha256, lines.count)
    parts = [part for part in ("header", "records") if seal.get(f"{part}_sha256") != said[f"{part}_sha256"]]
    if not parts and seal != said:
        parts = ["seal"]
    return f"the {' and the '.join(parts)} changed since it finished (seal)" if parts else ""


def seal_of(header: Mapping[str, Json], records_sha256: str, records: int) -> dict[str, Json]:
    """What a finished header says of itself and its records, so that a later change of either shows."""
    rest = {key: value for key, value in header.items() if key != "seal"}
    said = hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
    return {"header_sha256": said, "records_sha256": records_sha256, "records": records}


def require_seal(path: Path, header: Mapping[str, Json]) -> None:
    """RunError where a finished run is not what it was when it finished."""
    lines = Lines(path / RECORDS)
    if header.get("finished") and there(lines.path):
        for _ in lines:
            pass
    if (changed := changed_since(header, lines)) and header.get("seal") is not None:
        raise RunError(f"{path}: {changed}: `anchoreval verify {path}` says where; use another --output")
