"""Rows of lm-eval's data sets from `general/<task>/<split>.jsonl` of a source folder; what was read, with its hash."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from anchoreval.data.sources import Sources
from anchoreval.errors import SourceError
from anchoreval.schema import Json

FOLDER = "general"
_REVISION = re.compile(r"@([0-9a-f]{40})/")


class LocalRows(Mapping[str, Any]):
    """`datasets.Dataset` by split, each read from its file when first asked for; SourceError where there is none."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.splits: dict[str, Any] = {}

    def __getitem__(self, split: str) -> Any:
        if split not in self.splits:
            import datasets

            self.splits[split] = datasets.Dataset.from_list(list(_lines(self.folder / f"{split}.jsonl")))
        return self.splits[split]

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(path.stem for path in self.folder.glob("*.jsonl")))

    def __len__(self) -> int:
        return len(list(iter(self)))


def _lines(path: Path) -> Iterator[dict[str, Json]]:
    """The rows of a file; SourceError names the file and line that is wrong."""
    if not path.is_file():
        raise SourceError(f"{path} is missing: put the rows of that split there, one JSON object a line")
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                row: Json = json.loads(line)
            except ValueError as error:
                raise SourceError(f"{path}:{number}: not JSON ({error})") from None
            if not isinstance(row, dict):
                raise SourceError(f"{path}:{number}: not a record")
            yield row


def local(sources: Sources, task: str) -> LocalRows | None:
    """The folder of a task's rows, the first that is there; None where there is none."""
    places = (place / FOLDER / task for place in sources.places())
    return next((LocalRows(place) for place in places if place.is_dir()), None)


def note(sources: Sources, task: str, split: str, rows: Any, published: bool) -> None:
    """Remembers a split that prompts are made of: SHA-256 over its rows as JSON, and the revision of the hub's."""
    name = f"{FOLDER}/{task}/{split}"
    if name in sources.files():
        return
    found: set[str] = set()
    for address in (rows.info.download_checksums or {}) if published else {}:
        found |= set(_REVISION.findall(str(address)))
    revision = {"revision": " ".join(sorted(found))} if found else {}
    sources.note_rows(name, sha256_of_rows(rows), len(rows), published, folder=FOLDER, **revision)


def sha256_of_rows(rows: Iterable[Mapping[str, Json]]) -> str:
    """SHA-256 over the rows, each as canonical JSON on a line: the same from a file as from the hub."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True, default=str).encode() + b"\n")
    return digest.hexdigest()
