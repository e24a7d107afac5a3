"""The verdict on a paired difference in words, given a margin and the noise floor of a placebo arm.

"worse" and "better" need p < 0.05 and an interval without 0. If there is a placebo, they also need more than it shows:
the arm differs from the placebo in the same way as from the baseline (an intersection-union test, Berger 1982), in more
samples, and with a larger mean. "equivalent" needs two exact one-sided tests (intervals.py) at 2.5% each (Schuirmann
1987), and an interval within the margin.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Literal

from anchoreval.stats.intervals import ALPHA, LEVEL, ONE_SIDED, Z80, Z95, fewest
from anchoreval.stats.paired import Difference

Word = Literal["worse", "better", "identical", "equivalent", "cannot tell"]


@dataclass(frozen=True, slots=True)
class NoiseFloor:
    """How much a placebo differs from its own arm; the largest values of several placebos.

    `discordant`        share of samples with another score
    `difference`        absolute difference of mean scores
    `logprob`           absolute difference of mean log-probability per token, in nats
    `logprob_spread`    root mean square over samples of that difference
    `outputs`           share of samples with another output; None if not known
    """

    discordant: float
    difference: float
    logprob: float | None
    logprob_spread: float | None
    outputs: float | None = None

    @property
    def zero(self) -> bool:
        """True if the placebo changed nothing at all: no score, no output, no bit of a log-probability."""
        return not (self.discordant or self.difference or self.logprob_spread or self.outputs)


@dataclass(frozen=True, slots=True)
class Verdict:
    """A verdict in one word, with its details.

    `within` is True if the interval lies within the margin, `needs` is about how many pairs would give a verdict, and
    `why` is the reason why these pairs do not. The word `identical` means that no pair differs in score; how much that
    proves depends on the interval's width, so the text gives it.
    """

    word: Word
    margin: float
    within: bool = False
    needs: int | None = None
    why: str = ""

    def __str__(self) -> str:
        """Return `worse (within 1)`, `equivalent within 1`, `cannot tell (needs about 300 samples)`, ... in points."""
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
    """Return the noise floor of differences "placebo minus its own arm" at one place; None if none has a pair."""
    rows = [placebo for placebo in placebos if placebo.pairs]
    if not rows:
        return None
    means = [abs(row.logprob) for row in rows if row.logprob is not None]
    spreads = [row.logprob_spread for row in rows if row.logprob_spread is not None]
    outputs = [1 - row.same_outputs / row.pairs for row in rows if row.same_outputs is not None]
    return NoiseFloor(
        max(row.discordant / row.pairs for row in rows),
        max(abs(row.difference or 0.0) for row in rows),
        max(means, default=None),
        max(spreads, default=None),
        max(outputs, default=None),
    )


def above(difference: Difference, floor: NoiseFloor | None) -> bool:
    """Return True if more samples differ than in the placebo, and the mean differs by more; True without placebo."""
    if floor is None or not difference.pairs:
        return True
    more = difference.discordant / difference.pairs > floor.discordant
    return more and abs(difference.difference or 0.0) > floor.difference


def equivalent(low: float | None, high: float | None, margin: float) -> bool:
    """Return True if a 95% interval lies within +-margin."""
    return low is not None and high is not None and -margin <= low and high <= margin


def equivalence_p(difference: Difference, margin: float) -> float | None:
    """Return p of the two one-sided tests that the difference is within +-margin; 1 if the interval is not within it.

    A p of at most 2.5% means "equivalent".
    """
    units = difference.units
    if units is None:
        return None
    if not equivalent(difference.low, difference.high, margin):
        return 1.0
    return max(units.below(-margin, -1.0), units.negated().below(-margin, -1.0))


def pairs_needed(difference: Difference, margin: float, questions: float = 1) -> int | None:
    """Return about how many pairs would give a verdict, from the spread seen; None without pairs or if these suffice.

    If the difference seen is significant and beyond `margin`, the number gives 80% power at that difference. Otherwise
    it gives "worse", "better" or "equivalent" in four cases of five, whatever the true difference is: with c standard
    errors in the margin there is no verdict on means between c - 1.96 and 1.96 standard errors, most often for
    differences of half the margin, so c is 2 * (1.96 - 0.25). If the arms do not differ, 1.96 + 1.28 would be enough
    (Julious 2004). More pairs are added because unseen differences may be large, if the test or the interval accounts
    for these. The spread assumes half a differing source more than was seen, which is too few as often as too many.
    `questions` is the number of tests that Holm's correction still counts.
    """
    from scipy.special import bdtrc, ndtri

    size = difference.spread if difference.deviation is None else difference.deviation
    if not difference.pairs or size is None or difference.method == "t":
        return None
    pairs, seen = difference.pairs, abs(difference.difference or 0.0)
    each = pairs / (difference.units.effective if difference.units else difference.clusters or pairs)
    least = each * math.log(ONE_SIDED / questions) / math.log1p(-margin)
    if not difference.discordant:
        return math.ceil(least)
    apart, within = -float(ndtri(ALPHA / 2 / questions)), -float(ndtri(ONE_SIDED / questions))
    if seen > margin and seen >= Z95 * size / math.sqrt(pairs):
        unseen = each * math.log(1 / ONE_SIDED) / math.log1p(seen) if difference.method == "gaffke" else 0.0
        needed = ((apart + Z80) * size / seen) ** 2 + unseen
        # So many sources that enough of them for the exact test differ, four times in five, if they differ with the
        # share of pairs that differ now.
        fewest_apart = sources = fewest(difference.mid, ALPHA / questions)
        while bdtrc(fewest_apart - 1, sources, difference.discordant / pairs) < 0.8:
            sources += 1 + sources // 50
        needed = max(needed, each * sources)
    else:
        likely = size**2 + (each * difference.typical) ** 2 / (2 * pairs)
        needed = ((apart + within - 2 * float(ndtri(0.6))) / margin) ** 2 * likely + least
    further = ((apart + Z80) * size / max(seen, margin - seen)) ** 2
    return next((math.ceil(n) for n in (needed, further) if math.ceil(n) > pairs), None)


def verdict(
    difference: Difference,
    margin: float,
    floor: NoiseFloor | None = None,
    p: float | None = None,
    level: float = LEVEL,
    within: float | None = None,
    beyond: Collection[str] = (),
    questions: float | None = None,
) -> Verdict:
    """Return the verdict on scores.

    `margin`        a fraction
    `p`             the corrected p value (default: the difference's own)
    `within`        the corrected p of equivalence
    `beyond`        the verdicts of the arm minus each placebo
    `questions`     the number of tests that Holm's correction still counts (default: its factor of p)

    If the pairs are too few to show any difference (`too_few`), the verdict says so.
    """
    corrected = difference.p if p is None else p
    own_p = equivalence_p(difference, margin)
    close = equivalent(difference.low, difference.high, margin) and (own_p is None or own_p <= ONE_SIDED)
    inside = close and (within is None or within <= ONE_SIDED)
    significant = corrected is not None and corrected < 1 - level
    apart = difference.low is not None and difference.high is not None and difference.low * difference.high > 0
    if significant and apart and above(difference, floor) and difference.difference:
        word: Word = "better" if difference.difference > 0 else "worse"
        if all(other == word for other in beyond):
            return Verdict(word, margin, inside)
    if not difference.pairs:
        return Verdict("cannot tell", margin, why="no pairs")
    if questions is None:
        questions = max(1.0, corrected / difference.p) if difference.p and corrected else 1.0
    needs = None if inside else pairs_needed(difference, margin, questions)
    few = ("one seed" if difference.method == "t" else "too few pairs") if too_few(difference) and not inside else ""
    lost = "equivalence not after Holm's correction" if close and not inside else ""
    if not difference.discordant:
        return Verdict("identical", margin, inside, needs, few or lost)
    if inside:
        return Verdict("equivalent", margin, True)
    raw = difference.p is not None and difference.p < 1 - level
    why = "not after Holm's correction" if raw else lost
    if significant:
        why = "not above the noise floor" if apart else "the interval holds 0"
    return Verdict("cannot tell", margin, needs=needs, why=few or why)


def too_few(difference: Difference) -> bool:
    """Return True if there are pairs, but too few sources to show a difference even if every one differed.

    Seeds, which are compared by a t test, are too few if there is one.
    """
    if difference.method == "t":
        return difference.pairs == 1
    return 0 < (difference.clusters or difference.pairs) < fewest(difference.mid)


MOST = {-1: "cannot tell (most are lower)", 1: "cannot tell (most are higher)"}
LOGPROB_TOLD = ("lower", "higher", *MOST.values())


def logprob_word(
    difference: Difference,
    floor: NoiseFloor | None = None,
    p: float | None = None,
    sign_p: float | None = None,
    beyond: Collection[str] = (),
) -> str:
    """Return the verdict on log-probabilities: `lower`, `higher`, `the same`, `at the floor` or `cannot tell`.

    The verdict is empty without log-probabilities. `the same` means bit for bit: every sample has the same
    log-probability in both arms. If the mean cannot tell, for example because one sample dominates it, the sign test
    over sources may: `cannot tell (most are lower)`. `p` and `sign_p` are corrected p values, and `beyond` has the
    verdicts of the arm minus each placebo.
    """
    if difference.logprob is None:
        return ""
    size = difference.logprob_spread
    if not size:
        return "the same"
    p = difference.logprob_p if p is None else p
    sign_p = difference.logprob_sign_p if sign_p is None else sign_p
    if p is not None and p < 1 - LEVEL:
        word = "higher" if difference.logprob > 0 else "lower"
        above_floor = True
        if floor is not None and floor.logprob is not None and floor.logprob_spread is not None:
            above_floor = abs(difference.logprob) > floor.logprob and size > floor.logprob_spread
        return word if above_floor and all(other == word for other in beyond) else "at the floor"
    if sign_p is None or sign_p >= 1 - LEVEL or (floor is not None and size <= (floor.logprob_spread or 0.0)):
        return "cannot tell"
    up = difference.logprob_higher > difference.logprob_lower
    most = MOST[1 if up else -1]
    return most if all(other in (most, "higher" if up else "lower") for other in beyond) else "cannot tell"
