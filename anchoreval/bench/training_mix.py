"""Windows of a stated mix of documents, and what masks between them would save by counting alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from anchoreval.training.packing import order_of, windows_needed, windows_of
from anchoreval.training.recipes import MixCard, mix_of
from anchoreval.training.store import open_store

Ints = NDArray[np.int64]
#: Windows of one step: one on each of as many ranks, of which the slowest sets the pace.
RANKS = 8
_STEPS = 64  # that the slowest of a step is counted over
_TOKENS = 1 << 26  # that lengths are drawn for, so that rare long sources have their share
_SHORTEST = 16  # tokens of a drawn document


@dataclass(frozen=True, slots=True)
class Mix:
    """Windows of one length: their documents in tokens, and densities, the share of full causal attention that stays.

    `windows` are the first ones, to be timed. `mean` is the density over all counted windows; `unsorted` and `balanced`
    are those of the densest of each step's windows, in the order of the data and in that of training.packing.order_of.
    """

    name: str
    about: str
    length: int
    windows: tuple[tuple[int, ...], ...]
    mean: float
    unsorted: float
    balanced: float

    def density(self, window: int) -> float:
        """Return the share of full causal attention over the length that a timed window has."""
        return sum(tokens**2 for tokens in self.windows[window]) / self.length**2


def mix_of_length(name: str, data: Path | None, length: int, timed: int) -> Mix:
    """Return the windows of a mix of the cards, or of the documents of a store."""
    if data is not None:
        lengths, name, about = open_store(data).lengths, data.name, f"the documents of {data}"
    else:
        card = mix_of(name)
        lengths, about = drawn(card, length), card.about
    count = max(timed, windows_needed(_STEPS, RANKS))
    windows = windows_of(lengths, 0, length, seed=0, count=count, epochs=None)
    costs = windows.costs(0)[: count // RANKS * RANKS]
    worst = [float(costs[order].reshape(-1, RANKS).max(1).mean()) for order in (slice(None), order_of(costs, RANKS, 0))]
    pieces = tuple(tuple(stop - first for _, first, stop in windows.pieces(at)) for at in range(timed))
    return Mix(name, about, length, pieces, *(value / length**2 for value in (float(costs.mean()), *worst)))


def drawn(card: MixCard, length: int) -> Ints:
    """Return tokens of documents of each source, log-normal, until the source has its share; the same every time."""
    if not card.documents:
        return np.full(1, length, np.int64)
    rng = np.random.default_rng(0)
    parts = []
    for source in card.documents.values():
        wanted, mu = source.share * _TOKENS, np.log(source.mean) - source.sigma**2 / 2
        kept: list[Ints] = []
        while sum(int(part.sum()) for part in kept) < wanted:
            sizes = np.exp(mu + source.sigma * rng.standard_normal(4096)).astype(np.int64).clip(_SHORTEST)
            kept.append(sizes[(sizes >= card.under) | (rng.random(sizes.size) < card.keep)])
        sizes = np.concatenate(kept)
        parts.append(sizes[: int(np.searchsorted(sizes.cumsum(), wanted)) + 1])
    return np.concatenate(parts)
