"""The published files of suites: download them, and tell which are there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from anchoreval.errors import SourceError
from anchoreval.files import sha256_of
from anchoreval.suites import FileState, Suite
from anchoreval.texts.download import address_of, digest_of, download, unconnected
from anchoreval.texts.sources import Published, Sources

Say = Callable[[str], None]
Received = Callable[[int, int | None], None]


def fetch(suite: Suite, folder: Path, say: Say, note: Say, received: Received = lambda _have, _of: None) -> bool:
    """Download the files of a suite into a folder, leave those that are there and correct, and `say` their paths.

    Return False if a file could not be fetched; `note` takes why, `received` the bytes so far and in all. For a suite
    of one file, raise SourceError instead, with the addresses and why each failed.
    """
    if suite.fetch is not None:
        suite.fetch(folder, say)
        return True
    complete = True
    for source in suite.files:
        try:
            say(str(_fetched(source, folder / source.file, note, received)))
        except SourceError as error:
            if len(suite.files) == 1:
                raise
            complete = False
            note(str(error))
    return complete


def _fetched(source: Published, target: Path, note: Say, received: Received) -> Path:
    """Return `target`, downloaded from the first address that serves the published file."""
    if target.is_file():
        if digest_of(target, source.sha256) == source.sha256:
            return target
        raise SourceError(f"{target} is not the published file: move it away, then fetch again")
    reasons = []
    for address in source.addresses:
        note(f"fetching {address_of(address)}")
        try:
            return download(address, target, source.sha256, received)
        except (OSError, SourceError) as error:
            reasons.append(f"{address_of(address)}: {error}")
            if unconnected(error):
                break
    raise SourceError(f"{source.file} could not be fetched: {'; '.join(reasons) or source.recipe}")


def states(suite: Suite, sources: Sources) -> Iterator[FileState]:
    """Yield the state of each file of a suite. Files are read whole for their SHA-256."""
    if suite.states is not None:
        yield from suite.states(sources)
        return
    for source in suite.files:
        paths = (place / source.file for place in sources.places())
        yield state_of(source, next((path for path in paths if path.is_file()), None))


def state_of(source: Published, path: Path | None) -> FileState:
    """Return whether the file at `path` is the published one; None stands for a file that was not found."""
    if path is None:
        return FileState(source.file, "missing", source.recipe or f"published at {source.addresses[0]}")
    revision = f"revision {source.revision[:7]} " if source.revision else ""
    if digest_of(path, source.sha256) == source.sha256:
        return FileState(source.file, "published", f"{revision}{path}")
    return FileState(source.file, "differs", f"{path} sha256 {sha256_of(path)}")
