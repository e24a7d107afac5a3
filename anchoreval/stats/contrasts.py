"""Subjects that are compared: every paired difference with its corrected p, its noise floor and its words.

Whatever shows a comparison, on a terminal, a page or in a file, takes these rows. Holm's correction is over the tasks
and lengths of one arm against one baseline, and over its lengths; the pooled row is one question. It is made of each
kind of claim: that arms differ (5%), that they are equivalent (2.5% each way), and the same of log-probabilities.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Generic, Literal, TypeVar

from anchoreval.schema import Record
from anchoreval.stats.intervals import ALPHA, detects
from anchoreval.stats.paired import Difference, difference_of
from anchoreval.stats.scores import Place, Scores, by_arm
from anchoreval.stats.significance import holm
from anchoreval.stats.subject import Subject, labels
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
Cells = Mapping[Place, Scores]
Placebo = Literal["arm", "baseline"]
Slot = TypeVar("Slot")


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
    placebo: bool = False

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

    `arm` and `baseline` are what the two subjects are called. `prompts` says in words what makes their prompts differ;
    `computed_apart` counts the pairs of one run whose two answers come from different environments.
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
class Comparison:
    """All differences of one arm to a baseline: per (task, length), per length over tasks, over all."""

    arm: str
    baseline: str
    cells: tuple[Difference, ...]
    lengths: tuple[Difference, ...]
    pooled: Difference


class Slots(Generic[Slot]):
    """Subjects' scores in slots, and what they differ by there: each difference is made once, either way round.

    `where` gives the task and length of a slot, `names` what subjects are called. `ruled`: a slot is one task and
    length, where the rule of a run may have ended. `mixed`: the scores of a subject are of several runs, and those of
    two are paired where they are of one.
    """

    def __init__(
        self,
        slots: Mapping[Slot, Mapping[Subject, Cells]],
        names: Mapping[Subject, str],
        margin: float,
        where: Callable[[Slot], Where] = lambda _: (None, None),
        ruled: bool = False,
        mixed: bool = False,
    ) -> None:
        self.slots, self._names, self._margin, self._where = slots, names, margin, where
        self._ruled, self._mixed = ruled, mixed
        subjects = dict.fromkeys(one for of in slots.values() for one in of)
        self._placebos = [(one, own) for one in subjects if (own := one.original) in subjects]
        self._made: dict[tuple[Slot, Subject, Subject], Difference] = {}

    def both(self, slot: Slot, arm: Subject, base: Subject) -> list[tuple[Scores, Scores]] | None:
        """The scores of the two at every place of a slot, which are paired; None where nothing is to be paired."""
        of = self.slots[slot]
        own, other = of.get(arm, {}), of.get(base, {})
        if self._mixed:
            common = ((scores, other[place]) for place, scores in own.items() if place in other)
            return [(a, b) for a, b in common if a.run == b.run] or None
        places = dict.fromkeys([*own, *other])
        there = arm in of or base in of
        return [(own.get(place, _EMPTY), other.get(place, _EMPTY)) for place in places] if there else None

    def difference(self, slot: Slot, arm: Subject, base: Subject) -> Difference | None:
        """`arm` minus `base` there; None where nothing is to be paired."""
        key = slot, arm, base
        if key not in self._made and (both := self.both(*key)) is not None:
            other = self._made.get((slot, base, arm))
            unscored = Difference(*self._where(slot), self._names[arm], self._names[base])
            self._made[key] = other.reversed() if other else difference_of(both, unscored, arm.run != base.run)
        return self._made.get(key)

    def differences(self, arm: Subject, base: Subject) -> dict[Slot, Difference]:
        """`arm` minus `base` in every slot."""
        return {slot: one for slot in self.slots if (one := self.difference(slot, arm, base))}

    def rows(self, arm: Subject, base: Subject) -> dict[Slot, Row]:
        """The differences with their verdicts, asked together.

        Noise floors are those of the placebos in the slot, of the run of `base`, or of that of `arm` where it has none.
        """
        found = self.differences(arm, base)
        run = base.run if any(one.run == base.run for one, _ in self._placebos) else arm.run
        placebos = [(one, own) for one, own in self._placebos if one.run == run]
        floors = [noise_floor(filter(None, (self.difference(slot, *pair) for pair in placebos))) for slot in found]
        ruled = self._ruled and arm.run == base.run and base.original is None
        stopped = [self._stopped(slot, arm, base) if ruled else "" for slot in found]
        asked = partial(family, list(found.values()), self._margin, floors, placebo_of(arm, base), stopped)
        rows, beyond = asked(), beyond_of(arm, base, placebos)
        if beyond and any(row.told or row.logprob_says in LOGPROB_TOLD for row in rows):
            rows = asked([[self.difference(slot, *pair) for slot in found] for pair in beyond])
        return dict(zip(found, rows, strict=True))

    def _stopped(self, slot: Slot, arm: Subject, base: Subject) -> str:
        """The words of the rule that ended an arm's cell; none where it ended that of `base` too."""
        own, other = (self.both(slot, arm, base) or [(_EMPTY, _EMPTY)])[0]
        return "" if other.stopped else own.stopped


_EMPTY = Scores()


class Compared:
    """Subjects, of one or several runs, by task and length; each may be compared with every other.

    `names` is what to call them, where others stand beside them.
    """

    def __init__(
        self, subjects: Mapping[Subject, Cells], margin: float = MARGIN, names: Mapping[Subject, str] | None = None
    ) -> None:
        self.subjects, self._margin, self._names = subjects, margin, names or labels(subjects)
        places = dict.fromkeys(place for of in subjects.values() for place in of)

        def at(*wanted: Place) -> dict[Subject, Cells]:
            of = ((one, {place: cells[place] for place in wanted if place in cells}) for one, cells in subjects.items())
            return {one: cells for one, cells in of if cells}

        lengths = {n: at(*(place for place in places if place[1] == n)) for n in sorted({n for _, n in places})}
        self._cells = Slots({place: at(place) for place in places}, self._names, margin, lambda place: place, True)
        self._lengths = Slots(lengths, self._names, margin, lambda length: (None, length))
        self._pooled = Slots({None: subjects}, self._names, margin)

    def differences(self, arm: Subject, base: Subject) -> Comparison:
        """`arm` minus `base`, without verdicts."""
        parts = [tuple(of.differences(arm, base).values()) for of in (self._cells, self._lengths, self._pooled)]
        return Comparison(self._names[arm], self._names[base], parts[0], parts[1], *parts[2])

    def contrast(self, arm: Subject, base: Subject) -> Contrast:
        """`arm` minus `base`, with verdicts."""
        cells, lengths = (tuple(of.rows(arm, base).values()) for of in (self._cells, self._lengths))
        (pooled,) = self._pooled.rows(arm, base).values()
        notes = [] if pooled.floor else ["noise floor: no placebo in this run"]
        if lone := sum(not row.difference.pairs for row in cells):
            notes.append(f"{lone} of {len(cells)} cells have no pair and are left out of the table")
        if any(scores.stopped for one in (arm, base) for scores in self.subjects[one].values()):
            notes.append(
                "p and intervals are for a fixed number of samples; where the run stopped early, its rule decides"
            )
        apart = pooled.difference.environments_apart if arm.run == base.run else 0
        names = self._names[arm], self._names[base]
        return Contrast(*names, self._margin, cells, lengths, pooled, tuple(notes), computed_apart=apart)

    def against(self, base: Subject | None = None) -> list[Contrast]:
        """Every other subject minus `base`, the first where none is named."""
        base = base or next(iter(self.subjects), None)
        return [self.contrast(one, base) for one in self.subjects if base and one != base]


def paired(records: Iterable[Record], arm_a: str, arm_b: str) -> Comparison:
    """`arm_a` minus `arm_b` (the baseline) over the samples they share.

    Raises RunError when the two arms saw different prompts for one sample, or one arm has a sample twice.
    """
    arms = (arm_a, arm_b)
    cells = by_arm((record for record in records if record.arm in arms), arms)
    return Compared({Subject(arm): cells[arm] for arm in arms}).differences(Subject(arm_a), Subject(arm_b))


def beyond_of(
    arm: Subject, base: Subject, placebos: Sequence[tuple[Subject, Subject]]
) -> list[tuple[Subject, Subject]]:
    """The pairs (arm, baseline) that must say what `arm` minus `base` says: each placebo in place of its own arm.

    `placebos` are given with what they are placebos of.
    """
    if placebo_of(arm, base):
        return []
    stand_in = [(one, own) for one, own in placebos if one not in (arm, base)]
    return [(arm, one) if own == base else (one, base) for one, own in stand_in if own in (arm, base)]


def placebo_of(arm: Subject, baseline: Subject) -> Placebo | None:
    """Which of the two is the placebo of the other; None where neither is."""
    if arm.original == baseline:
        return "arm"
    return "baseline" if baseline.original == arm else None


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
    said = word, says, logprob_says, placebo is not None
    return Row(difference, corrected.p, corrected.logprob_p, floor, found, *said)


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
