"""`anchoreval nll`: run `nll/text`, then make tables and a picture of the run.

They show losses by position under several arms, and the difference of the arms token by token. The run lies in the
folder of the tables, and the same call resumes it.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from anchoreval.arms.arm import DEFAULT_KERNEL, parse_arms
from anchoreval.errors import LengthError, RunError
from anchoreval.files import content_of, sha256_of, there
from anchoreval.files.strict_json import parse
from anchoreval.model import Model
from anchoreval.reports.nll.rows import Row, spans
from anchoreval.reports.nll.tables import HEADER, TASK, texts_of, write_tables
from anchoreval.runs.evaluate import evaluate, require_one_document
from anchoreval.schema import Watch
from anchoreval.suites.nll.generate import files_of, name_of

if TYPE_CHECKING:
    from anchoreval.arms.arm import Arm
    from anchoreval.prompt import Anchor
    from anchoreval.schema import Json

OLD = "losses.jsonl"  # an older version kept its measurements in this file
LEFT_OUT = "left out: "


def measure(
    model: str,
    text: str | Path,
    *,
    lengths: Sequence[int],
    arms: str = "native",
    output: str | Path = "nll",
    buckets: int | None = None,
    limit: int | None = None,
    dtype: str | None = None,
    kernel: str = DEFAULT_KERNEL,
    device: str = "auto",
    chunk_tokens: int = 512,
    anchor: Anchor = "auto",
    max_length: int | None = None,
    trust_remote_code: bool = False,
    watch: Watch,
    tell: Callable[[str], None],
) -> list[Row]:
    """Return the rows by length, bucket and arm, after writing them to `output`.

    `limit` is the number of windows of each text. Raise AnchorEvalError with a one-line message, if possible before the
    model is loaded.
    """
    opened = Model.of(model, max_length=max_length)
    chosen = tuple(arm.settled("hf") for arm in parse_arms(arms, dtype or opened.card.dtype, kernel))
    require_one_document(chosen, "nll")
    lengths, window, place, text = sorted(set(lengths)), opened.window, Path(output), Path(text)
    for length in lengths:
        spans(length, buckets)
        if window is not None and length > window:
            raise LengthError(f"--lengths {length}: the model has {window} positions (--max-length overrides)")
    asked: dict[str, Json] = {
        "model": opened.name, "texts": _files(text), "arms": [arm.asked() for arm in chosen], "lengths": lengths,
        "buckets": buckets or "doubling", "limit": limit, "chunk_tokens": chunk_tokens, "window": window,
        **({"anchor": anchor} if anchor != "auto" else {}),
    }  # fmt: skip
    _require_same(place, asked)
    if there(place / OLD):
        tell(f"{place / OLD} was kept by an older version and is not read: its windows are computed again")
    for line in beyond(chosen, lengths, window):
        tell(line)
    left_out: list[str] = []

    def hear(line: str) -> None:
        left_out.extend([line.removeprefix(LEFT_OUT)] if line.startswith(LEFT_OUT) else [])
        tell(line)

    run = evaluate(
        model, TASK, lengths=lengths, arms=arms, output=place, dtype=dtype, kernel=kernel, template="base",
        anchor=anchor, haystack="published", text=text, max_length=max_length, watch=watch, tell=hear,
        device=device, chunk_tokens=chunk_tokens, trust_remote_code=trust_remote_code, windows=limit,
    )  # fmt: skip
    return write_tables(run, place, asked | {"texts": texts_of(run)}, left_out, buckets)


def beyond(arms: Sequence[Arm], lengths: Sequence[int], window: int | None) -> list[str]:
    """Return a notice for each arm that shifts tokens beyond the model's positions at a length that fits unshifted."""
    notices = []
    for arm in arms:
        over = [n for n in lengths if window is not None and arm.positions.needed(n) > window]
        if over:
            notices.append(
                f"arm {arm.name!r}: beyond the model's {window} positions at lengths {', '.join(map(str, over))}"
            )
    return notices


def _files(text: Path) -> list[dict[str, Json]]:
    """Return name and SHA-256 of each text. The hash of an unreadable file is None; tokenising it raises the error."""
    rows: list[dict[str, Json]] = []
    for file in files_of(text):
        rows.append({"name": name_of(file, text), "sha256": None})
        with contextlib.suppress(OSError):
            rows[-1]["sha256"] = sha256_of(file)
    return rows


def _require_same(place: Path, asked: dict[str, Json]) -> None:
    """Raise RunError if the folder holds tables of other settings."""
    header = place / HEADER
    try:
        old = parse(content_of(header)) if there(header) else {"asked": asked}
        before = dict(old["asked"])
        before["texts"] = [{name: row[name] for name in ("name", "sha256")} for row in before["texts"]]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise RunError(f"{header}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if before != json.loads(json.dumps(asked)):
        raise RunError(f"{header}: made with other settings; use another --output")
