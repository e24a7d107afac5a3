"""Measure how long this program takes to key and write a record, on the disk where a run would write."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from anchoreval.arms.arm import Arm
from anchoreval.files import write_errors
from anchoreval.records.lines import to_line, write_line
from anchoreval.records.record import keys_of, to_record
from anchoreval.runs.prompts import Pair
from anchoreval.schema import Score, lost_output


def record_seconds(pairs: Sequence[Pair], arm: Arm, folder: Path) -> float:
    """Return the mean seconds of a record, and of its log-probabilities if it has a reference; each is on disk at once.

    The file lies in the nearest folder at or above `folder` that is there, and is gone afterwards.
    """
    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.is_dir())
    with write_errors(place), tempfile.TemporaryFile(dir=place) as file:
        began = time.perf_counter()
        for sample, request in pairs:
            output, score = lost_output(sample.id, "failed", ""), Score(None)
            (key,) = keys_of(request, [arm], "")
            line = to_line(to_record(key, sample, request, arm, output, score))
            for _ in range(2 if request.reference_ids else 1):
                write_line(file.fileno(), line)
        return (time.perf_counter() - began) / max(1, len(pairs))
