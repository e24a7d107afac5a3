"""What a store holds, and what masks between documents would save: said before anything is trained.

The density of a window is the share of the causal triangle that stays when attention is cut at documents. Savings are
of counted floating-point operations, forward and backward, at a model's shape; a kernel that is slow on short documents
saves less.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anchoreval.training.packing import windows_of
from anchoreval.training.store import Store

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
