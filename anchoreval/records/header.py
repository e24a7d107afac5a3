"""A run's header: what it is called, which formats are written and read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from anchoreval.errors import RunError
from anchoreval.records.header_shape import problem_of
from anchoreval.records.plain_files import content_of
from anchoreval.records.strict_json import parse
from anchoreval.schema import Json

HEADER = "header.json"
SCHEMA = 2  # of runs that are written
READ = (1, 2)  # of runs that are read


def fingerprint(identity: Mapping[str, Json]) -> str:
    """Sixteen hexadecimal digits over a canonical JSON of everything that changes a record."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def read_header(path: Path) -> dict[str, Json]:
    """A header file as JSON, each key that is there of its kind; RunError names the first that is not."""
    try:
        header: dict[str, Json] = parse(content_of(path))
    except ValueError as error:
        raise RunError(f"{path}: cannot be read ({error}): no run here") from error
    if problem := problem_of(header):
        raise RunError(f"{path}: {problem}")
    return header
