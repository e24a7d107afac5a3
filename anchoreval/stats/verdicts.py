"""What a paired difference says in words, against a margin and the noise floor that a placebo arm gives."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from anchoreval.stats.intervals import FEWEST_ONE_SIDED, LEVEL, Z80, Z95
from anchoreval.stats.paired import Difference

Word = Literal["worse", "better", "identical", "equivalent", "cannot tell"]


@dataclass(frozen=True, slots=True)
class NoiseFloor:
    """What a placebo differs by from its own arm: share of samples, difference of means, spread of log-probabilities.

    The largest of several placebos; `logprob` is the difference of mean log-probability per token, in nats,
    `logprob_spread` the root mean square over samples; `outputs` the share of samples with another output, None where
    that is not known.
    """

    discordant: float
    difference: float
    logprob: float | None
    logprob_spread: float | None
    outputs: float | None = None

    @property
    def zero(self) -> bool:
        """Whether the placebo changed nothing at all: no score, no output, no bit of a log-probability."""
        return not (self.discordant or self.difference or self.logprob_spread or self.outputs)


@dataclass(frozen=True, slots=True)
class Verdict:
    """A word, whether the interval lies within the margin, how many pairs would tell, and why not, where it cannot.

    `identical`: no pair has two scores; what that shows is the interval's width, so the words say it.
    """

    word: Word
    margin: float
    within: bool = False
    needs: int | None = None
    why: str = ""

    def __str__(self) -> str:
        """`worse`, `worse (within 1)`, `equivalent within 1`, `cannot tell (needs about 300 samples)`; points."""
        within = f"within {100 * self.margin:g}"
        if self.word == "equivalent":
            return f"equivalent {within}"
        if self.word in ("worse", "better"):
            return f"{self.word} ({within})" if self.within else self.word
        if self.word == "identical":
            notes = [self.why, f"equivalence {within} needs about {self.needs:,} samples" if self.needs else ""]
            notes += [f"equivalent {within}"] if self.within else []
        else:
            notes = [self.why, f"needs about {self.needs:,} samples" if self.needs else ""]
        said = "; ".join(filter(None, notes))
        return f"{self.word} ({said})" if said else self.word


def noise_floor(placebos: Iterable[Difference]) -> NoiseFloor | None:
    """The floor from differences placebo minus its own arm, at one place; None when none has a pair."""
    found = [one for one in placebos if one.pairs]
    if not found:
        return None
    means = [abs(one.logprob) for one in found if one.logprob is not None]
    spreads = [one.logprob_spread for one in found if one.logprob_spread is not None]
    outputs = [1 - one.same_outputs / one.pairs for one in found if one.same_outputs is not None]
    return NoiseFloor(
        max(one.discordant / one.pairs for one in found),
        max(abs(one.difference or 0.0) for one in found),
        max(means, default=None),
        max(spreads, default=None),
        max(outputs, default=None),
    )


def above(difference: Difference, floor: NoiseFloor | None) -> bool:
    """Whether more samples differ than the placebo's, and their mean by more; True where there is no placebo."""
    if floor is None or not difference.pairs:
        return True
    more = difference.discordant / difference.pairs > floor.discordant
    return more and abs(difference.difference or 0.0) > floor.difference


def logprob_above(difference: Difference, floor: NoiseFloor | None) -> bool:
    """The same for log-probabilities: a larger spread and a larger mean than the placebo's."""
    if floor is None or floor.logprob is None or floor.logprob_spread is None or difference.logprob is None:
        return True
    return abs(difference.logprob) > floor.logprob and (difference.logprob_spread or 0.0) > floor.logprob_spread


def equivalent(low: float | None, high: float | None, margin: float) -> bool:
    """Whether a 95% interval lies within +-margin: two one-sided tests (TOST) at 2.5% each (Schuirmann 1987)."""
    return low is not None and high is not None and -margin <= low and high <= margin


def pairs_needed(difference: Difference, margin: float) -> int | None:
    """About how many pairs give a verdict, from the spread seen; None without pairs.

    For 80% power at a difference of `margin`; where no pair differs, so many that their interval fits in it;
    where so many were there and do not tell, for the difference seen or what it leaves of the margin.
    """
    if not difference.pairs or difference.spread is None:
        return None
    if not difference.discordant:
        return math.ceil(math.log(1 - LEVEL) / math.log1p(-margin))
    seen = abs(difference.difference or 0.0)
    for size in (margin, max(seen, margin - seen)):
        needed = math.ceil(((Z95 + Z80) * difference.spread / size) ** 2)
        if needed > difference.pairs:
            return needed
    return None


def verdict(
    difference: Difference, margin: float, floor: NoiseFloor | None = None, p: float | None = None, level: float = LEVEL
) -> Verdict:
    """The verdict on scores; `margin` is a fraction, `p` the corrected p value (default: the difference's own).

    Better and worse ask for all three: p, an interval that leaves 0 out, and more than the noise floor. Fewer pairs
    than can show any difference (`too_few`) are said to be so.
    """
    p = difference.p if p is None else p
    within = equivalent(difference.low, difference.high, margin)
    significant = p is not None and p < 1 - level
    apart = difference.low is not None and difference.high is not None and difference.low * difference.high > 0
    if significant and apart and above(difference, floor) and difference.difference:
        return Verdict("better" if difference.difference > 0 else "worse", margin, within)
    if not difference.pairs:
        return Verdict("cannot tell", margin, why="no pairs")
    few = "too few pairs" if too_few(difference) and not within else ""
    if not difference.discordant:
        return Verdict("identical", margin, within, None if within else pairs_needed(difference, margin), few)
    if within:
        return Verdict("equivalent", margin, True)
    raw = difference.p is not None and difference.p < 1 - level
    why = "not after Holm's correction" if raw else ""
    if significant:
        why = "not above the noise floor" if apart else "the interval holds 0"
    return Verdict("cannot tell", margin, needs=pairs_needed(difference, margin), why=few or why)


def too_few(difference: Difference) -> bool:
    """Whether there are pairs, and fewer than could show a difference even if every one differed."""
    return 0 < difference.pairs < FEWEST_ONE_SIDED


def logprob_word(difference: Difference, floor: NoiseFloor | None = None, p: float | None = None) -> str:
    """`lower`, `higher`, `the same`, `at the floor` or `cannot tell` for log-probabilities; empty when there are none.

    `the same` is bit for bit: every sample has the same log-probability in both arms.
    """
    if difference.logprob is None:
        return ""
    if not difference.logprob_spread:
        return "the same"
    p = difference.logprob_p if p is None else p
    if p is None or p >= 1 - LEVEL:
        return "cannot tell"
    if not logprob_above(difference, floor):
        return "at the floor"
    return "higher" if difference.logprob > 0 else "lower"
