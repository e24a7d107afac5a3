"""A viewer without prompts beside the records of a run, so that boards have a place to link to.

It is cheap, needs neither tokenizer nor source texts, and is never a reason to fail: what goes wrong is a notice.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from anchoreval.errors import AnchorEvalError
from anchoreval.results import RECORDS, Run, load_run
from anchoreval.view.write import FOLDER, PAGE, mark_of, write_view

Tell = Callable[[str], None]
MOST_BYTES = 64 * 2**20  # of records that a board reads a second time for viewers


def renew(run: Run, tell: Tell) -> None:
    """A viewer of the run as it is now; one of the same records that has prompts stays as it is."""
    if not _has_prompts(run):
        _write(run, tell)


def supply(paths: Iterable[Path], tell: Tell) -> None:
    """A viewer for every run folder that has none and can be written to; none where that is over MOST_BYTES to read."""
    bare = [path for path in paths if not (path / FOLDER / PAGE).is_file() and os.access(path, os.W_OK | os.X_OK)]
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
        write_view(run, prompts=False)
    except (AnchorEvalError, KeyError, TypeError, ValueError, AttributeError) as error:  # headers of any shape
        tell(f"no viewer: {error}; boards link to records.jsonl instead")


def _has_prompts(run: Run) -> bool:
    """Whether the viewer that lies there holds prompts and shows these very records."""
    try:
        page = (run.path / FOLDER / PAGE).read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        return False
    found = re.search(r'<body [^>]*data-records="([0-9a-f]{64})" data-prompts="(\d+)">', page)
    return found is not None and int(found[2]) > 0 and found[1] == mark_of(run)
