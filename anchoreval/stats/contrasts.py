"""Compare subjects: every paired difference with its corrected p, its noise floor and its verdict in words.

A subject is what is compared: an arm of a model, with prompts of one form, on one engine. Two models, two forms of
prompts or two engines are compared in the same way as two arms. The label of a subject names what distinguishes it from
the subjects beside it, and leaves out what they share.

Every place that shows a comparison (terminal, page, file) takes its rows from here. For one arm against one baseline,
Holm's correction is made over the cells, and separately over the lengths; the pooled row is a single test. Each kind of
claim is corrected for itself: that arms differ (5%), that they are equivalent (2.5% each way), and the same for
log-probabilities.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Generic, Literal, TypeVar

from anchoreval.schema import Json, Record, original_of
from anchoreval.stats.cells import Place, Scores, by_arm
from anchoreval.stats.intervals import ALPHA, detects, t_detects
from anchoreval.stats.paired import Difference, difference_of, holm
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

_MARK = 8  # number of digits of a hash in a label
_DECIDING = (
    "length", "batch_tokens", "theta", "rope_type", "document_start", "hyper", "data_sha256", "base_sha256", "anchor",
)  # fmt: skip
#: Attributes that a label may show, in order -> attributes in which subjects must agree before this one is shown.
_FACETS: dict[str, tuple[str, ...]] = {
    "model": (), "weights": ("model",), "form": (), "engine": (), "dtype": (), "kernel": (), "outside": ("arm",),
    "run": ("arm", "model", "weights", "form", "engine", "dtype", "kernel", "outside"),
}  # fmt: skip
MARGIN = 0.01  # the default margin of equivalence
AT_FLOOR, FLOOR_ZERO, ABOVE_FLOOR = "at the floor", "floor 0 here", "ABOVE THE FLOOR"  # verdicts of a placebo's own row

Where = tuple[str | None, int | None]  # (task, length); None if pooled
Cells = Mapping[Place, Scores]
Placebo = Literal["arm", "baseline"]
Slot = TypeVar("Slot")


@dataclass(frozen=True, slots=True)
class Subject:
    """An arm of a model in a form of prompts on an engine; values that a run does not tell are empty.

    `weights` is the SHA-256 of the model's weights, and `outside` holds those of the arm's outside code: two hashes
    under one name are two subjects. `run` is the name or path of the run that computed it; it is empty if a board
    combines several runs.
    """

    arm: str
    model: str = ""
    weights: str = ""
    form: str = ""
    engine: str = ""
    dtype: str = ""
    kernel: str = ""
    outside: tuple[str, ...] = ()
    run: str = ""

    @property
    def original(self) -> Subject | None:
        """The subject that this one is the placebo of; None if it is no placebo."""
        arm = original_of(self.arm)
        return None if arm is None else replace(self, arm=arm)

    def facet(self, name: str) -> str:
        """Return the text of one attribute for a label."""
        value = getattr(self, name)
        if name == "outside":
            return "source " + " and ".join(sha256[:_MARK] for sha256 in value) if value else ""
        hashed = name == "weights" or (name == "run" and "/" not in value)
        return str(value[:_MARK] if hashed else value)


@dataclass(frozen=True, slots=True)
class Trained:
    """How a model was trained, as the card beside its weights says; models that differ in seed alone are one variant.

    `step` is the step of the weights and `steps` the number asked for; `rest` is a hash of everything else that decides
    the weights: data, base, length, RoPE base, batch and hyper-parameters.
    """

    variant: str
    rope: str
    seed: int
    step: int
    steps: int
    rest: str = ""

    @classmethod
    def of(cls, card: Mapping[str, Json]) -> Trained | None:
        """Return what a training card says; None if it lacks one of these facts."""
        variant, rope = card.get("variant"), card.get("rope")
        numbers = [card.get(name) for name in ("seed", "step", "steps")]
        if not (isinstance(variant, str) and isinstance(rope, str) and all(type(each) is int for each in numbers)):
            return None
        seed, step, steps = map(int, numbers)  # type: ignore[arg-type]
        hyper = card.get("hyper")
        constant = isinstance(hyper, Mapping) and hyper.get("schedule") == "constant"
        deciding = _DECIDING if constant else (*_DECIDING, "steps")
        rest = json.dumps({name: card.get(name) for name in deciding}, sort_keys=True, default=str)
        return cls(variant, rope, seed, step, steps, hashlib.sha256(rest.encode()).hexdigest())

    @property
    def name(self) -> str:
        """`anchor-bf16`: the variant with its RoPE level."""
        return f"{self.variant}-{self.rope}"

    @property
    def step_words(self) -> str:
        """The steps, and `8 of 16` for a checkpoint on the way."""
        return f"{self.step:,}" if self.step >= self.steps else f"{self.step:,} of {self.steps:,}"


def labels(subjects: Iterable[Subject]) -> dict[Subject, str]:
    """Return a label for each subject: the arm, and in brackets what distinguishes it, such as `bf16 (tiny, vllm)`.

    Subjects that agree in everything else are distinguished by their run.
    """
    words: dict[Subject, list[str]] = {subject: [] for subject in subjects}
    for name, agreeing in _FACETS.items():
        group_of = {subject: tuple(getattr(subject, other) for other in agreeing) for subject in words}
        values: dict[tuple[object, ...], set[object]] = {}
        for subject, group in group_of.items():
            values.setdefault(group, set()).add(getattr(subject, name))
        for subject, group in group_of.items():
            if len(values[group]) > 1 and (text := subject.facet(name)):
                words[subject].append(text)
    return {one: f"{one.arm} ({', '.join(texts)})" if texts else one.arm for one, texts in words.items()}


def variant_names(variants: Iterable[Trained]) -> dict[Trained, str]:
    """Return the name of every variant, and its step or a hash too where others have that name."""
    every = list(variants)
    alike = {one: [each for each in every if each.name == one.name] for one in every}
    return {
        one: one.name
        + (f" at step {one.step:,}" if len({each.step for each in alike[one]}) > 1 else "")
        + (f" {one.rest[:_MARK]}" if sum(each.step == one.step for each in alike[one]) > 1 else "")
        for one in every
    }


@dataclass(frozen=True, slots=True)
class Row:
    """One paired difference with its corrected p values, its noise floor and its verdicts in words.

    `word` is the verdict on scores in short, and `says` in full. In a run that stopped early by its own rule it is the
    rule's verdict, if that is above the noise floor. In the row of a placebo it tells whether the row is at the noise
    floor that the placebo gives. Units are fractions and nats.

    `told`      True if the row shows a difference: worse, better, or a placebo above the floor
    `too_few`   True if the pairs are too few to show any difference; their interval then shows nothing either
    """

    difference: Difference
    p_holm: float | None
    logprob_p_holm: float | None
    floor: NoiseFloor | None
    verdict: Verdict
    word: str
    says: str
    logprob_says: str
    told: bool
    too_few: bool
    placebo: bool = False


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
        role: Placebo | None = "arm" if arm.original == base else "baseline" if base.original == arm else None

        # The phrase of the rule that ended the arm's cell, if no rule ended that of `base` too.
        stopped = [""] * len(differences)
        if self._ruled and arm.run == base.run and base.original is None:
            for i, slot in enumerate(differences):
                own, other = (self.both(slot, arm, base) or [(_EMPTY, _EMPTY)])[0]
                stopped[i] = "" if other.stopped else own.stopped
        rows = family(list(differences.values()), self._margin, floors, role, stopped)

        # Pairs that must agree with `arm` minus `base`: each placebo in place of its arm.
        beyond = [
            (arm, placebo) if original == base else (placebo, base)
            for placebo, original in placebos
            if not role and original in (arm, base) and placebo not in (arm, base)
        ]
        if beyond and any(row.told or row.logprob_says in LOGPROB_TOLD for row in rows):
            others = [[self.difference(slot, *pair) for slot in differences] for pair in beyond]
            rows = family(list(differences.values()), self._margin, floors, role, stopped, others)
        return dict(zip(differences, rows, strict=True))


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

        cells = {place: {one: {place: of[place]} for one, of in subjects.items() if place in of} for place in places}
        lengths: dict[int, dict[Subject, dict[Place, Scores]]] = {n: {} for n in sorted({n for _, n in places})}
        for one, of in subjects.items():
            for place in places:
                if place in of:
                    lengths[place[1]].setdefault(one, {})[place] = of[place]
        self.cells = Slots(cells, self._names, margin, lambda place: place, True, mixed)
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
    `placebo`   which of the two arms is the placebo of the other; None if neither is
    `beyond`    for each placebo, the differences at the same places with the placebo in place of its own arm. "worse"
                and "better" must hold there too, after a Holm's correction of their own
    """
    ps = holm([difference.p for difference in differences])
    logprob_ps = holm([difference.logprob_p for difference in differences])
    within = holm([equivalence_p(difference, margin) for difference in differences])
    signs = holm([difference.logprob_sign_p for difference in differences])
    asked = max(1, sum(p is not None and p >= ALPHA for p in ps))  # the number of tests that Holm still counts

    beyond_at: list[list[Row]] = [[] for _ in differences]
    for other in beyond:
        known = {i: each for i, each in enumerate(other) if each and (each.pairs or each.logprob_pairs)}
        for i, row in zip(known, family(list(known.values()), margin, [None] * len(known)), strict=True):
            beyond_at[i].append(row)

    rows = []
    for i, difference in enumerate(differences):
        size, against = difference.deviation, None if placebo else floors[i]
        if asked > 1 and difference.method == "t" and size:
            detectable: float | None = t_detects(difference.pairs, size, ALPHA / asked)
            difference = replace(difference, detectable=detectable)
        elif asked > 1 and size is not None and difference.units is not None:
            detectable = detects(difference.pairs, difference.units, size, difference.mid, ALPHA / asked)
            difference = replace(difference, detectable=detectable)
        words = [str(row.verdict.word) for row in beyond_at[i]]
        full = verdict(difference, margin, against, ps[i], within=within[i], beyond=words, questions=asked)
        word, says = str(full.word), str(full)
        logprob_words = [row.logprob_says for row in beyond_at[i]]
        logprob_says = logprob_word(difference, against, logprob_ps[i], signs[i], logprob_words)
        if placebo:
            word, says, logprob_says = _at_the_floor(difference, full, logprob_says, placebo)
        if stopped and stopped[i]:
            word, says = _by_rule(stopped[i], difference, against, words)
        told = word in ("worse", "better", ABOVE_FLOOR)
        few = too_few(difference) and not full.within
        texts = word, says, logprob_says, told, few, placebo is not None
        rows.append(Row(difference, ps[i], logprob_ps[i], floors[i], full, *texts))
    return tuple(rows)


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
