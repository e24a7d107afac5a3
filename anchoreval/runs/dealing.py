"""The order in which a run that stops by its rule takes the samples of a cell, and the rounds into which it deals them.

The rule bets on differences whose mean is the same whatever came before (stats/sequential.py). So a source, whose
samples are alike, is bet on once, and lies in one round whole; and what stands in the order of a file is shuffled.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterable, Iterator, Sequence
from random import Random
from statistics import fmean

from anchoreval.errors import AnchorEvalError
from anchoreval.schema import Sample
from anchoreval.stats import source_of

ROUND, BLOCK = 16, 32


def source(sample: Sample) -> Hashable:
    """What the sample shares with others of its cell, else its id."""
    return source_of(sample.task, sample.id, sample.index, sample.facts)


def names_source(sample: Sample) -> bool:
    """Whether the sample says that it may share a source with others."""
    return source(sample) != sample.id


def shuffled(samples: Iterable[Sample], seed: int) -> Iterator[Sample]:
    """The samples of a cell with its sources in an order that the seed draws, all of a source together.

    All are made at once, for a source may return as late as at the end. AnchorEvalError as for `dealt`.
    """
    sources = _sources(samples)
    Random(f"until-{seed}").shuffle(sources)
    return itertools.chain.from_iterable(sources)


def dealt(samples: Iterable[Sample]) -> Iterator[list[Sample]]:
    """Rounds of a cell: whole sources where its samples name them, else balanced over depths.

    AnchorEvalError where sources are fewer than rounds of 16 samples: then they recur all along.
    """
    samples = iter(samples)
    first = next(samples, None)
    if first is None:
        return iter(())
    whole = itertools.chain([first], samples)
    return _whole_sources(_sources(whole)) if names_source(first) else dealt_by_depth(whole)


def _sources(samples: Iterable[Sample]) -> list[list[Sample]]:
    """The samples of every source, in the order in which the sources first come."""
    found: dict[Hashable, list[Sample]] = {}
    for sample in samples:
        found.setdefault(source(sample), []).append(sample)
    count = sum(map(len, found.values()))
    if len(found) * ROUND < count:
        one = next(iter(found.values()))[0]
        raise AnchorEvalError(
            f"--until: {one.task} at {one.length} asks of {len(found)} sources over {count} samples, and the rule bets "
            "once a source, when all its samples are in: leave out --until, or this task"
        )
    return list(found.values())


def _whole_sources(sources: Iterable[Sequence[Sample]]) -> Iterator[list[Sample]]:
    """Rounds of 16 samples or, where a source ends later, of more; the last may have fewer."""
    round_: list[Sample] = []
    for samples in sources:
        round_ += samples
        if len(round_) >= ROUND:
            yield round_
            round_ = []
    if round_:
        yield round_


def dealt_by_depth(samples: Iterator[Sample]) -> Iterator[list[Sample]]:
    """Rounds of up to 16 samples, from blocks of 32 ranked by depth and dealt in turn, the first seat moving on.

    Samples without a depth keep their order. Nothing but the block in hand is made ahead.
    """
    while block := list(itertools.islice(samples, BLOCK)):
        seats = -(-len(block) // ROUND)
        ranked = sorted(block, key=lambda sample: (depth(sample), sample.index))
        rounds: list[list[Sample]] = [[] for _ in range(seats)]
        for rank, sample in enumerate(ranked):
            rounds[(rank + rank // seats) % seats].append(sample)
        yield from (sorted(each, key=lambda sample: sample.index) for each in rounds)


def depth(sample: Sample) -> float:
    """The mean depth of a sample's needles, 0 at the top; 0 where it has none."""
    depths = sample.facts.get("depths") or []
    return fmean(depths) if depths else 0.0


def bets(
    arm: Iterable[float | None], base: Iterable[float | None], sources: Iterable[Hashable]
) -> tuple[list[float], int]:
    """The mean of each source's differences, score of `arm` minus score of `base`, and of how many pairs they are.

    Pairs that lack a score are left out, and sources without a pair.
    """
    found: dict[Hashable, list[float]] = {}
    for a, b, named in zip(arm, base, sources, strict=True):
        if a is not None and b is not None:
            found.setdefault(named, []).append(a - b)
    return [fmean(each) for each in found.values()], sum(map(len, found.values()))
