"""The order of a cell's samples in a run with a stopping rule (`--until`), and the rounds they are dealt into.

The rule bets on differences whose mean does not depend on the samples before (stats/sequential.py). Samples of one
source resemble each other, so all of them go into the same round and are bet on once, as a mean. Samples that come in
the order of a file are shuffled.
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
    """Return the source that a sample shares with others of its cell, or its id if it shares none."""
    return source_of(sample.task, sample.id, sample.index, sample.facts)


def names_source(sample: Sample) -> bool:
    """Return True if the sample may share a source with others."""
    return source(sample) != sample.id


def shuffled(samples: Iterable[Sample], seed: int) -> Iterator[Sample]:
    """Yield the samples of a cell source by source, with the sources in an order drawn from the seed.

    All samples are made at once, because the last sample may belong to the first source. Raise AnchorEvalError as
    `dealt` does.
    """
    sources = _sources(samples)
    Random(f"until-{seed}").shuffle(sources)
    return itertools.chain.from_iterable(sources)


def dealt(samples: Iterable[Sample]) -> Iterator[list[Sample]]:
    """Yield the rounds of a cell: of whole sources if its samples name them, else balanced over depths.

    Raise AnchorEvalError if there are fewer sources than rounds of 16 samples: sources would then recur throughout.
    """
    samples = iter(samples)
    first = next(samples, None)
    if first is None:
        return iter(())
    whole = itertools.chain([first], samples)
    return _whole_sources(_sources(whole)) if names_source(first) else dealt_by_depth(whole)


def _sources(samples: Iterable[Sample]) -> list[list[Sample]]:
    """Return the samples of each source, sources in the order of their first sample."""
    by_source: dict[Hashable, list[Sample]] = {}
    for sample in samples:
        by_source.setdefault(source(sample), []).append(sample)
    count = sum(map(len, by_source.values()))
    if len(by_source) * ROUND < count:
        first = next(iter(by_source.values()))[0]
        raise AnchorEvalError(
            f"--until: {first.task} at {first.length} asks of {len(by_source)} sources over {count} samples, and the "
            "rule bets once a source, when all its samples are in: leave out --until, or this task"
        )
    return list(by_source.values())


def _whole_sources(sources: Iterable[Sequence[Sample]]) -> Iterator[list[Sample]]:
    """Yield rounds of at least 16 samples that end with a source; the last may have fewer."""
    round_: list[Sample] = []
    for samples in sources:
        round_ += samples
        if len(round_) >= ROUND:
            yield round_
            round_ = []
    if round_:
        yield round_


def dealt_by_depth(samples: Iterator[Sample]) -> Iterator[list[Sample]]:
    """Yield rounds of up to 16 samples: blocks of 32 are ranked by depth and dealt in turn.

    The round that is dealt to first moves on by one with each turn. Samples without a depth keep their order. Only one
    block is made ahead.
    """
    while block := list(itertools.islice(samples, BLOCK)):
        seats = -(-len(block) // ROUND)
        ranked = sorted(block, key=lambda sample: (depth(sample), sample.index))
        rounds: list[list[Sample]] = [[] for _ in range(seats)]
        for rank, sample in enumerate(ranked):
            rounds[(rank + rank // seats) % seats].append(sample)
        yield from (sorted(round_, key=lambda sample: sample.index) for round_ in rounds)


def depth(sample: Sample) -> float:
    """Return the mean depth of a sample's needles, 0 at the top of the prompt; 0 for a sample without needles."""
    depths = sample.facts.get("depths") or []
    return fmean(depths) if depths else 0.0


def bets(
    arm: Iterable[float | None], base: Iterable[float | None], sources: Iterable[Hashable]
) -> tuple[list[float], int]:
    """Return the mean difference of each source, score of `arm` minus score of `base`, and the number of pairs.

    Pairs that lack a score are left out, and so are sources without a pair.
    """
    by_source: dict[Hashable, list[float]] = {}
    for a, b, key in zip(arm, base, sources, strict=True):
        if a is not None and b is not None:
            by_source.setdefault(key, []).append(a - b)
    return [fmean(values) for values in by_source.values()], sum(map(len, by_source.values()))
