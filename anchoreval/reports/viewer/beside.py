"""A viewer without prompts beside the records of a run, so that boards have a place to link to.

It is cheap, needs neither tokenizer nor source texts, and is never a reason to fail: what goes wrong is a notice.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from html import unescape
from pathlib import Path

from anchoreval.errors import AnchorEvalError
from anchoreval.records.lines import RECORDS
from anchoreval.records.run import Run, load_run
from anchoreval.reports.viewer.files import is_data, is_inert
from anchoreval.reports.viewer.page import page
from anchoreval.reports.viewer.write import DATA, FOLDER, PAGE, mark_of, write_view

Tell = Callable[[str], None]
_PAGE = re.compile(
    r"<title>(.*?) · anchoreval samples</title>.*"
    r'<body data-files="(data/[0-9a-f]{12}/)" data-records="([0-9a-f]{64})" data-prompts="([0-9]{1,12})">',
    re.DOTALL,
)
MOST_BYTES = 64 * 2**20  # of records that a board reads a second time for viewers


def renew(run: Run, tell: Tell) -> None:
    """A viewer of the run as it is now; one of the same records that has prompts stays as it is."""
    if not _has_prompts(run):
        _write(run, tell)


def supply(paths: Iterable[Path], tell: Tell) -> None:
    """A viewer for every run folder that has none of ours and can be written to; none where that is over MOST_BYTES to
    read.
    """
    known = list(paths)
    foreign = [path for path in known if (path / FOLDER / PAGE).is_file() and not is_own(path)]
    bare = [path for path in known if path in foreign or not (path / FOLDER / PAGE).is_file()]
    for path in foreign:
        tell(f"{path / FOLDER / PAGE} is no page of this version, do not open it: a new one takes its place")
    bare = [path for path in bare if os.access(path, os.W_OK | os.X_OK)]
    size = sum((path / RECORDS).stat().st_size for path in bare if (path / RECORDS).is_file())
    if size > MOST_BYTES:
        tell(f"no viewers: {len(bare)} runs hold {size >> 20} MiB of records: write them with `anchoreval view RUN...`")
        return
    for path in bare:
        try:
            run = load_run(path)
        except AnchorEvalError as error:
            tell(f"no viewer: {error}")
            continue
        _write(run, tell)


def _write(run: Run, tell: Tell) -> None:
    try:
        write_view(run)
    except (AnchorEvalError, KeyError, TypeError, ValueError, AttributeError) as error:  # headers of any shape
        tell(f"no viewer: {error}; boards link to records.jsonl instead")


def _has_prompts(run: Run) -> bool:
    """Whether the viewer that lies there is ours, holds prompts and shows these very records."""
    own = is_own(run.path)
    return own is not None and int(own[4]) > 0 and own[3] == mark_of(run)


def is_own(path: Path) -> re.Match[str] | None:
    """The title, data folder, mark and prompts of a run's viewer; None where a byte of it is not as we write it.

    A page and its data files are code that a browser runs, and a run folder may be somebody else's.
    """
    folder = path / FOLDER
    try:
        if any(place.is_symlink() for place in (folder, folder / PAGE, folder / DATA)):
            return None
        text = (folder / PAGE).read_text("utf-8")
        found = _PAGE.search(text)
        if found is None or text != page(unescape(found[1]), found[2], found[3], int(found[4])):
            return None
        data = folder / found[2]
        return found if is_data(data) and all(map(is_inert, data.iterdir())) else None
    except (OSError, ValueError):
        return None
