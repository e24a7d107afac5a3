"""Data of the general benchmarks: list what a folder holds, and fetch the rest from the hub at pinned revisions."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from anchoreval.errors import SourceError
from anchoreval.files import write_json_lines, write_whole
from anchoreval.suites import FileState
from anchoreval.suites.general import harness as lm_eval_tasks
from anchoreval.suites.general import rows as general_rows
from anchoreval.suites.general.rows import FOLDER, HUB, OnHub
from anchoreval.texts.sources import Sources

if TYPE_CHECKING:
    from anchoreval.cards import Task


def splits_of(task: Task) -> tuple[str, ...]:
    """Return the splits that a task's prompts are made of: the split that is asked, then the one of the examples."""
    hub = HUB[task.args["folder"]]
    return (hub.asked, hub.examples) if task.args.get("shots") and hub.examples else (hub.asked,)


def states(sources: Sources) -> Iterator[FileState]:
    """Yield the state of every needed split in a folder, then of each data set that is in no folder."""
    lacking: Counter[str] = Counter()
    for task in _tasks():
        rows = general_rows.local(sources, task.args["task"])
        if rows is None:
            lacking[task.args["folder"]] += 1
            continue
        for split in splits_of(task):
            path = rows.folder / f"{split}.jsonl"
            yield _state(f"{FOLDER}/{rows.folder.name}/{path.name}", path, task, split)
    for folder, count in lacking.items():
        hub, tasks = HUB[folder], f"{count} task{'s' if count > 1 else ''}"
        about = f"revision {hub.revision[:7]}, {tasks}: a run takes the rows from the hub"
        yield FileState(hub.dataset, "missing", about)


def _state(file: str, path: Path, task: Task, split: str) -> FileState:
    """Return the state of a split's file.

    A file that `data fetch` wrote is compared with its stamp. For other files no SHA-256 was published; only the number
    of rows of the split that is asked is known.
    """
    if not path.is_file():
        return FileState(file, "missing", str(path))
    if stamped := general_rows.fetched(path.parent, split):
        return _fetched_state(file, path, HUB[task.args["folder"]], stamped)
    with path.open("rb") as lines:
        there = sum(1 for line in lines if line.strip())
    if split == HUB[task.args["folder"]].asked and there != task.samples:
        return FileState(file, "differs", f"{there} rows {path}, published: {task.samples} rows")
    return FileState(file, "unpinned", f"{there} rows {path}")


def _fetched_state(file: str, path: Path, hub: OnHub, stamped: object) -> FileState:
    try:
        sha256 = general_rows.sha256_of_file(path)
    except SourceError as error:
        return FileState(file, "differs", str(error))
    if stamped == general_rows.stamp(hub, sha256):
        return FileState(file, "published", f"revision {hub.revision[:7]} {path}")
    what = f"{path} is not what was fetched at revision {hub.revision[:7]}: move it away, then fetch again"
    return FileState(file, "differs", what)


def fetch(folder: Path, say: Callable[[str], None]) -> None:
    """Write `folder`/general/<task>/<split>.jsonl of every task, with the hub's rows at the pinned revision.

    Existing files are left alone. Raise SourceError for the first data set that cannot be loaded.
    """
    lm_eval_tasks.require()
    for task in _tasks():
        paths = [folder / FOLDER / task.args["task"] / f"{split}.jsonl" for split in splits_of(task)]
        if not all(path.is_file() for path in paths):
            _fetch(task, paths)
        for path in paths:
            say(str(path))


def _fetch(task: Task, paths: list[Path]) -> None:
    name, folder = task.args["task"], task.args["folder"]
    try:
        loaded = lm_eval_tasks.load(name, folder, 0, **general_rows.pinned(folder))
    except Exception as error:  # datasets and huggingface_hub raise many kinds
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise SourceError(f"{task.address}: {HUB[folder].dataset} cannot be had from the hub ({reason})") from error
    stamps = {}
    for path in paths:
        rows = loaded.dataset[path.stem]
        write_json_lines(path, rows, default=str)
        stamps[path.stem] = general_rows.stamp(HUB[folder], general_rows.sha256_of_rows(rows))
    write_whole(paths[0].parent / general_rows.FETCHED, [json.dumps(stamps, indent=1) + "\n"])


def _tasks() -> list[Task]:
    from anchoreval.cards import load_tasks

    return [task for task in load_tasks()[0].values() if task.suite == FOLDER]
