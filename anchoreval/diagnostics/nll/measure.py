"""`anchoreval nll`: loss by position on long texts under several arms, and what the arms differ by, token by token.

Texts are cut into windows of the length, what is left over at the end is dropped; every window begins with
the anchor token. One prefill per window and arm, kept at once in losses.jsonl, from which the same command goes on. A
text is one document, so attention patterns and positions that only act on documents are refused.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anchoreval.arms.arm import DEFAULT_KERNEL, widest_product
from anchoreval.diagnostics.nll.report import Losses, OfText, Row, csv_of, of_texts, rows_of, spans
from anchoreval.errors import LengthError, ModelError, RunError, SourceError, UnsupportedArm
from anchoreval.records.kept import Kept, name_of
from anchoreval.schema import Progress, Watch, work
from anchoreval.stats.intervals import LEVEL

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from anchoreval.arms.arm import Arm
    from anchoreval.backends.hf.backend import HfBackend
    from anchoreval.prompt import Anchor
    from anchoreval.schema import Json
    from anchoreval.tokenizer import TextTokenizer

HEADER, TABLE, TEXTS, PICTURE, LOSSES = "nll.json", "nll.csv", "texts.csv", "nll.svg", "losses.jsonl"
WRITTEN = {"csv": TABLE, "by text": TEXTS, "picture": PICTURE, "header": HEADER}
SCHEMA = 1
Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Text:
    """A text as token ids, without the anchor token."""

    name: str
    sha256: str
    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Windows:
    """What is computed at one length: token ids with the anchor first, and the text that each is of."""

    length: int
    ids: tuple[tuple[int, ...], ...]
    text_of: tuple[int, ...]


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
    tell: Tell,
) -> list[Row]:
    """The rows by length, bucket and arm, which are also in `output` when this returns.

    Errors: AnchorEvalError, one line each, before the model is loaded where that is possible.
    """
    from anchoreval.model import Model
    from anchoreval.prompt import anchor_token, require_no_anchor
    from anchoreval.runs.evaluate import notices

    opened = Model.of(model, max_length=max_length)
    name, card = opened.name, opened.card
    chosen = _arms(arms, dtype or card.dtype, kernel)
    for arm in chosen if anchor == "none" else ():
        require_no_anchor(arm)
    lengths = sorted(set(lengths))
    for length in lengths:
        spans(length, buckets)
    tokenizer, window = opened.tokenizer, opened.window
    front = anchor_token(tokenizer) if anchor == "auto" else None
    texts = read_texts(Path(text), tokenizer, front)
    cut, left_out = cut_all(texts, lengths, front, limit, window)
    for line in left_out:
        tell(f"left out: {line}")
    for line in beyond(chosen, lengths, window):
        tell(line)
    numbers = {"buckets": buckets or "doubling", "limit": limit, "chunk_tokens": chunk_tokens, "window": window}
    numbers |= {"anchor": anchor} if anchor != "auto" else {}
    asked = {**_asked(name, texts, chosen), "lengths": lengths, **numbers}
    place = _folder(Path(output), asked)
    kept = Kept(place / LOSSES)
    options = {"device": device, "chunk_tokens": chunk_tokens, "trust_remote_code": trust_remote_code}
    with work(watch, 0, f"opening {name}"):
        backend = _open(card.checkpoint, dtype or card.dtype, kernel, chosen, options)
    try:
        for line in notices(backend.describe()):
            tell(line)
        losses, applied = _losses(backend, cut, chosen, kept, watch)
        facts = {"asked": asked, "applied": applied, "engine": backend.describe()}
    finally:
        backend.close()
    rows = [row for own in losses for row in rows_of(own, buckets)]
    tally = [{"length": own.length, "by_text": _tally(own, texts)} for own in cut]
    by_text = [line for own in losses for line in of_texts(own, [text.name for text in texts], buckets)]
    _write(place, {**_header(tokenizer, front), **facts, "windows": tally, "left_out": left_out}, rows, by_text)
    return rows


def _asked(model: str, texts: Sequence[Text], arms: Sequence[Arm]) -> dict[str, Json]:
    listed = [{"name": text.name, "sha256": text.sha256, "tokens": len(text.ids)} for text in texts]
    return {"model": model, "texts": listed, "arms": [arm.asked() for arm in arms]}


def _header(tokenizer: TextTokenizer, front: tuple[str, int] | None) -> dict[str, Json]:
    """What nll.json says besides what was asked, applied and found; nothing in it depends on the time."""
    from importlib import metadata

    return {
        "schema": SCHEMA,
        "version": metadata.version("anchoreval"),
        "anchor": dict(zip(("text", "id"), front, strict=True)) if front else None,
        "tokenizer_sha256": tokenizer.sha256,
        "unit": "nats per token; a difference is the arm minus the first arm, token by token",
        "intervals": f"{LEVEL:.0%}, t over the units of each row, variance by leaving out one unit (jackknife)",
    }


def read_texts(path: Path, tokenizer: TextTokenizer, front: tuple[str, int] | None = None) -> list[Text]:
    """The texts of a file, or of all *.txt in and under a folder, sorted by name; SourceError names the file, also
    where it spells the anchor token `front`.
    """
    files = sorted(path.rglob("*.txt")) if path.is_dir() else [path]
    if not files:
        raise SourceError(f"--text {path}: no *.txt in this folder")
    names = [str(file.relative_to(path)) if path.is_dir() else file.name for file in files]
    return [_read(file, name, tokenizer, front) for file, name in zip(files, names, strict=True)]


def _read(file: Path, name: str, tokenizer: TextTokenizer, front: tuple[str, int] | None) -> Text:
    try:
        raw = file.read_bytes()
        text = raw.decode("utf-8")
    except OSError as error:
        raise SourceError(f"--text {file}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise SourceError(f"--text {file}: byte {error.start} is not UTF-8: convert it first (iconv)") from error
    if not text.strip():
        raise SourceError(f"--text {file}: the file is empty")
    ids = tuple(tokenizer.encode(text))
    if front is not None and front[1] in ids:
        raise SourceError(f"--text {file}: spells the anchor token {front[0]!r}, which stands at position 0 alone")
    return Text(name, hashlib.sha256(raw).hexdigest(), ids)


def cut_all(
    texts: Sequence[Text], lengths: Sequence[int], front: tuple[str, int] | None, limit: int | None, window: int | None
) -> tuple[list[Windows], list[str]]:
    """The windows of each length, the anchor token `front` first where there is one, and a line for each text that is
    too short for one.

    LengthError for a length that the model does not have, or that no text fills.
    """
    made, short = [], []
    before = (front[1],) if front else ()
    said, first = (" with the anchor", "the anchor token") if front else ("", "a first token")
    for length in lengths:
        if length < 2:
            raise LengthError(f"--lengths {length}: a window has {first} and at least one more")
        if window is not None and length > window:
            raise LengthError(f"--lengths {length}: the model has {window} positions (--max-length overrides)")
        ids, text_of = [], []
        for number, text in enumerate(texts):
            step = length - len(before)
            count = min(len(text.ids) // step, limit or len(text.ids))
            for at in range(0, count * step, step):
                ids.append((*before, *text.ids[at : at + step]))
                text_of.append(number)
            if not count:
                short.append(f"{text.name} has {len(text.ids) + len(before)} tokens{said}, a window {length}")
        if not ids:
            longest = max(len(text.ids) for text in texts) + len(before)
            raise LengthError(f"--lengths {length}: the longest text has {longest} tokens{said}", longest)
        made.append(Windows(length, tuple(ids), tuple(text_of)))
    return made, short


def beyond(arms: Sequence[Arm], lengths: Sequence[int], window: int | None) -> list[str]:
    """A line for each arm whose shift puts tokens of a length that fits at positions that the model does not have."""
    made = []
    for arm in arms:
        over = [n for n in lengths if window is not None and _positions(arm, n)[-1] >= window]
        if over:
            made.append(
                f"arm {arm.name!r}: beyond the model's {window} positions at lengths {', '.join(map(str, over))}"
            )
    return made


def _tally(windows: Windows, texts: Sequence[Text]) -> dict[str, int]:
    return {text.name: windows.text_of.count(number) for number, text in enumerate(texts)}


def _arms(text: str, dtype: str, kernel: str) -> tuple[Arm, ...]:
    """The arms that `text` spells; UnsupportedArm for attention and positions that need several documents."""
    from anchoreval.arms.arm import parse_arms

    chosen = tuple(arm.settled("hf") for arm in parse_arms(text, dtype, kernel))
    for arm in chosen:
        if arm.masks_documents:
            reason = f"attention {arm.attention!r} needs several"
        elif arm.positions.restarts:
            reason = f"positions {str(arm.positions)!r} restart at each of several"
        else:
            continue
        raise UnsupportedArm(f"arm {arm.name!r}: a text is one document to nll; {reason}")
    return chosen


def _positions(arm: Arm, length: int) -> tuple[int, ...]:
    """Position ids of a window, one per token."""
    from anchoreval.arms.blocks import Block

    return arm.positions.of((Block("anchor", 0, 1), Block("document", 1, length)))


def _open(checkpoint: str, dtype: str, kernel: str, arms: Sequence[Arm], options: dict[str, Json]) -> HfBackend:
    from anchoreval.backends import open_backend

    engine: Any = open_backend("hf", checkpoint, dtype=dtype, kernel=kernel, product=widest_product(arms), **options)
    opened: HfBackend = engine
    return opened


def _losses(
    backend: HfBackend, cut: Sequence[Windows], arms: Sequence[Arm], kept: Kept, watch: Watch
) -> tuple[list[Losses], dict[str, Json]]:
    """Losses by length, and each arm as applied. An arm is installed once, for all its windows."""
    import numpy as np

    applied: dict[str, Json] = {}
    found: list[dict[str, Any]] = [{} for _ in cut]
    with work(watch, len(arms) * sum(len(windows.ids) for windows in cut)) as progress:
        for arm in arms:
            with backend.under(arm) as state:
                for windows, by_arm in zip(cut, found, strict=True):
                    progress.at(f"{windows.length:,} tokens, {arm.name}")
                    by_arm[arm.name] = np.stack(list(_of_windows(backend, windows, arm, kept, progress)))
                applied[arm.name] = dict(state)
    return [Losses(own.length, by_arm, own.text_of) for own, by_arm in zip(cut, found, strict=True)], applied


def _of_windows(backend: HfBackend, windows: Windows, arm: Arm, kept: Kept, progress: Progress) -> Iterator[Any]:
    """Losses [L - 1] of each window in float64; those that are kept are not computed again."""
    import torch

    from anchoreval.backends.hf.load import StockNetwork
    from anchoreval.diagnostics.nll.losses import token_losses

    model = backend.model
    network = StockNetwork(model, next(model.parameters()).device)
    if (highest := max(max(ids) for ids in windows.ids)) >= network.vocabulary:
        raise ModelError(f"token {highest} is not among the model's {network.vocabulary}: another tokenizer?")
    positions_L = torch.tensor(_positions(arm, windows.length))
    chunk_tokens, weights = backend.limits.chunk_tokens, backend.describe()["weights_sha256"]
    for ids in windows.ids:
        name = name_of({"weights": weights, "arm": arm.asked(), "chunk_tokens": chunk_tokens, "ids": list(ids)})
        losses = kept.read(name, partial(unpacked, count=len(ids) - 1))
        if losses is not None:
            progress.had(1)
        else:
            try:
                kept.add(name, packed(token_losses(network, ids, positions_L, chunk_tokens).numpy()))
            except ModelError as error:
                raise ModelError(f"arm {arm.name!r}, {windows.length} tokens: {error}") from error
            losses = unpacked(kept.lines[name], len(ids) - 1)
            progress(1)
        yield losses


def packed(losses: NDArray[np.float64]) -> str:
    """Losses in base64 of their little-endian float32, which loses nothing: their log-softmax is in float32."""
    return base64.b64encode(losses.astype("<f4").tobytes()).decode()


def unpacked(text: Json, count: int) -> NDArray[np.float64]:
    """The losses that `packed` wrote; ValueError for what is not `count` of them."""
    import numpy as np

    if not isinstance(text, str):
        raise ValueError("no text")
    losses = np.frombuffer(base64.b64decode(text, validate=True), "<f4").astype(np.float64)
    if len(losses) != count or not np.isfinite(losses).all():
        raise ValueError(f"not {count} finite losses")
    return losses


def _folder(place: Path, asked: dict[str, Json]) -> Path:
    """The folder, made; RunError where results of other settings lie in it."""
    from anchoreval.files.strict_json import parse
    from anchoreval.records.plain_files import content_of, there

    header = place / HEADER
    try:
        place.mkdir(parents=True, exist_ok=True)
        old = parse(content_of(header)) if there(header) else {"asked": asked}
    except (OSError, ValueError) as error:
        raise RunError(f"{place}: cannot write here: {getattr(error, 'strerror', None) or error}") from error
    if not isinstance(old, dict) or old.get("asked") != json.loads(json.dumps(asked)):
        raise RunError(f"{header}: made with other settings; use another --output")
    return place


def _write(place: Path, header: dict[str, Any], rows: Sequence[Row], by_text: Sequence[OfText]) -> None:
    """The header last: where it is, the rest is whole."""
    from anchoreval.diagnostics.nll.picture import picture
    from anchoreval.files import write_whole

    write_whole(place / TABLE, [csv_of(rows)])
    write_whole(place / TEXTS, [csv_of(by_text)])
    write_whole(place / PICTURE, [picture(header["asked"]["model"], header["engine"]["dtype"], rows)])
    body = {**header, "rows": [asdict(row) for row in rows]}
    write_whole(place / HEADER, [json.dumps(body, indent=1, sort_keys=True, allow_nan=False), "\n"])
