"""Compare subjects: every paired difference with its corrected p, its noise floor and its verdict in words.

Every place that shows a comparison (terminal, page, file) takes its rows from here. For one arm against one baseline,
Holm's correction is made over the cells, and separately over the lengths; the pooled row is a single test. Each kind of
claim is corrected for itself: that arms differ (5%), that they are equivalent (2.5% each way), and the same for
log-probabilities.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Generic, Literal, TypeVar

from anchoreval.schema import Record
from anchoreval.stats.intervals import ALPHA, detects, t_detects
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

MARGIN = 0.01  # the default margin of equivalence
AT_FLOOR, FLOOR_ZERO, ABOVE_FLOOR = "at the floor", "floor 0 here", "ABOVE THE FLOOR"  # verdicts of a placebo's own row

Where = tuple[str | None, int | None]  # (task, length); None if pooled
Cells = Mapping[Place, Scores]
Placebo = Literal["arm", "baseline"]
Slot = TypeVar("Slot")


@dataclass(frozen=True, slots=True)
class Row:
    """One paired difference with its corrected p values, its noise floor and its verdicts in words.

    `word` is the verdict on scores in short, and `says` in full. In a run that stopped early by its own rule it is the
    rule's verdict, if that is above the noise floor. In the row of a placebo it tells whether the row is at the noise
    floor that the placebo gives. Units are fractions and nats.
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
        """True if the row shows a difference: worse, better, or a placebo above the floor."""
        return self.word in ("worse", "better", ABOVE_FLOOR)

    @property
    def too_few(self) -> bool:
        """True if the pairs are too few to show any difference; their interval then shows nothing either."""
        return too_few(self.difference) and not self.verdict.within


@dataclass(frozen=True, slots=True)
class Contrast:
    """All rows of one arm against one baseline. Holm's correction is made over `cells`, and over `lengths`.

    `arm` and `baseline` are the labels of the two subjects. `prompts` has phrases for why their prompts differ.
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
        """The rows of all cells, of all lengths, and the pooled row."""
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
    """The scores of subjects in slots (such as cells or lengths), and their differences in each slot.

    Each difference is computed once and reversed if it is asked the other way round.

    `slots`     slot -> subject -> its scores by task and length
    `names`     the labels of the subjects
    `where`     returns task and length of a slot
    `ruled`     True if each slot is one task and length, which a stopping rule may have ended
    `mixed`     True if the scores of a subject come from several runs; only scores of the same run are then paired
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
        subjects = dict.fromkeys(subject for of in slots.values() for subject in of)
        self._placebos = [(subject, original) for subject in subjects if (original := subject.original) in subjects]
        self._made: dict[tuple[Slot, Subject, Subject], Difference] = {}

    def both(self, slot: Slot, arm: Subject, base: Subject) -> list[tuple[Scores, Scores]] | None:
        """Return the scores of both subjects at every place of a slot; None if there is nothing to pair."""
        cells = self.slots[slot]
        arm_cells, base_cells = cells.get(arm, {}), cells.get(base, {})
        if self._mixed:
            common = ((scores, base_cells[place]) for place, scores in arm_cells.items() if place in base_cells)
            return [(a, b) for a, b in common if a.run == b.run] or None
        places = dict.fromkeys([*arm_cells, *base_cells])
        there = arm in cells or base in cells
        return [(arm_cells.get(place, _EMPTY), base_cells.get(place, _EMPTY)) for place in places] if there else None

    def difference(self, slot: Slot, arm: Subject, base: Subject) -> Difference | None:
        """Return the difference `arm` minus `base` in a slot; None if there is nothing to pair."""
        key = slot, arm, base
        if key not in self._made and (both := self.both(*key)) is not None:
            other = self._made.get((slot, base, arm))
            unscored = Difference(*self._where(slot), self._names[arm], self._names[base])
            self._made[key] = other.reversed() if other else difference_of(both, unscored, arm.run != base.run)
        return self._made.get(key)

    def differences(self, arm: Subject, base: Subject) -> dict[Slot, Difference]:
        """Return the difference `arm` minus `base` in every slot that has one."""
        return {slot: found for slot in self.slots if (found := self.difference(slot, arm, base))}

    def rows(self, arm: Subject, base: Subject) -> dict[Slot, Row]:
        """Return the rows of all slots, corrected together.

        The noise floor of a slot comes from its placebos of the run of `base`, or of the run of `arm` if that of `base`
        has none.
        """
        differences = self.differences(arm, base)
        run = base.run if any(placebo.run == base.run for placebo, _ in self._placebos) else arm.run
        placebos = [(placebo, original) for placebo, original in self._placebos if placebo.run == run]
        floors = [
            noise_floor(filter(None, (self.difference(slot, *pair) for pair in placebos))) for slot in differences
        ]
        ruled = self._ruled and arm.run == base.run and base.original is None
        stopped = [self._stopped(slot, arm, base) if ruled else "" for slot in differences]
        asked = partial(family, list(differences.values()), self._margin, floors, placebo_of(arm, base), stopped)
        rows, beyond = asked(), beyond_of(arm, base, placebos)
        if beyond and any(row.told or row.logprob_says in LOGPROB_TOLD for row in rows):
            rows = asked([[self.difference(slot, *pair) for slot in differences] for pair in beyond])
        return dict(zip(differences, rows, strict=True))

    def _stopped(self, slot: Slot, arm: Subject, base: Subject) -> str:
        """Return the phrase of the rule that ended an arm's cell; empty if a rule ended the cell of `base` too."""
        own, other = (self.both(slot, arm, base) or [(_EMPTY, _EMPTY)])[0]
        return "" if other.stopped else own.stopped


_EMPTY = Scores()


class Compared:
    """Subjects of one or several runs with their scores by task and length; any two can be compared.

    `names` are the labels of the subjects; they are needed if other subjects are shown beside these. `mixed` is as for
    Slots; `cells`, `lengths` and `pooled` are the Slots of its differences.
    """

    def __init__(
        self, subjects: Mapping[Subject, Cells], margin: float = MARGIN, names: Mapping[Subject, str] | None = None,
        mixed: bool = False,
    ) -> None:  # fmt: skip
        self.subjects, self._margin, self._names = subjects, margin, names or labels(subjects)
        places = dict.fromkeys(place for of in subjects.values() for place in of)

        def at(*wanted: Place) -> dict[Subject, Cells]:
            of = ((one, {place: cells[place] for place in wanted if place in cells}) for one, cells in subjects.items())
            return {one: cells for one, cells in of if cells}

        lengths = {n: at(*(place for place in places if place[1] == n)) for n in sorted({n for _, n in places})}
        self.cells = Slots({p: at(p) for p in places}, self._names, margin, lambda place: place, True, mixed)
        self.lengths = Slots(lengths, self._names, margin, lambda length: (None, length), mixed=mixed)
        self.pooled = Slots({None: subjects}, self._names, margin, mixed=mixed)

    def differences(self, arm: Subject, base: Subject) -> Comparison:
        """Return the differences `arm` minus `base`, without verdicts."""
        parts = [tuple(slots.differences(arm, base).values()) for slots in (self.cells, self.lengths, self.pooled)]
        return Comparison(self._names[arm], self._names[base], parts[0], parts[1], *parts[2])

    def contrast(self, arm: Subject, base: Subject) -> Contrast:
        """Return the rows of `arm` minus `base`, with verdicts."""
        cells, lengths = (tuple(of.rows(arm, base).values()) for of in (self.cells, self.lengths))
        (pooled,) = self.pooled.rows(arm, base).values()
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
        """Return the contrast of every other subject with `base` (default: the first subject)."""
        base = base or next(iter(self.subjects), None)
        return [self.contrast(subject, base) for subject in self.subjects if base and subject != base]


def paired(records: Iterable[Record], arm_a: str, arm_b: str) -> Comparison:
    """Return the differences `arm_a` minus `arm_b` (the baseline) over the samples that they share.

    Raise RunError if the two arms saw different prompts for one sample, or if one arm has a sample twice.
    """
    arms = (arm_a, arm_b)
    cells = by_arm((record for record in records if record.arm in arms), arms)
    return Compared({Subject(arm): cells[arm] for arm in arms}).differences(Subject(arm_a), Subject(arm_b))


def beyond_of(
    arm: Subject, base: Subject, placebos: Sequence[tuple[Subject, Subject]]
) -> list[tuple[Subject, Subject]]:
    """Return the pairs (arm, baseline) that must agree with `arm` minus `base`: each placebo in place of its arm.

    `placebos` are pairs (placebo, the subject that it is the placebo of).
    """
    if placebo_of(arm, base):
        return []
    stand_in = [(placebo, original) for placebo, original in placebos if placebo not in (arm, base)]
    return [
        (arm, placebo) if original == base else (placebo, base)
        for placebo, original in stand_in
        if original in (arm, base)
    ]


def placebo_of(arm: Subject, baseline: Subject) -> Placebo | None:
    """Return which of the two is the placebo of the other; None if neither is."""
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
    """Return the rows of differences that are tested together; Holm's correction is made over all of them.

    `floors`    the noise floor of each difference
    `stopped`   for each, the phrase of the stopping rule that ended its cell; empty if none did
    `placebo`   the result of `placebo_of`
    `beyond`    for each placebo, the differences at the same places with the placebo in place of its own arm. "worse"
                and "better" must hold there too, after a Holm's correction of their own
    """
    ps, logprob_ps = (
        holm([difference.p for difference in differences]),
        holm([difference.logprob_p for difference in differences]),
    )
    within = holm([equivalence_p(difference, margin) for difference in differences])
    signs = holm([difference.logprob_sign_p for difference in differences])
    asked = max(1, sum(p is not None and p >= ALPHA for p in ps))
    shown = [
        replace(difference, detectable=_detectable(difference, asked)) if asked > 1 else difference
        for difference in differences
    ]
    words = stopped or [""] * len(differences)
    others = _words(beyond, margin, len(differences))
    corrected = [_Corrected(*each, asked) for each in zip(ps, within, logprob_ps, signs, strict=True)]
    parts = zip(shown, corrected, floors, words, others, strict=True)
    return tuple(_row(*each, margin, placebo) for each in parts)


@dataclass(frozen=True, slots=True)
class _Corrected:
    """The p values of a row after Holm's correction, and the number of tests that the correction still counts."""

    p: float | None
    within: float | None
    logprob_p: float | None
    sign_p: float | None
    questions: int


def _detectable(difference: Difference, questions: int) -> float | None:
    """Return the difference that the pairs can detect at the level that Holm's correction leaves for so many tests."""
    if difference.method == "t" and difference.deviation:
        return t_detects(difference.pairs, difference.deviation, ALPHA / questions)
    if difference.deviation is None or difference.units is None:
        return difference.detectable
    return detects(difference.pairs, difference.units, difference.deviation, difference.mid, ALPHA / questions)


def _words(beyond: Sequence[Sequence[Difference | None]], margin: float, places: int) -> list[list[tuple[str, str]]]:
    """Return, for every place, the verdicts on scores and log-probabilities with each placebo in place of its arm."""
    verdicts: list[list[tuple[str, str]]] = [[] for _ in range(places)]
    for other in beyond:
        at = {
            i: difference
            for i, difference in enumerate(other)
            if difference is not None and (difference.pairs or difference.logprob_pairs)
        }
        for i, row in zip(at, family(list(at.values()), margin, [None] * len(at)), strict=True):
            verdicts[i].append((str(row.verdict.word), row.logprob_says))
    return verdicts


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
    full = verdict(
        difference,
        margin,
        against,
        corrected.p,
        within=corrected.within,
        beyond=on_scores,
        questions=corrected.questions,
    )
    word, says = str(full.word), str(full)
    logprob_says = logprob_word(difference, against, corrected.logprob_p, corrected.sign_p, on_logprobs)
    if placebo:
        word, says, logprob_says = _at_the_floor(difference, full, logprob_says, placebo)
    if stopped:
        word, says = _by_rule(stopped, difference, against, on_scores)
    words = word, says, logprob_says, placebo is not None
    return Row(difference, corrected.p, corrected.logprob_p, floor, full, *words)


def _by_rule(
    stopped: str, difference: Difference, floor: NoiseFloor | None, beyond: Collection[str]
) -> tuple[str, str]:
    """Return a stopping rule's verdict in short and in full; worse and better must be above the noise floor."""
    word = stopped.partition(" (")[0].partition(" within")[0]
    if word in ("worse", "better") and not (above(difference, floor) and all(other == word for other in beyond)):
        return "cannot tell", f"cannot tell (not above the noise floor; {stopped.replace(' (', ', ')}"
    return word, stopped


def _at_the_floor(difference: Difference, found: Verdict, logprob: str, placebo: Placebo) -> tuple[str, str, str]:
    """Return short verdict, full verdict and verdict on log-probabilities of the row of a placebo and its own arm."""
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
