"""A viewer without prompts beside the records of a run, so that boards can link to it.

It is cheap and needs neither tokenizer nor source texts. A failure to write it is only a notice.
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
from anchoreval.reports.viewer.write import DATA, FOLDER, PAGE, mark_of, page, write_view

Tell = Callable[[str], None]
_PAGE = re.compile(
    r"<title>(.*?) · anchoreval samples</title>.*"
    r'<body data-files="(data/[0-9a-f]{12}/)" data-records="([0-9a-f]{64})" data-prompts="([0-9]{1,12})">',
    re.DOTALL,
)
MOST_BYTES = 64 * 2**20  # of records that a board reads a second time for viewers


def renew(run: Run, tell: Tell) -> None:
    """Write a viewer of the run as it is now; keep a viewer of the same records that has prompts."""
    if not _has_prompts(run):
        _write(run, tell)


def supply(paths: Iterable[Path], tell: Tell) -> None:
    """Write a viewer for every run folder that has none of ours and can be written to.

    Write none if that would mean reading more than MOST_BYTES of records.
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
    """Return whether the present viewer is ours, holds prompts and shows exactly these records."""
    match = is_own(run.path)
    return match is not None and int(match[4]) > 0 and match[3] == mark_of(run)


def is_own(path: Path) -> re.Match[str] | None:
    """Return title, data folder, mark and prompts of a run's viewer, or None if any byte differs from what we write.

    A page and its data files are code that a browser runs, and a run folder may be somebody else's.
    """
    folder = path / FOLDER
    try:
        if any(part.is_symlink() for part in (folder, folder / PAGE, folder / DATA)):
            return None
        text = (folder / PAGE).read_text("utf-8")
        match = _PAGE.search(text)
        if match is None or text != page(unescape(match[1]), match[2], match[3], int(match[4])):
            return None
        data = folder / match[2]
        return match if is_data(data) and all(map(is_inert, data.iterdir())) else None
    except (OSError, ValueError):
        return None
