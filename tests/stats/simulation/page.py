"""docs/statistics.md: each promise in words, then what was promised and what was measured; written and read back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from simulation.promises import (
    DETECTS,
    FLOORS,
    LOG_POWER,
    LOGS,
    MARGIN_GRADED,
    MARGIN_TABLE,
    MARGIN_TOGETHER,
    MEANS,
    NEEDS,
    NULL,
    POWER,
    SCORES,
    SKEWED,
    SKEWED_LOGS,
    SPREAD,
    STOPPED,
    TABLES,
    TOGETHER,
    UNTIL,
    UNTIL_TEXTS,
    Bound,
    Table,
)
from simulation.questions import Question, Rates

NOTHING = "–"
Figures = Mapping[tuple[str, str, str], str]  # (table, line, column) -> what the page says there


class Section(NamedTuple):
    """A heading, what it promises in words, and the tables that show it."""

    heading: str
    words: str
    tables: tuple[Table, ...] = ()


def figures_of(measured: Mapping[Question, Rates]) -> dict[tuple[str, str, str], str]:
    """What the page says of questions that were measured."""
    found = {}
    for table in TABLES:
        for line in table.lines:
            for column, question in zip(table.columns, line.questions, strict=True):
                if question is not None and question in measured:
                    found[table.title, line.label, column] = said(table.bounds, measured[question])
    return found


def said(bounds: tuple[Bound, ...], rates: Rates) -> str:
    """`2.5 / 96.9`: a figure for each bound; a dash where there is none."""
    return " / ".join(bound.said(rates[bound.figure]) if bound.figure in rates else NOTHING for bound in bounds)


def rendered(sections: tuple[Section, ...], figures: Figures) -> str:
    """The page; a dash where `figures` say nothing."""
    parts = []
    for section in sections:
        parts += [section.heading, "", section.words.strip(), ""]
        for table in section.tables:
            parts += [*_table(table, figures), ""]
    return "\n".join(parts).rstrip() + "\n"


def _table(table: Table, figures: Figures) -> list[str]:
    promised = " / ".join(bound.promised for bound in table.bounds)
    lines = [f"| {table.title} (promised: {promised}) | " + " | ".join(table.columns) + " |"]
    lines.append("|---|" + "---|" * len(table.columns))
    for line in table.lines:
        cells = [figures.get((table.title, line.label, column), NOTHING) for column in table.columns]
        lines.append(f"| {line.label}{' (*)' if line.named else ''} | " + " | ".join(cells) + " |")
    return lines


def read(text: str) -> dict[tuple[str, str, str], str]:
    """The figures of a page that `rendered` wrote."""
    found: dict[tuple[str, str, str], str] = {}
    title, columns = "", [""]
    for line in text.splitlines():
        if not line.startswith("|"):
            continue
        head, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        if " (promised: " in head:
            title, columns = head.partition(" (promised: ")[0], cells
        elif set(head) - {"-"}:
            label = head.removesuffix(" (*)")
            found |= {
                (title, label, column): cell for column, cell in zip(columns, cells, strict=True) if cell != NOTHING
            }
    return found


SECTIONS = (
    Section(
        "# Statistics: what is promised, and what was measured",
        """
`make test-stats` makes this page: it draws data whose truth is known, asks the functions that `compare`, boards and
`run --until` ask, and counts. Figures are in % of data sets unless they are named otherwise. Right/wrong pairs that
share nothing are summed over every possible data set; the rest are 100 to 2,000 drawn ones with fixed seeds, and a
promise of "at most 5" is kept if the rate is no more than three Monte Carlo errors above it (1.5 points at 2,000 data
sets). The command fails otherwise; a part of it runs with every `make test`.

## Words

Two arms see the same samples, so their scores are compared pair by pair. Values lie in 0..1, the margin is 1 point.

- **worse, better**: p < 0.05, the interval leaves 0 out, and there is more than the noise floor. If the arms do not
  differ, such a word is said in at most 5 of 100 comparisons: of any task or length together, since p is then Holm's.
  Every arm against its baseline is a question of its own, and so is the pooled row.
- **equivalent within 1**: two one-sided exact tests at 2.5% and the interval lie within the margin, after Holm's
  correction over the tasks: of all tasks together whose true difference is the margin or more, at most 2.5 of 100.
- **identical**: no pair differs. What that shows is the width of the interval, and the words say whether it is
  enough.
- **cannot tell**: neither. "needs about n" is how many samples would tell, **detects** the smallest true difference
  that so many pairs show about four times in five; both count Holm's correction and are approximations.
- **p** says how often arms that are exchangeable, so that neither is the better on any sample, would differ so much:
  McNemar's mid-p for right/wrong answers that share nothing and of which no more than two thirds differ (Fagerland,
  Lydersen & Laake 2013), else the share of ways to sign the sources' differences. It says nothing of arms that lose
  much on few samples and gain a little on many, where only the interval does; so a word asks for both.
- **interval**: 95%, and it asks nothing of the law of values: Clopper & Pearson 1934 for right/wrong scores, Gaffke
  2005 for graded ones and for sources. What was not seen may be as large as values can be, so that few samples give
  wide ends. Right/wrong differences that share nothing have the adjusted Wald interval (Bonett & Price 2012) with t.
- **sources**: samples that ask of one text, needle or story are not independent, and count as one wherever anything
  is counted. Where some hold more samples than others, what was not seen is what the largest can hide: as much as
  under the worst chances of each to be lost with which none is seen to be. Rows over several tasks are of these very
  tasks: what differs between tasks is no noise.
- **log-probabilities** have no bound, so that no interval of their mean holds for every law; t with the jackknife
  over sources does where they are not too skewed. One sample that moves by 50 nats drowns a mean: a sign test beside
  it then says "cannot tell (most are lower)".
- **seeds**: of variants trained with several seeds the seed is the unit, samples averaged inside it, with t over seeds,
  because a claim on a way of training is on further trainings (docs/training.md). **detects** is then exact for normal
  differences: the noncentral t, 3.3 standard deviations for three seeds and 1.4 for six.
""",
    ),
    Section("## No difference", "Any false word is counted.", (NULL, SKEWED, TOGETHER, SPREAD)),
    Section(
        "## A true difference of the margin",
        'Here "equivalent" is false, and so are "identical" and "worse" where they say "within 1".',
        (MARGIN_TABLE, MARGIN_GRADED, MARGIN_TOGETHER),
    ),
    Section(
        "## What is found",
        """
Power and width of right/wrong pairs that share nothing, beside what McNemar's exact test and the adjusted Wald
interval alone give. The cost is the larger of the share of power that is lost and the share by which intervals are
wider.
""",
        (POWER, DETECTS, NEEDS),
    ),
    Section(
        "## Log-probabilities",
        "(*) Measured, and held to no promise: under skewed laws t covers less, and no method holds where "
        f"{SKEWED_LOGS} (Bahadur & Savage 1956).",
        (LOGS, LOG_POWER),
    ),
    Section(
        "## `run --until`",
        """
Each verdict by itself is ever false with a probability of at most 5%, whatever the truth is and however often it was
looked at; the rule bets once a source. It is no promise for the whole table. Differences are in points.
""",
        (UNTIL, UNTIL_TEXTS, STOPPED),
    ),
    Section(
        "## Scores and their means",
        "Near the ceiling intervals do not add up, so a mean over tasks has pseudo-scores added (Price & Bonett 2004).",
        (SCORES, MEANS),
    ),
    Section(
        "## The noise floor",
        """
A placebo is the same arm, computed in other chunks. An effect is real if the arm differs from its baseline and, the
same way, from the placebo (Berger 1982). Here arm and placebo are drawn alike, so that no effect is.
""",
        (FLOORS,),
    ),
)
