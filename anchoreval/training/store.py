"""Texts tokenised once, as a folder that is mapped into memory; a training window is an index into it.

    tokens.bin      token ids of all documents, one behind the other, uint16 or uint32
    documents.npy   offset, length, source and hash of each document
    wanted.bin      one byte per token, whether a loss is wanted on it; absent where it is wanted on all
    store.json      tokenizer, anchor and end token, sources, counts, hashes; written last

A store is written in a folder of another name and renamed when it is whole. An end token closes each document where the
tokenizer has one that is not the anchor. Anchors that stand in front of documents of a packed data set are taken off.

`lines` says what a store holds, and what masks between documents would save, before anything is trained. The density of
a window is the share of the causal triangle that stays when attention is cut at documents. Savings are of counted
operations, forward and backward, at a model's shape; a kernel that is slow on short documents saves less.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from anchoreval.errors import AnchorEvalError, ModelError, RunError, SourceError
from anchoreval.files import write_errors, write_whole
from anchoreval.files.strict_json import TEXT, list_of, map_of, object_of, or_null, parse, whole
from anchoreval.schema import Json
from anchoreval.tokenizer import TextTokenizer
from anchoreval.training.packing import upsampled, windows_of
from anchoreval.training.reading import Document, documents_in
from anchoreval.training.variants import Piece

FACTS, TOKENS, DOCUMENTS, WANTED = "store.json", "tokens.bin", "documents.npy", "wanted.bin"
FORMAT = 1
ROW = np.dtype([("offset", "<u8"), ("length", "<u4"), ("source", "<u2"), ("hash", "<u8")])
_BATCH_CHARACTERS = 1 << 22  # of texts that are tokenised together; memory is flat in the size of the data
_BATCH_TEXTS = 1 << 12

_SHAPE = object_of(
    {
        "format": whole(1, 1 << 16), "tokenizer": TEXT, "anchor": whole(), "end": or_null(whole()),
        "dtype": TEXT, "tokens": whole(), "documents": whole(), "sha256": TEXT,
        "sources": list_of(object_of({"name": TEXT, "tag": list_of(whole())})), "left_out": map_of(whole()),
    }
)  # fmt: skip


@dataclass(frozen=True)
class Store:
    """A store on disk; arrays are mapped into memory, none of the tokens are read before they are asked for."""

    folder: Path
    facts: dict[str, Any]
    rows: NDArray[Any] = field(repr=False)

    @property
    def anchor(self) -> int:
        """The token that documents are to begin with."""
        return int(self.facts["anchor"])

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each document, the end token included."""
        return self.rows["length"].astype(np.int64)

    @cached_property
    def tags(self) -> list[NDArray[np.int64]]:
        """The tokens of each source's name."""
        return [np.array(source["tag"], np.int64) for source in self.facts["sources"]]

    @cached_property
    def _tokens(self) -> NDArray[Any]:
        return np.memmap(self.folder / TOKENS, np.dtype(self.facts["dtype"]), mode="r")

    @cached_property
    def _wanted(self) -> NDArray[Any] | None:
        path = self.folder / WANTED
        return np.memmap(path, np.bool_, mode="r") if path.is_file() else None

    def piece(self, document: int, first: int, stop: int) -> Piece:
        """Return the tokens from `first` up to `stop` of a document."""
        row = self.rows[document]
        part = slice(int(row["offset"]) + first, int(row["offset"]) + stop)
        wanted = None if self._wanted is None else np.array(self._wanted[part])
        return Piece(np.array(self._tokens[part], np.int64), self.tags[int(row["source"])], wanted)


def open_store(folder: Path) -> Store:
    """Return the store in a folder; RunError where it is none, or not whole."""
    path = folder / FACTS
    if not path.is_file():
        how = "anchoreval data pack --data FILE --tokenizer M --output STORE makes one"
        raise RunError(f"{folder} is no store of tokens (no {FACTS}): {how}")
    try:
        facts = parse(path.read_bytes())
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read: {error}: pack the data again") from error
    if (wrong := _SHAPE(facts)) is not None:
        raise RunError(f"{path}: {wrong}: pack the data again")
    assert isinstance(facts, dict)
    try:
        rows = np.load(folder / DOCUMENTS, mmap_mode="r")
        size = (folder / TOKENS).stat().st_size
    except (OSError, ValueError) as error:
        raise RunError(f"{folder}: a file of the store cannot be read: {error}: pack the data again") from error
    tokens = facts["tokens"]
    if rows.dtype != ROW or len(rows) != facts["documents"] or size != tokens * np.dtype(facts["dtype"]).itemsize:
        raise RunError(f"{folder}: its files are not those that {FACTS} speaks of: pack the data again")
    return Store(folder, facts, rows)


def anchor_of(tokenizer: TextTokenizer, chosen: str | None = None) -> int:
    """Return the id of the anchor: the token of a text where one is chosen, else BOS, EOS without one."""
    named = tokenizer.bos or tokenizer.eos
    if chosen is not None:
        ids = tokenizer.encode(chosen)
        if len(ids) != 1:
            raise ModelError(f"--anchor {chosen!r} is {len(ids)} tokens of this tokenizer, not one")
        return ids[0]
    if named is None:
        raise ModelError(f"{tokenizer.name} names neither BOS nor EOS: --anchor TOKEN names the anchor")
    return named[1]


@dataclass
class _Writer:
    """What is written so far of a store."""

    dtype: np.dtype[Any]
    tokens: BinaryIO
    wanted: BinaryIO
    anchor: int
    end: int | None
    vocabulary: int
    rows: list[tuple[int, int, int, int]] = field(default_factory=list)
    sources: dict[str, int] = field(default_factory=dict)
    hash: Any = field(default_factory=hashlib.sha256)
    written: int = 0
    some_unwanted: bool = False
    anchored: int = 0
    left_out: dict[str, int] = field(default_factory=lambda: {"shorter than 2 tokens": 0})

    def add(self, ids: NDArray[np.int64], wanted: NDArray[np.bool_] | None, source: str) -> None:
        """Write one document, or count it where it is left out."""
        if ids.size and ids[0] == self.anchor:
            ids, wanted = ids[1:], None if wanted is None else wanted[1:]
        if self.end is not None and ids.size and ids[-1] != self.end:
            ids = np.append(ids, self.end)
            wanted = None if wanted is None else np.append(wanted, False)
        if ids.size and int(ids.max()) >= self.vocabulary:
            raise SourceError(f"a token id {int(ids.max())} in {source}, the tokenizer has {self.vocabulary}")
        if ids.size < 2:
            self.left_out["shorter than 2 tokens"] += 1
            return
        if (ids == self.anchor).any():
            self.anchored += 1
            return
        content = ids.astype(self.dtype).tobytes()
        mask = np.ones(ids.size, np.bool_) if wanted is None else wanted
        self.some_unwanted = self.some_unwanted or not mask.all()
        number = self.sources.setdefault(source, len(self.sources))
        digest = hashlib.blake2b(content, digest_size=8).digest()
        self.rows.append((self.written, ids.size, number, int.from_bytes(digest, "little")))
        self.tokens.write(content)
        self.wanted.write(mask.tobytes())
        self.hash.update(len(content).to_bytes(8, "little") + content + mask.tobytes() + source.encode())
        self.written += ids.size


def pack(
    documents: Iterator[Document] | Sequence[str],
    tokenizer: TextTokenizer,
    folder: Path,
    upsample: tuple[int, float] | None = None,
    anchor: str | None = None,
    tell: Callable[[int, int], None] = lambda documents, tokens: None,
) -> Store:
    """Write documents, or those of these places, as a store and return it.

    `tell` is called with the counts so far. Raise SourceError for data that cannot be read or has no documents,
    RunError for a folder that holds something, and for one that cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RunError(f"{folder} is not empty: --output names a new folder, or delete it")
    part = folder.with_name(f"{folder.name}.{os.getpid()}.part")
    try:
        with write_errors(part):
            part.mkdir(parents=True)
        if isinstance(documents, Sequence):
            documents = documents_in(documents)
        _write(documents, tokenizer, part, upsample, anchor_of(tokenizer, anchor), tell)
        with write_errors(folder):
            if folder.is_dir():
                folder.rmdir()
            part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return open_store(folder)


def _write(
    documents: Iterator[Document],
    tokenizer: TextTokenizer,
    part: Path,
    upsample: tuple[int, float] | None,
    anchor: int,
    tell: Callable[[int, int], None],
) -> None:
    end = tokenizer.eos
    dtype = np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
    with contextlib.ExitStack() as stack:
        stack.enter_context(write_errors(part))
        files = [stack.enter_context((part / name).open("wb")) for name in (TOKENS, WANTED)]
        closing = None if end is None or end[1] == anchor else end[1]
        writer = _Writer(dtype, files[0], files[1], anchor, closing, tokenizer.vocab_size)
        for batch in _batches(documents):
            encoded = _encoded(batch, tokenizer)
            for document, (ids, wanted) in zip(batch, encoded, strict=True):
                writer.add(ids, wanted, document.source)
            tell(len(writer.rows), writer.written)
        for file in files:
            file.flush()
            os.fsync(file.fileno())
    if writer.anchored:
        count = f"{writer.anchored} of {len(writer.rows) + writer.anchored} documents"
        text = f"the anchor token {anchor} stands inside {count}"
        raise SourceError(f"{text}, where it would be one more start: --anchor names another token, or cut them there")
    if not writer.rows:
        counts = ", ".join(f"{count} {what}" for what, count in writer.left_out.items() if count) or "none at all"
        raise SourceError(f"the data has no document of two or more tokens ({counts})")
    if not writer.some_unwanted:
        (part / WANTED).unlink()
    _write_facts(writer, tokenizer, part, upsample)


def _write_facts(writer: _Writer, tokenizer: TextTokenizer, part: Path, upsample: tuple[int, float] | None) -> None:
    rows = np.array(writer.rows, ROW)
    kept = np.ones(len(rows), np.bool_)
    if upsample is not None:
        kept = upsampled(rows["length"].astype(np.int64), rows["source"].astype(np.int64), rows["hash"], *upsample)
        writer.left_out["thinned out"] = int((~kept).sum())
        writer.hash.update(repr(upsample).encode())
    lengths, sources = rows["length"][kept], rows["source"][kept]
    tags = tokenizer.encode_batch(list(writer.sources))
    facts: dict[str, Json] = {
        "format": FORMAT,
        "tokenizer": tokenizer.sha256,
        "anchor": writer.anchor,
        "end": writer.end,
        "dtype": writer.dtype.str,
        "tokens": writer.written,
        "documents": int(kept.sum()),
        "sha256": writer.hash.hexdigest(),
        "sources": [
            {
                "name": name, "tag": [int(token) for token in ids], "documents": int((sources == number).sum()),
                "tokens": int(lengths[sources == number].sum(dtype=np.int64)),
            }
            for (name, number), (ids, _) in zip(writer.sources.items(), tags, strict=True)
        ],
        "left_out": dict(writer.left_out),
        "upsample": None if upsample is None else {"under": upsample[0], "keep": upsample[1]},
    }  # fmt: skip
    with write_errors(part):
        np.save(part / DOCUMENTS, rows[kept])
    write_whole(part / FACTS, [json.dumps(facts, indent=1) + "\n"])


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Documents in order, as many together as are tokenised at once."""
    batch: list[Document] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += len(document.text or ())
        if characters >= _BATCH_CHARACTERS or len(batch) >= _BATCH_TEXTS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _encoded(
    batch: list[Document], tokenizer: TextTokenizer
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.bool_] | None]]:
    """Ids of each document, and on which of them a loss is wanted."""
    plain = iter(tokenizer.encode_batch([d.text for d in batch if d.text is not None and d.loss is None]))
    marked = iter(tokenizer.encode_batch([d.text for d in batch if d.text is not None and d.loss is not None], True))
    for document in batch:
        if document.ids is not None:
            wanted = None if document.wanted is None else np.array(document.wanted, np.bool_)
            yield np.array(document.ids, np.int64), wanted
        elif document.loss is None:
            yield np.array(next(plain)[0], np.int64), None
        else:
            ids, spans = next(marked)
            characters = np.zeros(len(document.text or "") + 1, np.bool_)
            for first, stop in document.loss:
                characters[first:stop] = True
            yield np.array(ids, np.int64), characters[[first for first, _ in spans]]


def require_same_tokenizer(store: Store, tokenizer: TextTokenizer) -> None:
    """Raise AnchorEvalError where a store was made with another tokenizer than the model has."""
    if store.facts["tokenizer"] != tokenizer.sha256:
        raise AnchorEvalError(f"{store.folder} holds tokens of another tokenizer than {tokenizer.name}: pack it again")


#: Lengths whose windows are described.
LENGTHS = (4096, 8192, 16384, 32768, 65536, 131072)
_WINDOWS = 1024  # that densities are measured on


@dataclass(frozen=True, slots=True)
class Shape:
    """What of a model decides its operations: layers, widths of attention, and weights of products per token."""

    layers: int
    attention: int  # query heads x head dimension
    weights: int  # parameters of linear layers, the head included, embeddings not

    def linear(self, tokens: int) -> int:
        """Return the operations of a step in linear layers: two per weight and token, twice that backward."""
        return 6 * self.weights * tokens

    def products(self, lengths: Mapping[int, int] | NDArray[np.int64]) -> int:
        """Return those of attention over documents: each query meets the keys up to its own, in two products."""
        sizes = np.asarray(lengths, np.int64)
        pairs = int((sizes * (sizes + 1) // 2).sum())
        return 12 * self.layers * self.attention * pairs


def shape_of(config: Mapping[str, Any]) -> Shape | None:
    """Return the shape of a model out of its config.json, None for one without the usual names.

    A gated feed-forward block of three matrices is taken for granted, as in Llama, Mistral, Qwen.
    """
    config = config.get("text_config") or config
    names = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size", "vocab_size")
    if not all(type(config.get(name)) is int for name in names):
        return None
    layers, width, heads, inner, vocabulary = (int(config[name]) for name in names)
    head = config.get("head_dim") or width // heads
    keys = config.get("num_key_value_heads") or heads
    block = 2 * width * heads * head + 2 * width * keys * head + 3 * width * inner
    return Shape(layers, heads * head, layers * block + width * vocabulary)


@dataclass(frozen=True, slots=True)
class Packed:
    """What windows of one length are like: mean and 90th percentile of density, shares, and predicted savings."""

    length: int
    documents: float
    density: float
    p90: float
    longer: float
    attention: float
    step: float | None

    def __str__(self) -> str:
        step = "" if self.step is None else f", of the step {self.step:.0%}"
        return (
            f"windows of {self.length:>7,}: {self.documents:6.1f} documents, density {self.density:.2f} "
            f"(p90 {self.p90:.2f}), {self.longer:.0%} of tokens in longer documents; "
            f"masks save {self.attention:.0%} of attention{step}"
        )


def packed(store: Store, length: int, shape: Shape | None) -> Packed:
    """Return what the first windows of a length are like."""
    lengths = store.lengths
    windows = windows_of(lengths, 1, length, seed=0, count=_WINDOWS)
    costs = windows.costs(1) / float(length) ** 2
    density = float(costs.mean())
    step = None
    if shape is not None:
        products = shape.products(np.array([length]))
        step = (1 - density) * products / (shape.linear(length) + products)
    longer = float(lengths[lengths >= length].sum() / lengths.sum())
    mean = len(windows.document) / len(windows)
    return Packed(length, mean, density, float(np.quantile(costs, 0.9)), longer, 1 - density, step)


def lines(store: Store, shape: Shape | None) -> Iterator[str]:
    """Yield what a reader wants to know of a store, a line each."""
    lengths, facts = store.lengths, store.facts
    gone = ", ".join(f"{count:,} {what}" for what, count in facts["left_out"].items() if count)
    total = int(lengths.sum())
    counts = f"{len(lengths):,} documents, {total:,} tokens{f'; left out: {gone}' if gone else ''}"
    yield f"{counts}; data {facts['sha256'][:12]}, anchor {store.anchor}"
    for source in facts["sources"]:
        if source["documents"]:
            share = source["tokens"] / total
            yield f"  {source['name'][:32]:32} {source['documents']:>12,} documents {share:>6.1%} of tokens"
    octaves = np.floor(np.log2(lengths)).astype(np.int64)
    for octave in np.unique(octaves):
        own = lengths[octaves == octave]
        span = f"{2**octave:,} to {2 ** (octave + 1) - 1:,} tokens"
        yield f"  {span:32} {own.size:>12,} documents {own.sum() / total:>6.1%} of tokens"
    for length in LENGTHS:
        if length <= total:
            yield str(packed(store, length, shape))
