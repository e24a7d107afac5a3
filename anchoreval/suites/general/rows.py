"""Rows of lm-eval's data sets: `general/<task>/<split>.jsonl` of a source folder, else of the hub, revisions pinned.

`states` lists what the folders hold, and `fetch` gets the rest from the hub.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anchoreval.errors import CardError, SourceError
from anchoreval.files import write_json_lines, write_whole
from anchoreval.schema import Json
from anchoreval.suites import FileState
from anchoreval.suites.general import harness
from anchoreval.texts.reading import json_lines, json_of
from anchoreval.texts.sources import Sources

if TYPE_CHECKING:
    from anchoreval.cards import Task

FOLDER = "general"
FETCHED = "fetched.json"  # beside the files of a task that `data fetch` wrote: a stamp for each split


@dataclass(frozen=True, slots=True)
class OnHub:
    """A data set on the hub: its revision, the split that is asked and the split that examples are drawn from."""

    dataset: str
    revision: str
    asked: str
    examples: str = ""


#: Folder of lm-eval's tasks -> the data set that all of its tasks read. Revisions are those that the hub had in 2026.
HUB = {
    "arc": OnHub("allenai/ai2_arc", "210d026faf9955653af8916fad021475a3f00453", "test", "train"),
    "bbh/cot_fewshot": OnHub("SaylorTwift/bbh", "b5306be6f827cfafbb545ff5a51f96916029b0fd", "test"),
    "gsm8k": OnHub("openai/gsm8k", "740312add88f781978c0658806c59bc2815b9866", "test", "train"),
    "hellaswag": OnHub("Rowan/hellaswag", "218ec52e09a7e7462a5400043bb9a69a41d06b76", "validation", "train"),
    "lambada": OnHub("EleutherAI/lambada_openai", "900124bf3b8235c6daf21033af9948b3f07346c4", "test"),
    "mmlu/default": OnHub("cais/mmlu", "c30699e8356da336a370243923dbaf21066bb9fe", "test", "dev"),
    "piqa": OnHub("baber/piqa", "142f6d7367fd9877f0fb3b5734ea6a545f54cdd1", "validation", "train"),
    "truthfulqa": OnHub("truthfulqa/truthful_qa", "741b8276f2d1982aa3d5b832d3ee81ed3b896490", "validation"),
    "winogrande": OnHub("allenai/winogrande", "01e74176c63542e6b0bcb004dcdea22d94fb67b5", "validation", "train"),
}


def pinned(folder: str) -> dict[str, Json]:
    """Return the `changes` for `load` that pin the hub's revision; raise CardError if no revision is pinned."""
    if folder not in HUB:
        known = f"no revision is pinned for lm-eval's folder {folder!r} ({', '.join(sorted(HUB))})"
        raise CardError(f"{known}: put its rows into --data-dir")
    return {"dataset_kwargs": {"revision": HUB[folder].revision}}


class LocalRows(Mapping[str, Any]):
    """Split -> `datasets.Dataset`, read from its file on first use; SourceError if there is no such file."""

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
    """Yield the rows of a file; raise SourceError that names the file and the wrong line."""
    if not path.is_file():
        raise SourceError(f"{path} is missing: put the rows of that split there, one JSON object a line")
    first: set[str] = set()
    with path.open("rb") as file:
        for where, row in json_lines(file, path):
            if not (first := first or set(row)):
                raise SourceError(f"{where}: not a record: it has no key")
            if lacking := first ^ {key for key, value in row.items() if value is not None}:
                raise SourceError(f"{where}: {', '.join(sorted(lacking))[:80]} is not in every line, or null")
            yield row


def local(sources: Sources, task: str) -> LocalRows | None:
    """Return the rows of a task from the first source folder that has them, or None."""
    places = (place / FOLDER / task for place in sources.places())
    return next((LocalRows(place) for place in places if place.is_dir()), None)


def note(sources: Sources, task: str, split: str, rows: Any, hub: OnHub | None, folder: Path | None) -> None:
    """Note a split that prompts are made of in `sources`: the SHA-256 over its rows as JSON, data set and revision.

    Data set and revision are noted for rows of the hub, and for rows of a `folder` if `data fetch` wrote them there.
    """
    name = f"{FOLDER}/{task}/{split}"
    if name not in sources.files():
        sha256 = sha256_of_rows(rows)
        known = hub is not None and (folder is None or fetched(folder, split) == stamp(hub, sha256))
        origin = {"dataset": hub.dataset, "revision": hub.revision} if hub and known else {}
        sources.note_rows(name, sha256, len(rows), known, folder=FOLDER, **origin)


def stamp(hub: OnHub, sha256: str) -> dict[str, Json]:
    """Return the stamp that is written for a fetched split."""
    return {"dataset": hub.dataset, "revision": hub.revision, "sha256": sha256}


def fetched(folder: Path, split: str) -> Json:
    """Return the stamp of a split in the folder of a task, or None if it has no stamp."""
    path = folder / FETCHED
    stamps = json_of(path.read_bytes(), str(path)) if path.is_file() else {}
    return stamps.get(split) if isinstance(stamps, dict) else None


def sha256_of_rows(rows: Iterable[Mapping[str, Json]]) -> str:
    """Return the SHA-256 over the rows as lines of canonical JSON: the same for a file as for the hub."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True, default=str).encode() + b"\n")
    return digest.hexdigest()


def states(sources: Sources) -> Iterator[FileState]:
    """Yield the state of every needed split in a folder, then of each data set that is in no folder."""
    lacking: Counter[str] = Counter()
    for task in _tasks():
        rows = local(sources, task.args["task"])
        if rows is None:
            lacking[task.args["folder"]] += 1
            continue
        for split in splits_of(task):
            yield _state(rows.folder / f"{split}.jsonl", task, split)
    for folder, count in lacking.items():
        hub, tasks = HUB[folder], f"{count} task{'s' if count > 1 else ''}"
        about = f"revision {hub.revision[:7]}, {tasks}: a run takes the rows from the hub"
        yield FileState(hub.dataset, "missing", about)


def _state(path: Path, task: Task, split: str) -> FileState:
    """Return the state of a split's file.

    A file that `data fetch` wrote is compared with its stamp. For other files no SHA-256 was published; only the number
    of rows of the split that is asked is known.
    """
    file, hub = f"{FOLDER}/{path.parent.name}/{path.name}", HUB[task.args["folder"]]
    if not path.is_file():
        return FileState(file, "missing", str(path))
    if stamped := fetched(path.parent, split):
        try:
            sha256 = sha256_of_rows(_lines(path))
        except SourceError as error:
            return FileState(file, "differs", str(error))
        if stamped == stamp(hub, sha256):
            return FileState(file, "published", f"revision {hub.revision[:7]} {path}")
        what = f"{path} is not what was fetched at revision {hub.revision[:7]}: move it away, then fetch again"
        return FileState(file, "differs", what)
    with path.open("rb") as lines:
        there = sum(1 for line in lines if line.strip())
    if split == hub.asked and there != task.samples:
        return FileState(file, "differs", f"{there} rows {path}, published: {task.samples} rows")
    return FileState(file, "unpinned", f"{there} rows {path}")


def fetch(folder: Path, say: Callable[[str], None]) -> None:
    """Write `folder`/general/<task>/<split>.jsonl of every task, with the hub's rows at the pinned revision.

    Existing files are left alone. Raise SourceError for the first data set that cannot be loaded.
    """
    harness.require()
    for task in _tasks():
        name, hub = task.args["task"], HUB[task.args["folder"]]
        paths = [folder / FOLDER / name / f"{split}.jsonl" for split in splits_of(task)]
        if not all(path.is_file() for path in paths):
            try:
                loaded = harness.load(name, task.args["folder"], 0, **pinned(task.args["folder"]))
            except Exception as error:  # datasets and huggingface_hub raise many kinds
                raise SourceError(
                    f"{task.address}: {hub.dataset} cannot be had from the hub ({harness.first_line(error)})"
                ) from error
            stamps = {}
            for path in paths:
                rows = loaded.dataset[path.stem]
                write_json_lines(path, rows, default=str)
                stamps[path.stem] = stamp(hub, sha256_of_rows(rows))
            write_whole(paths[0].parent / FETCHED, [json.dumps(stamps, indent=1) + "\n"])
        for path in paths:
            say(str(path))


def splits_of(task: Task) -> tuple[str, ...]:
    """Return the splits that a task's prompts are made of: the split that is asked, then the one of the examples."""
    hub = HUB[task.args["folder"]]
    return (hub.asked, hub.examples) if task.args.get("shots") and hub.examples else (hub.asked,)


def _tasks() -> list[Task]:
    from anchoreval.cards import load_tasks

    return [task for task in load_tasks()[0].values() if task.suite == FOLDER]
