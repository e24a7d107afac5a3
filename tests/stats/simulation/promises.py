"""What docs/statistics.md promises: tables of questions with the bound that each figure keeps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

from simulation.laws import (
    BETA,
    F1_SKEWED,
    F1_TEXTS,
    Law,
    LogLaw,
    lose_and_gain,
    lose_and_move,
    right_wrong,
    scores,
    six_steps,
)
from simulation.questions import (
    BEFORE,
    MARGIN,
    TASKS,
    Against,
    Averages,
    Detects,
    Floor,
    LogFloor,
    LogPower,
    LogProbs,
    Needs,
    One,
    Question,
    Rate,
    Rates,
    Score,
    Spread,
    StoppedPooled,
    Stops,
    StopsTexts,
    Tasks,
)

COVERED = 0.93  # an interval called 95% holds the truth at least so often, or its law is named


@dataclass(frozen=True)
class Bound:
    """A figure of a question and what it keeps: at most or at least `nominal`, give or take three Monte Carlo errors.

    `shown` is printed and keeps nothing; `unit` is what a printed figure counts: points of 100 by default.
    """

    figure: str
    kind: Literal["most", "least", "shown"] = "shown"
    nominal: float = 0.0
    unit: float = 0.01
    digits: int = 1

    def kept(self, rate: Rate) -> bool:
        slack = 3 * rate.error(self.nominal) + 1e-9
        if self.kind == "most":
            return rate.value <= self.nominal + slack
        if self.kind == "least":
            return rate.value >= self.nominal - slack
        return True

    @property
    def promised(self) -> str:
        """`at most 5`, `at least 93`; a dash where the figure is only shown."""
        word = {"most": "at most", "least": "at least", "shown": ""}[self.kind]
        return f"{word} {100 * self.nominal:g}" if word else "–"

    def said(self, rate: Rate) -> str:
        """The figure as it is printed."""
        return f"{round(rate.value / self.unit, self.digits) + 0.0:.{self.digits}f}"


FALSE, COVERAGE = Bound("false", "most", 0.05), Bound("coverage", "least", COVERED)
WITHIN = Bound("within", "most", 0.025)


class Line(NamedTuple):
    """A law and what is asked of it, one question a column; `named` is why no bound is kept there."""

    label: str
    questions: tuple[Question | None, ...]
    named: str = ""


@dataclass(frozen=True)
class Table:
    """A promise in words, the figures that show it, and where it was measured."""

    title: str
    columns: tuple[str, ...]
    bounds: tuple[Bound, ...]
    lines: tuple[Line, ...]

    def questions(self) -> Iterator[Question]:
        """Every question of the table."""
        for line in self.lines:
            yield from filter(None, line.questions)


def broken(measured: dict[Question, Rates]) -> list[str]:
    """What is not kept: table, law, column, promised and measured."""
    found = []
    for table in TABLES:
        for line in table.lines:
            for column, question in zip(table.columns, line.questions, strict=True):
                if question is None or line.named or question not in measured:
                    continue
                for bound in table.bounds:
                    rate = measured[question].get(bound.figure)
                    if rate is not None and not bound.kept(rate):
                        found.append(
                            f"{table.title} | {line.label} | {column} | {bound.figure} {bound.kind} "
                            f"{100 * bound.nominal:g} | {100 * rate.value:.2f} ({rate.sims or 'exact'})"
                        )
    return found


SIZES = (8, 20, 50, 100, 260, 500)
PER_TASK = (8, 20, 50, 100, 260)
AT_MARGIN = (299, 350, 400, 438, 500, 590, 736, 880, 1000, 1500)
F1_SIMS = {8: 2000, 20: 2000, 50: 1000, 100: 1000, 260: 500, 500: 500}


def _sizes(sizes: tuple[int, ...]) -> tuple[str, ...]:
    return tuple(f"{'n = ' if i == 0 else ''}{size:,}" for i, size in enumerate(sizes))


def _of(label: str, law: Law, sizes: tuple[int, ...], sims: int = 2000, named: str = "") -> Line:
    return Line(label, tuple(One(law, n, sims if n < 100 else sims // 2) for n in sizes), named)


NULL = Table(
    "No difference: false words / coverage",
    _sizes(SIZES),
    (FALSE, COVERAGE),
    (
        *(_of(f"right/wrong, {100 * d:g}% differ", right_wrong(d), SIZES) for d in (0.01, 0.05, 0.2)),
        *(_of(f"graded 0, .2 .. 1, {100 * d:g}% differ", six_steps(d), SIZES) for d in (0.01, 0.05, 0.2)),
        *(_of(f"4 a text, right/wrong, {100 * d:g}%", right_wrong(d, 0, 4, 0.7), SIZES) for d in (0.05, 0.2)),
        *(_of(f"4 a text, graded, {100 * d:g}%", six_steps(d, 4, 0.7), SIZES) for d in (0.05, 0.2)),
    ),
)

SKEWED = Table(
    "Mean difference 0, a few large losses and many small gains: false words / coverage",
    _sizes(SIZES),
    (FALSE, COVERAGE),
    (
        _of("lose 1: 1%, gain .2: 5%", lose_and_gain(0.01, 1, 0.2, 0.05), SIZES),
        _of("lose 1: 5%, gain .2: 25%", lose_and_gain(0.05, 1, 0.2, 0.25), SIZES),
        Line("F1: 10% lose .5 to 1, the rest gain", tuple(One(F1_SKEWED, n, F1_SIMS[n]) for n in SIZES)),
    ),
)

TOGETHER = Table(
    f"{TASKS} tasks without a difference: any false word / pooled false / pooled coverage",
    _sizes(PER_TASK),
    (Bound("any", "most", 0.05), Bound("pooled false", "most", 0.05), Bound("pooled coverage", "least", COVERED)),
    tuple(
        Line(f"right/wrong, {100 * d:g}% differ", tuple(Tasks(right_wrong(d), n) for n in PER_TASK))
        for d in (0.01, 0.05, 0.2)
    ),
)

MARGIN_TABLE = Table(
    "True difference of the margin, -1: falsely within / coverage",
    _sizes(AT_MARGIN),
    (WITHIN, COVERAGE),
    (
        _of("right/wrong, 1% differ, all losses", right_wrong(0.01, -MARGIN), AT_MARGIN),
        _of("right/wrong, 2%", right_wrong(0.02, -MARGIN), AT_MARGIN),
        _of("right/wrong, 5%", right_wrong(0.05, -MARGIN), AT_MARGIN),
    ),
)

GRADED_SIZES = (50, 100, 200, 300, 400, 500, 1000)
MARGIN_GRADED = Table(
    "The same where scores are graded or share a text: falsely within / coverage",
    _sizes(GRADED_SIZES),
    (WITHIN, COVERAGE),
    (
        *(
            _of(f"1% lose 1, {100 * moved:g}% move by {by:g}", lose_and_move(0.01, moved, by), GRADED_SIZES)
            for moved, by in ((0.02, 0.1), (0.02, 0.2), (0.05, 0.2))
        ),
        _of("true -2: 2% lose 1, 5% move by .1", lose_and_move(0.02, 0.05, 0.1), GRADED_SIZES),
        _of("2% lose .5", lose_and_gain(0.02, 0.5, 0.0, 0.0), GRADED_SIZES),
        _of("4 a text, whole texts lost", right_wrong(0.01, -MARGIN, 4, 1.0), GRADED_SIZES),
        _of("4 a text, correlation 0.7", right_wrong(0.01, -MARGIN, 4, 0.7), GRADED_SIZES),
        _of("the same, 2% differ", right_wrong(0.02, -MARGIN, 4, 0.7), GRADED_SIZES),
    ),
)

MARGIN_TOGETHER = Table(
    f"{TASKS} tasks at the margin: any task falsely within / pooled falsely within",
    ("n = 34", "299", "438"),
    (Bound("any", "most", 0.025), Bound("pooled false", "most", 0.025)),
    (
        Line(
            "right/wrong, 1% differ, all losses",
            tuple(Tasks(right_wrong(0.01, -MARGIN), n) for n in (34, 299, 438)),
        ),
    ),
)

DETECTS_SIZES = (20, 50, 100, 260)
DETECTS = Table(
    "Detects: points said / power there",
    _sizes(DETECTS_SIZES),
    (Bound("detects"), Bound("power", "least", 0.75)),
    tuple(
        Line(
            f"{100 * d:g}% differ" + (f", one of {tasks} tasks" if tasks > 1 else ""),
            tuple(Detects(d, n, tasks) for n in DETECTS_SIZES),
        )
        for tasks, d in ((1, 0.01), (1, 0.05), (1, 0.2), (1, 0.5), (TASKS, 0.05), (TASKS, 0.2))
    ),
)

NEEDS_LAWS = ((0.05, 50), (0.05, 260), (0.1, 260))  # share that differs, pairs of the pilot
NEEDS = Table(
    "Needs about n: n said / any verdict there / within the margin",
    tuple(f"{100 * d:g}% differ, pilot {pilot}" for d, pilot in NEEDS_LAWS),
    (Bound("needs", unit=1, digits=0), Bound("told", "least", 0.8), Bound("within")),
    tuple(
        Line(
            label + (f", one of {tasks} tasks" if tasks > 1 else ""),
            tuple(Needs(d, effect, pilot, tasks) for d, pilot in NEEDS_LAWS),
        )
        for tasks in (1, TASKS)
        for label, effect in (("no difference", 0.0), ("half the margin", -MARGIN / 2), ("the margin", -MARGIN))
    ),
)

POWER_SIZES = (260, 500)
POWER = Table(
    "Right/wrong: words / before / width in points / before / cost of the change in %",
    _sizes(POWER_SIZES),
    (
        Bound("told"), Bound("told before"), Bound("width", digits=2), Bound("width before", digits=2),
        Bound("cost", "most", 0.1),
    ),
    tuple(
        Line(
            f"{100 * d:g}% differ, " + (f"true {100 * e:+g}" if e else "no difference"),
            tuple(Against(d, e, n) for n in POWER_SIZES),
        )
        for d, e in dict.fromkeys((d, e) for d, e, _ in BEFORE)
    ),
)  # fmt: skip

SPREAD = Table(
    "Pooled row of 13 tasks of 20 that lose nothing, all or half: coverage / width",
    ("13 x 20",),
    (COVERAGE, Bound("width")),
    (Line("right/wrong", (Spread(),)),),
)

SKEWED_LOGS = "the mean is ruled by values too rare to be seen"
LOGS = Table(
    "Log-probabilities: coverage of the t interval",
    _sizes(SIZES),
    (COVERAGE,),
    (
        *(
            Line(name, tuple(LogProbs(LogLaw(name), n) for n in SIZES), named)
            for name, named in {
                "normal": "",
                "t, 3 df": "",
                "- exponential": SKEWED_LOGS,
                "lognormal, s = 1": SKEWED_LOGS,
                "lognormal, s = 1.5": SKEWED_LOGS,
                "5% fall by 2 nats, rest +- .01": SKEWED_LOGS,
                "50 nats with probability 1/200": SKEWED_LOGS,
            }.items()
        ),
        *(
            Line(f"4 a text, 0.7, {name}", tuple(LogProbs(LogLaw(name, 4), n) for n in SIZES))
            for name in ("normal", "t, 3 df")
        ),
        Line(
            "one text holds a third, 0.7",
            (None, *(LogProbs(LogLaw("normal", 1, True), n) for n in (20, 50, 100, 260)), None),
        ),
    ),
)

LOG_POWER = Table(
    "All samples fall by 0.1, one rises by 50 nats: told to be lower",
    _sizes((20, 100, 260, 500)),
    (Bound("told"),),
    (Line("told", tuple(LogPower(n) for n in (20, 100, 260, 500))),),
)

UNTIL = Table(
    "`--until`, a look every 16 pairs: false / undecided / pairs",
    ("no more than 512", "no more than 2,000"),
    (FALSE, Bound("undecided", digits=0), Bound("used", unit=1, digits=0)),
    tuple(
        Line(
            f"{100 * margin:g}pt@95%: {100 * down:g}% lose, {100 * up:g}% gain",
            tuple(Stops(down, up, margin, cap) for cap in (512, 2000)),
        )
        for margin, down, up in (
            (0.01, 0.005, 0.005), (0.01, 0.025, 0.025), (0.01, 0.1, 0.1),
            (0.01, 0.01, 0.0), (0.01, 0.015, 0.005), (0.01, 0.03, 0.02), (0.01, 0.105, 0.095),
            (0.01, 0.02, 0.0), (0.01, 0.035, 0.015), (0.01, 0.05, 0.0), (0.01, 0.075, 0.025),
            (0.05, 0.05, 0.05), (0.05, 0.05, 0.0), (0.05, 0.125, 0.075),
        )
    ),
)  # fmt: skip

UNTIL_TEXTS = Table(
    "`--until 1pt@95%` where pairs share a text, no more than 480: false words",
    ("5% differ", "20%", "50%", "margin, 960 pairs, all losses"),
    (FALSE,),
    tuple(
        Line(
            label,
            (
                *(StopsTexts(right_wrong(d, 0, each, alike), 480) for d in (0.05, 0.2, 0.5)),
                StopsTexts(right_wrong(0.01, -MARGIN, each, alike), 960),
            ),
        )
        for label, each, alike in (
            ("independent", 1, 0.0), ("4 a text, 0.7", 4, 0.7), ("4 a text, 1.0", 4, 1.0), ("10 a text, 0.7", 10, 0.7),
        )
    ),
)  # fmt: skip

STOPPED = Table(
    "Pooled rows of 13 tasks that `--until 5pt@95%` ended, no difference: false words",
    ("5% differ", "20%"),
    (FALSE,),
    (Line("at most 256 pairs a task", (StoppedPooled(0.05), StoppedPooled(0.2))),),
)

SCORE_SIZES = (5, 20, 100, 500)
SCORES = Table(
    "Intervals of scores: coverage",
    _sizes(SCORE_SIZES),
    (COVERAGE,),
    tuple(
        Line(label, tuple(Score(law, n) for n in SCORE_SIZES if n >= least or n == n), named)
        for label, law, least, named in (
            *((f"right/wrong, {p:g}", scores((1.0, p), (0.0, 1 - p)), 0, "") for p in (0.5, 0.9, 0.95, 0.99)),
            ("graded, uniform six", scores(*((i / 5, 1 / 6) for i in range(6))), 0, ""),
            ("70% at 1, rest .2 to .8", scores((1.0, 0.7), *((i / 5, 0.075) for i in range(1, 5))), 0, ""),
            ("90% 1, 10% .5", scores((1.0, 0.9), (0.5, 0.1)), 0, ""),
            ("95% 1, 5% .2", scores((1.0, 0.95), (0.2, 0.05)), 0, ""),
            ("97% 1, 3% .8", scores((1.0, 0.97), (0.8, 0.03)), 0, ""),
            ("98% 1, 1% .5, 1% 0", scores((1.0, 0.98), (0.5, 0.01), (0.0, 0.01)), 0, ""),
            ("90% 0, 5% .2, 5% 1", scores((0.0, 0.9), (0.2, 0.05), (1.0, 0.05)), 0, ""),
            ("beta(.3, 3)", BETA, 0, ""),
            ("4 a text, 0.7, right/wrong, .5", scores((1.0, 0.5), (0.0, 0.5), each=4), 20, ""),
            ("4 a text, 0.7, right/wrong, .9", scores((1.0, 0.9), (0.0, 0.1), each=4), 20, ""),
            ("4 a text, 0.7, F1", F1_TEXTS, 20, ""),
        )
    ),
)

MEANS = Table(
    f"Mean over {TASKS} tasks of n answers: coverage",
    _sizes((5, 20, 100)),
    (COVERAGE,),
    tuple(
        Line(label, tuple(Averages(shares, n, 2000) for n in (5, 20, 100)))
        for label, shares in (
            ("all .5", (0.5,) * TASKS),
            ("all .9", (0.9,) * TASKS),
            ("all .99", (0.99,) * TASKS),
            ("mixed, 0 to 1", tuple(i / (TASKS - 1) for i in range(TASKS))),
        )
    ),
)

FLOORS = Table(
    "Arm and placebo differ from the baseline by noise alone: called real / called so without a placebo",
    _sizes((260, 520)),
    (Bound("real", "most", 0.05), Bound("alone")),
    (
        *(
            Line(f"{100 * 2 * s:g}% noise either way", tuple(Floor(2 * s, 0.0, n, 2000) for n in (260, 520)))
            for s in (0.05, 0.2, 0.5)
        ),
        *(
            Line(f"both lose {100 * lost:g}% by chance", tuple(Floor(0.0, lost, n, 2000) for n in (260, 520)))
            for lost in (0.02, 0.05, 0.1)
        ),
        *(
            Line(f"log-probabilities shifted by {shift:g} sd", tuple(LogFloor(shift, n) for n in (260, 520)))
            for shift in (0.0, 0.1, 0.3, 1.0)
        ),
    ),
)

TABLES = (
    NULL, SKEWED, TOGETHER, SPREAD, MARGIN_TABLE, MARGIN_GRADED, MARGIN_TOGETHER, POWER, DETECTS, NEEDS, LOGS,
    LOG_POWER, UNTIL, UNTIL_TEXTS, STOPPED, SCORES, MEANS, FLOORS,
)  # fmt: skip
