"""The seal of a finished run, over its header, its records and what lies beside them, so that a later change shows."""

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
    """What of a finished run is not as its seal has it, once all `lines` were read; empty where all is, or it has none.

    Runs of format 1 may have none.
    """
    if not header.get("finished"):
        return ""
    seal = header.get("seal")
    if seal is None:
        return "its seal is gone" if header.get("schema") == SCHEMA else ""
    said = seal_of(header, lines.sha256, lines.count, sha256_of(lines.path.parent))
    parts = changed_parts(seal, said)
    return f"the {' and the '.join(parts)} changed since it finished (seal)" if parts else ""


def changed_parts(seal: Mapping[str, Json], said: Mapping[str, Json]) -> list[str]:
    """Return which parts of a run are not those of its seal, `said` being the seal that it would get today."""
    parts = [part for part in _PARTS if seal.get(f"{part}_sha256") != said.get(f"{part}_sha256")]
    return [part.replace("_", " ") for part in parts] or (["seal"] if seal != said else [])


_PARTS = ("header", "records", "log_probabilities")


def seal_of(
    header: Mapping[str, Json], records_sha256: str, records: int, logprobs_sha256: str | None = None
) -> dict[str, Json]:
    """What a finished header says of itself and its records, so that a later change of either shows."""
    rest = {key: value for key, value in header.items() if key != "seal"}
    said = hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
    more = {"log_probabilities_sha256": logprobs_sha256} if logprobs_sha256 else {}
    return {"header_sha256": said, "records_sha256": records_sha256, "records": records} | more


def require_seal(path: Path, header: Mapping[str, Json]) -> None:
    """RunError where a finished run is not what it was when it finished."""
    lines = Lines(path / RECORDS)
    if header.get("finished") and there(lines.path):
        for _ in lines:
            pass
    if (changed := changed_since(header, lines)) and header.get("seal") is not None:
        raise RunError(f"{path}: {changed}: `anchoreval verify {path}` says where; use another --output")
