"""The files that `anchoreval nll` writes from a run of `nll/text`: from its records, and the log-probabilities beside
them. Nothing in the files depends on the time.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anchoreval.errors import RunError
from anchoreval.files import write_whole
from anchoreval.records.run import Run
from anchoreval.reports.nll.picture import picture
from anchoreval.reports.nll.rows import Losses, Row, csv_of, of_texts, rows_of
from anchoreval.schema import Json, Record
from anchoreval.stats.intervals import LEVEL
from anchoreval.texts.sources import TEXTS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

HEADER, TABLE, BY_TEXT, PICTURE = "nll.json", "nll.csv", "texts.csv", "nll.svg"
WRITTEN = {"csv": TABLE, "by text": BY_TEXT, "picture": PICTURE, "header": HEADER}
TASK = "nll/text"
SCHEMA = 1


def write_tables(
    run: Run, place: Path, asked: dict[str, Json], left_out: Sequence[str], equal: int | None
) -> list[Row]:
    """Write table, table by text, picture and header of a run into a folder, the header last; return the rows.

    `asked` and `left_out` go into the header; `equal` is as for `spans`. Raise RunError if a window has no losses.
    """
    by_length = losses_of(run)
    rows = [row for losses, _ in by_length for row in rows_of(losses, equal)]
    by_text = [line for losses, text_names in by_length for line in of_texts(losses, text_names, equal)]
    tally = [
        {"length": losses.length, "by_text": _tally(losses, text_names, asked)} for losses, text_names in by_length
    ]
    backend, token = run.header.backend, run.header.part("tokenizer")
    header = {
        "schema": SCHEMA,
        "version": metadata.version("anchoreval"),
        "run": run.name,
        "anchor": {"text": token["anchor_token"], "id": token["anchor_id"]} if token.get("anchor_token") else None,
        "tokenizer_sha256": token.get("sha256"),
        "unit": "nats per token; a difference is the arm minus the first arm, token by token",
        "intervals": f"{LEVEL:.0%}, t over the units of each row, variance by leaving out one unit (jackknife)",
        "asked": asked,
        "applied": {row["name"]: row["applied"] for row in run.header.arm_rows},
        "engine": {**backend, "environments": run.header.environments},
        "windows": tally,
        "left_out": list(left_out),
        "rows": [asdict(row) for row in rows],
    }
    write_whole(place / TABLE, [csv_of(rows)])
    write_whole(place / BY_TEXT, [csv_of(by_text)])
    write_whole(place / PICTURE, [picture(run.model, str(backend["dtype"]), rows)])
    write_whole(place / HEADER, [json.dumps(header, indent=1, sort_keys=True, allow_nan=False), "\n"])
    return rows


def losses_of(run: Run) -> list[tuple[Losses, list[str]]]:
    """Return the losses at each length, and the names of the texts of its windows.

    Windows are in the order of their texts and, within a text, of their position. Raise RunError if a window has no
    losses.
    """
    logprobs, by_length = run.token_logprobs(), dict[int, dict[str, dict[tuple[int, int], Record]]]()
    names: dict[str, int] = {}
    for record in run.records:
        if record.task == TASK:
            if record.key not in logprobs:
                why = record.why or "its log-probabilities are not in the run folder"
                raise RunError(f"{run.path}: {record.sample_id} under {record.arm} has no losses: {why}")
            number = names.setdefault(str(record.facts["text"]), len(names))
            windows = by_length.setdefault(record.length, {}).setdefault(record.arm, {})
            windows[number, int(record.facts["first"])] = record
    result = []
    for length, by_arm in sorted(by_length.items()):
        places = sorted(next(iter(by_arm.values())))
        if any(sorted(windows) != places for windows in by_arm.values()):
            raise RunError(f"{run.path}: the arms have not the same windows at {length}: run the same command again")
        losses = {arm: _stacked([logprobs[by_arm[arm][place].key] for place in places]) for arm in run.header.arms}
        result.append((Losses(length, losses, tuple(number for number, _ in places)), list(names)))
    return result


def _stacked(logprobs: Sequence[Any]) -> NDArray[np.float64]:
    """Return losses [windows, length - 1] in nats."""
    import numpy as np

    return -np.stack([np.asarray(window, np.float64) for window in logprobs])


def _tally(losses: Losses, names: Sequence[str], asked: dict[str, Json]) -> dict[str, int]:
    """Return how many windows each text has, including texts without one."""
    counts = Counter(names[number] for number in losses.text_of)
    return {text["name"]: counts[text["name"]] for text in asked["texts"]}


def texts_of(run: Run) -> list[dict[str, Json]]:
    """Return the texts of a finished run: name, SHA-256 and tokens."""
    files = {name.removeprefix(f"{TEXTS}/"): row for name, row in run.header.part("source_files").items()}
    return [{"name": name, "sha256": row["sha256"], "tokens": row["tokens"]} for name, row in files.items()]
