"""Arms that are compared: every paired difference with its corrected p, its noise floor and its words.

Whatever shows a comparison, on a terminal, a page or in a file, takes these rows. Holm's correction is over the tasks
and lengths of one arm against one baseline, and over its lengths; the pooled row is one question. It is made of each
kind of claim: that arms differ (5%), that they are equivalent (2.5% each way), and the same of log-probabilities.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

from anchoreval.schema import Record, original_of
from anchoreval.stats.cells import put
from anchoreval.stats.intervals import ALPHA, detects
from anchoreval.stats.paired import Comparison, Difference, Place, paired, paired_sides
from anchoreval.stats.significance import holm
from anchoreval.stats.verdicts import (
    LOGPROB_TOLD,
    NoiseFloor,
    Verdict,
    above,
    equivalence_p,
    logprob_word,
    noise_floor,
    too_few,
    verdict,
)

MARGIN = 0.01  # differences up to this are equivalent, where no other margin is asked for
AT_FLOOR, FLOOR_ZERO, ABOVE_FLOOR = "at the floor", "floor 0 here", "ABOVE THE FLOOR"  # words of a placebo's own row

Where = tuple[str | None, int | None]  # (task, length), None where pooled
Floors = Mapping[Where, NoiseFloor]
Placebo = Literal["arm", "baseline"]


@dataclass(frozen=True, slots=True)
class Row:
    """One paired difference with its corrected p values, its noise floor and what it says in words.

    `word` is the verdict on scores in short and `says` in full; where a run stopped early by its own rule, that
    rule's, if it is above the noise floor, and on the row of a placebo whether it is at the noise floor that it gives.
    Fractions and nats.
    """

    difference: Difference
    p_holm: float | None
    logprob_p_holm: float | None
    floor: NoiseFloor | None
    verdict: Verdict
    word: str
    says: str
    logprob_says: str

    @property
    def told(self) -> bool:
        """Whether a difference is shown: for the worse, for the better, or by a placebo."""
        return self.word in ("worse", "better", ABOVE_FLOOR)

    @property
    def too_few(self) -> bool:
        """Whether so few pairs can show nothing, so that their interval says nothing either."""
        return too_few(self.difference) and not self.verdict.within


@dataclass(frozen=True, slots=True)
class Contrast:
    """All rows of one arm against one baseline. Holm's correction is over `cells`, and over `lengths`.

    `prompts` says in words what makes the prompts of the two sides differ; `computed_apart` counts the pairs of one run
    whose two answers come from different environments.
    """

    arm: str
    baseline: str
    margin: float
    cells: tuple[Row, ...]
    lengths: tuple[Row, ...]
    pooled: Row
    notes: tuple[str, ...] = ()
    prompts: tuple[str, ...] = ()
    computed_apart: int = 0

    @property
    def rows(self) -> tuple[Row, ...]:
        """The rows of every task and length, of every length, and the pooled one."""
        return (*self.cells, *self.lengths, self.pooled)


@dataclass(frozen=True, slots=True)
class Side:
    """One arm of one run: its label in tables, its records by sample id, what its run knows of noise and stopping.

    `placebos` are the records of the run's placebos by arm and sample id.
    """

    arm: str
    label: str
    records: Mapping[str, Record]
    floors: Floors = field(default_factory=dict)
    stopped: Mapping[tuple[str, int], str] = field(default_factory=dict)
    placebos: Mapping[str, Mapping[str, Record]] = field(default_factory=dict)


def sides(
    arms: Iterable[str], records: Sequence[Record], stopped: Mapping[str, Mapping[Place, str]], label: str = ""
) -> dict[str, Side]:
    """Arm -> its side, `arms` first; RunError for a sample recorded twice.

    `stopped` are the words of the verdicts with which a rule stopped cells, by arm and (task, length).
    """
    by_arm: dict[str, dict[str, Record]] = {arm: {} for arm in arms}
    for record in records:
        put(by_arm.setdefault(record.arm, {}), record)
    placebos = {arm: own for arm, own in by_arm.items() if original_of(arm) is not None and own}
    floors = _floors(records, list(placebos))
    return {
        arm: Side(arm, f"{arm} ({label})" if label else arm, own, floors, stopped.get(arm, {}), placebos)
        for arm, own in by_arm.items()
        if own
    }


def _floors(records: Sequence[Record], placebos: Sequence[str]) -> Floors:
    """(task, length) -> the noise floor there, pooled places included; empty without a placebo."""
    found: dict[Where, list[Difference]] = {}
    for placebo in placebos:
        comparison = paired(records, placebo, original_of(placebo) or placebo)
        for one in (*comparison.cells, *comparison.lengths, comparison.pooled):
            found.setdefault((one.task, one.length), []).append(one)
    return {place: floor for place, each in found.items() if (floor := noise_floor(each))}


def contrast(side: Side, base: Side, margin: float = MARGIN, comparison: Comparison | None = None) -> Contrast:
    """The rows of `side` against `base`; `comparison`, where it is at hand already, is that of their labels."""
    comparison = comparison or paired_sides(side.records, base.records, side.label, base.label)
    floors = base.floors or side.floors
    placebo = placebo_of(side.arm, base.arm)
    ruled = base.label == base.arm and not base.stopped and original_of(base.arm) is None
    stopped = side.stopped if ruled else {}

    others = None if placebo else _Beyond(side, base)

    def rows(differences: Sequence[Difference]) -> tuple[Row, ...]:
        places = [(one.task, one.length) for one in differences]
        words = [stopped.get((task or "", length or 0), "") for task, length in places]
        on = [floors.get(place) for place in places]
        found = family(differences, margin, on, placebo, words)
        if others is None or not any(row.told or row.logprob_says in LOGPROB_TOLD for row in found):
            return found
        return family(differences, margin, on, placebo, words, others.at(places))

    notes = [] if floors else ["noise floor: no placebo in this run"]
    if lone := sum(not one.pairs for one in comparison.cells):
        notes.append(f"{lone} of {len(comparison.cells)} cells have no pair and are left out of the table")
    if side.stopped or base.stopped:
        notes.append("p and intervals are for a fixed number of samples; where the run stopped early, its rule decides")
    parts = rows(comparison.cells), rows(comparison.lengths), rows([comparison.pooled])[0]
    return Contrast(side.label, base.label, margin, *parts, tuple(notes), computed_apart=_computed_apart(side, base))


class _Beyond:
    """The comparisons with the placebos that stand for one of two sides, made where they are asked for.

    Of a placebo of the baseline, the arm minus it; of one of the arm, it minus the baseline. They are those of the run
    that gives the noise floor.
    """

    def __init__(self, side: Side, base: Side) -> None:
        self._side, self._base = side, base

    @cached_property
    def _by_place(self) -> list[dict[Where, Difference]]:
        side, base, found = self._side, self._base, []
        for name, records in (base if base.floors else side).placebos.items():
            own = original_of(name)
            if own not in (side.arm, base.arm) or records is side.records or records is base.records:
                continue
            pair = (side.records, records) if own == base.arm else (records, base.records)
            one = paired_sides(*pair, side.label, name) if own == base.arm else paired_sides(*pair, name, base.label)
            found.append({(row.task, row.length): row for row in (*one.cells, *one.lengths, one.pooled)})
        return found

    def at(self, places: Sequence[Where]) -> list[list[Difference | None]]:
        """For each placebo its differences at these places."""
        return [[found.get(place) for place in places] for found in self._by_place]


def beyond_of(arm: str, base: str, placebos: Sequence[str]) -> list[tuple[str, str]]:
    """The pairs (arm, baseline) that must say what `arm` minus `base` says: each placebo in place of its own arm."""
    if placebo_of(arm, base):
        return []
    found = []
    for placebo in placebos:
        if placebo not in (arm, base) and (own := original_of(placebo)) in (arm, base):
            found.append((arm, placebo) if own == base else (placebo, base))
    return found


def placebo_of(arm: str, baseline: str) -> Placebo | None:
    """Which of the two is the placebo of the other; None where neither is."""
    if original_of(arm) == baseline:
        return "arm"
    return "baseline" if original_of(baseline) == arm else None


def family(
    differences: Sequence[Difference],
    margin: float,
    floors: Sequence[NoiseFloor | None],
    placebo: Placebo | None = None,
    stopped: Sequence[str] = (),
    beyond: Sequence[Sequence[Difference | None]] = (),
) -> tuple[Row, ...]:
    """The rows of differences that are asked together: Holm's correction is over all of them.

    `floors` has the noise floor of each and `stopped` the words of a rule that ended it, empty where none did;
    `placebo` is that of `placebo_of`. `beyond` has for each placebo the differences, at the same places, with it in
    place of its own arm: what is worse or better must be so there too, Holm's correction being made there as well.
    """
    ps, logprob_ps = holm([one.p for one in differences]), holm([one.logprob_p for one in differences])
    within = holm([equivalence_p(one, margin) for one in differences])
    signs = holm([one.logprob_sign_p for one in differences])
    asked = max(1, sum(p is not None and p >= ALPHA for p in ps))
    shown = [replace(one, detectable=_detectable(one, asked)) if asked > 1 else one for one in differences]
    words = stopped or [""] * len(differences)
    others = _words(beyond, margin, len(differences))
    corrected = [_Corrected(*each, asked) for each in zip(ps, within, logprob_ps, signs, strict=True)]
    parts = zip(shown, corrected, floors, words, others, strict=True)
    return tuple(_row(*each, margin, placebo) for each in parts)


@dataclass(frozen=True, slots=True)
class _Corrected:
    """Holm's p values of a row, and how many questions he still counts."""

    p: float | None
    within: float | None
    logprob_p: float | None
    sign_p: float | None
    questions: int


def _detectable(difference: Difference, questions: int) -> float | None:
    """What the pairs detect at the level that Holm's correction leaves of so many questions."""
    if difference.deviation is None or difference.units is None:
        return difference.detectable
    return detects(difference.pairs, difference.units, difference.deviation, difference.mid, ALPHA / questions)


def _words(beyond: Sequence[Sequence[Difference | None]], margin: float, places: int) -> list[list[tuple[str, str]]]:
    """At every place the words on scores and on log-probabilities with each placebo in place of its own arm."""
    found: list[list[tuple[str, str]]] = [[] for _ in range(places)]
    for other in beyond:
        at = {i: one for i, one in enumerate(other) if one is not None and (one.pairs or one.logprob_pairs)}
        for i, row in zip(at, family(list(at.values()), margin, [None] * len(at)), strict=True):
            found[i].append((str(row.verdict.word), row.logprob_says))
    return found


def _row(
    difference: Difference,
    corrected: _Corrected,
    floor: NoiseFloor | None,
    stopped: str,
    beyond: Collection[tuple[str, str]],
    margin: float,
    placebo: Placebo | None,
) -> Row:
    against = None if placebo else floor
    on_scores, on_logprobs = [word for word, _ in beyond], [word for _, word in beyond]
    found = verdict(
        difference,
        margin,
        against,
        corrected.p,
        within=corrected.within,
        beyond=on_scores,
        questions=corrected.questions,
    )
    word, says = str(found.word), str(found)
    logprob_says = logprob_word(difference, against, corrected.logprob_p, corrected.sign_p, on_logprobs)
    if placebo:
        word, says, logprob_says = _at_the_floor(difference, found, logprob_says, placebo)
    if stopped:
        word, says = _by_rule(stopped, difference, against, on_scores)
    return Row(difference, corrected.p, corrected.logprob_p, floor, found, word, says, logprob_says)


def _by_rule(
    stopped: str, difference: Difference, floor: NoiseFloor | None, beyond: Collection[str]
) -> tuple[str, str]:
    """The word of a rule that ended a run, and its full words: worse and better must be above the noise floor."""
    word = stopped.partition(" (")[0].partition(" within")[0]
    if word in ("worse", "better") and not (above(difference, floor) and all(other == word for other in beyond)):
        return "cannot tell", f"cannot tell (not above the noise floor; {stopped.replace(' (', ', ')}"
    return word, stopped


def _at_the_floor(difference: Difference, found: Verdict, logprob: str, placebo: Placebo) -> tuple[str, str, str]:
    """Word, full words and the word on log-probabilities of the row of a placebo and its own arm."""
    if not difference.pairs:
        return found.word, str(found), logprob
    if logprob in ("lower", "higher"):
        logprob = f"{ABOVE_FLOOR}: {logprob}"
    elif logprob:
        most = logprob.partition(" (")[2]
        logprob = FLOOR_ZERO if logprob == "the same" else f"{AT_FLOOR} ({most}" if most else AT_FLOOR
    if found.word in ("worse", "better"):
        worse = (found.word == "worse") == (placebo == "arm")
        return ABOVE_FLOOR, f"{ABOVE_FLOOR}: the placebo is {'worse' if worse else 'better'}", logprob
    word = FLOOR_ZERO if found.word == "identical" else AT_FLOOR
    return word, word, logprob


def _computed_apart(side: Side, base: Side) -> int:
    """Pairs of one run whose two answers come from different environments."""
    if base.label != base.arm or side.label != side.arm:
        return 0
    both = side.records.keys() & base.records.keys()
    return sum(side.records[key].environment != base.records[key].environment for key in both)
