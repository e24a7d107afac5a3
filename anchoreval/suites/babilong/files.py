"""Which files of BABILong are there: bAbI's zip or its unpacked files, and published samples."""

from __future__ import annotations

from collections.abc import Iterator

from anchoreval.suites.babilong import published
from anchoreval.suites.babilong.stories import BABI, NAMES, ZIP, file_name, find
from anchoreval.suites.files import state_of
from anchoreval.suites.suite import FileState
from anchoreval.texts.sources import Sources


def states(sources: Sources) -> Iterator[FileState]:
    """Yield the state of bAbI's zip or its unpacked files, then of the published samples that are there.

    No hash of those samples is known.
    """
    stories = {data: find(sources, data) for data in NAMES}
    unpacked = {data: path for data, path in stories.items() if path and path.name != ZIP}
    if not unpacked or any(path and path.name == ZIP for path in stories.values()):
        yield state_of(BABI, next((path for path in stories.values() if path and path.name == ZIP), None))
    for data, story_file in unpacked.items():
        yield FileState(file_name(data), "unpinned", f"{story_file}, only {ZIP} has a hash")
    known = [(data, name) for data in NAMES for name in published.names(data)]
    there = {(data, name): path for data, name in known if (path := published.find(sources, data, name))}
    for (data, name), path in there.items():
        yield FileState(f"{data}/{name}.json", "unpinned", f"{path}, revision {published.REVISION[:7]} has no hash")
    if not there:
        yield FileState("qa*/*k.json", "missing", f"published at {published.ADDRESS}: a run takes them from the hub")
