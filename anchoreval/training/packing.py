"""Documents -> windows, by index alone: the same on every machine, for any number of processes, from any step.

Documents follow one another in a permutation drawn by the seed, each behind its front (anchor, tag), and are cut only
at a window's end; the rest is the next window's first document. Pieces of fewer than two tokens carry no target, so
cuts move by one and windows may end a few tokens short; nothing is padded. Everything is drawn by `mixed`, whole-number
arithmetic, so that no library's generator is part of the data.
"""

from __future__ import annotations

import itertools
from array import array
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from anchoreval.errors import LengthError

Ints = NDArray[np.int64]
#: Steps whose windows are sorted by cost together, so that the windows of one step cost about the same.
BUFFER_STEPS = 8
_SHORTEST = 2  # tokens of a piece that has a target


@dataclass(frozen=True, slots=True)
class Windows:
    """Pieces (document, first token, behind the last), and where each window's pieces begin among them."""

    document: Ints
    first: Ints
    stop: Ints
    bounds: Ints

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def pieces(self, window: int) -> list[tuple[int, int, int]]:
        """Return the pieces of one window."""
        part = slice(int(self.bounds[window]), int(self.bounds[window + 1]))
        columns = (self.document[part].tolist(), self.first[part].tolist(), self.stop[part].tolist())
        return list(zip(*columns, strict=True))

    def costs(self, front: int) -> Ints:
        """Return the sum of squared document lengths of each window: what attention inside documents costs."""
        return self._summed((self.stop - self.first + front) ** 2)

    def sizes(self, front: int) -> Ints:
        """Return the tokens of each window."""
        return self._summed(self.stop - self.first + front)

    def _summed(self, values: Ints) -> Ints:
        return np.add.reduceat(values, self.bounds[:-1]) if len(self) else np.empty(0, np.int64)


def mixed(values: Ints, *seed: int) -> NDArray[np.uint64]:
    """Return 64 random bits for each value, which follow from it and the seed alone (splitmix64)."""
    state = np.asarray(values).astype(np.uint64)
    with np.errstate(over="ignore"):
        for number in (*seed, 0):
            state = state + np.uint64((number * 0xD1342543DE82EF95 + 0x9E3779B97F4A7C15) % 2**64)
            state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state = state ^ (state >> np.uint64(31))
    return state


def permutation(count: int, *seed: int) -> Ints:
    """Return the whole numbers below `count` in an order that follows from the seed."""
    return np.argsort(mixed(np.arange(count), *seed), kind="stable")


def windows_of(
    lengths: Ints, fronts: Ints | int, size: int, seed: int, count: int | None = None, epochs: int | None = 1
) -> Windows:
    """Return windows of at most `size` tokens over documents of these lengths.

    `fronts`: tokens in front of each document (of all, or one number each). `count` windows where given, out of as many
    passes over the documents as `epochs` allows (None: any number); else all of those passes, the last one short.
    Documents of fewer than two tokens are left out.
    """
    fronts = np.broadcast_to(np.asarray(fronts, np.int64), lengths.shape)
    usable = np.flatnonzero(lengths >= _SHORTEST)
    if not usable.size:
        raise LengthError("there is no document of two or more tokens")
    least = int(fronts.max()) + _SHORTEST + 1
    if size < least + 1:
        raise LengthError(f"--length {size} is too short for a document and what stands in front of it", least + 1)
    columns, bounds = (array("q"), array("q"), array("q")), array("q", [0])
    room = size
    passes = itertools.count() if epochs is None else range(epochs)  # each in an order of its own
    for at in (document for epoch in passes for document in usable[permutation(usable.size, seed, epoch)].tolist()):
        first, end, front = 0, int(lengths[at]), int(fronts[at])
        while first < end:
            stop = min(end, first + room - front)
            stop -= end - stop == 1
            if stop - first < _SHORTEST:
                bounds.append(len(columns[0]))
                room = size
                if len(bounds) - 1 == count:
                    return _made(columns, bounds)
                continue
            for column, value in zip(columns, (at, first, stop), strict=True):
                column.append(value)
            room -= front + stop - first
            first = stop
    if len(columns[0]) > bounds[-1]:
        bounds.append(len(columns[0]))
    return _made(columns, bounds)


def _made(columns: tuple[array[int], ...], bounds: array[int]) -> Windows:
    document, first, stop = (np.array(column[: bounds[-1]], np.int64) for column in columns)
    return Windows(document, first, stop, np.array(bounds, np.int64))


def order_of(costs: Ints, per_step: int, seed: int) -> Ints:
    """Return windows in the order in which steps take them, `per_step` each; those of one step cost about the same.

    Windows are sorted by cost inside buffers of eight steps, whose steps are then shuffled. What is left over of a last
    buffer is not used: ask for windows of whole buffers, then a longer run begins as a shorter one does.
    """
    buffer = BUFFER_STEPS * per_step
    order = np.empty(len(costs) // buffer * buffer, np.int64)
    for number, at in enumerate(range(0, len(order), buffer)):
        within = at + np.argsort(-costs[at : at + buffer], kind="stable")
        steps = within.reshape(BUFFER_STEPS, per_step)
        order[at : at + buffer] = steps[permutation(BUFFER_STEPS, seed, number, 1)].reshape(-1)
    return order


def windows_needed(steps: int, per_step: int) -> int:
    """Return how many windows make so many steps, in whole buffers."""
    return -(-steps // BUFFER_STEPS) * BUFFER_STEPS * per_step


def upsampled(lengths: Ints, sources: Ints, hashes: NDArray[np.uint64], under: int, keep: float) -> NDArray[np.bool_]:
    """Return which documents stay when those under a length are kept with a probability, shares of sources unchanged.

    Per-source length upsampling of Fu et al. (arXiv 2402.10171): inside each source short documents are thinned, and
    sources that lost fewer tokens are thinned as a whole. A document's own hash decides, the same on every machine.
    """
    kept = (lengths >= under) | (_share(hashes, 1) < keep)
    before = np.bincount(sources, lengths).astype(np.float64)
    after = np.bincount(sources, lengths * kept, minlength=len(before))
    left = np.divide(after, before, out=np.ones_like(before), where=before > 0)
    least = left[before > 0].min(initial=1.0)
    if least == 0.0:
        raise LengthError(f"--upsample {under}:{keep}: a source has no document that stays")
    thinned: NDArray[np.bool_] = _share(hashes, 2) < (least / left)[sources]
    return kept & thinned


def _share(hashes: NDArray[np.uint64], draw: int) -> NDArray[np.float64]:
    """Return a number from 0 to 1 for each hash."""
    return (mixed(hashes.astype(np.int64), draw) >> np.uint64(11)).astype(np.float64) / 2.0**53
