"""A part of the simulation in sentences: no word, interval or number breaks a promise of docs/statistics.md.

`make test-stats` measures all of it; here stand the parts that take seconds.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from simulation import laws, promises
from simulation.page import NOTHING, SECTIONS, figures_of, read, rendered
from simulation.promises import TABLES, Line, Table, broken
from simulation.questions import (
    MARGIN,
    Drawn,
    Floor,
    LogFloor,
    One,
    Question,
    Rate,
    Score,
    StopsTexts,
    measured,
    pooled_row,
    row_of,
)

from anchoreval import stats
from anchoreval.schema import Record

PAGE = Path(__file__).parents[2] / "docs" / "statistics.md"

once = cache(measured)  # what one test measures, another compares with the page


def small(n: int) -> Callable[[Question], bool]:
    return lambda question: getattr(question, "n", 0) <= n


def exact_up_to(n: int, sampled: int) -> Callable[[Question], bool]:
    """Whole distributions up to n pairs, and what is sampled up to so many."""
    return lambda question: (
        isinstance(question, One | Score) and question.n <= (n if question.law.enumerable else sampled)
    )


PART: tuple[tuple[Table, Callable[[Question], bool]], ...] = (
    (promises.NULL, exact_up_to(260, 8)),
    (promises.SKEWED, exact_up_to(50, 8)),
    (promises.TOGETHER, small(20)),
    (promises.SPREAD, small(0)),
    (promises.MARGIN_TABLE, exact_up_to(500, 0)),
    (promises.MARGIN_GRADED, small(50)),
    (promises.POWER, small(260)),
    (promises.LOGS, small(20)),
    (promises.UNTIL, lambda question: True),
    (
        promises.UNTIL_TEXTS,
        lambda question: isinstance(question, StopsTexts) and question.law.each == 10 and len(question.law.values) == 2,
    ),
    (promises.SCORES, exact_up_to(100, 5)),
    (promises.MEANS, small(20)),
    (promises.FLOORS, lambda question: question in (Floor(0.0, 0.05, 260, 2000), LogFloor(0.3, 260))),
)


def asked(table: Table) -> list[Question]:
    (wanted,) = (wants for each, wants in PART if each is table)
    return [question for question in table.questions() if wanted(question)]


def unkept(*tables: Table) -> list[str]:
    """The figures of these tables that break their promise."""
    found = {question: once(question) for table in tables for question in asked(table)}
    assert all(any(question in found for question in table.questions()) for table in tables)
    return broken(found)


def test_words_on_identical_laws_are_false_in_at_most_5_of_100_and_intervals_hold_the_truth() -> None:
    assert unkept(promises.NULL) == []


def test_a_mean_of_0_made_of_few_large_losses_and_many_small_gains_is_no_gain() -> None:
    assert unkept(promises.SKEWED) == []


def test_any_of_13_tasks_has_a_false_word_in_at_most_5_of_100() -> None:
    assert unkept(promises.TOGETHER) == []


def test_a_difference_of_the_margin_is_said_to_be_within_it_in_at_most_2_and_a_half_of_100() -> None:
    assert unkept(promises.MARGIN_TABLE, promises.MARGIN_GRADED) == []


def test_tasks_that_differ_in_effect_are_pooled_task_by_task() -> None:
    assert unkept(promises.SPREAD) == []


def test_words_and_widths_of_independent_answers_cost_at_most_a_tenth_over_mcnemar_and_adjusted_wald() -> None:
    assert unkept(promises.POWER) == []


def test_log_probabilities_that_share_texts_are_covered() -> None:
    assert unkept(promises.LOGS) == []


def test_a_run_that_stops_by_its_rule_is_wrong_in_at_most_5_of_100_whatever_pairs_share() -> None:
    assert unkept(promises.UNTIL, promises.UNTIL_TEXTS) == []


def test_intervals_of_scores_and_of_their_means_over_tasks_hold_the_truth() -> None:
    assert unkept(promises.SCORES, promises.MEANS) == []


def test_noise_that_a_placebo_shares_is_called_real_in_at_most_5_of_100() -> None:
    assert unkept(promises.FLOORS) == []


def near(said: str, again: str, rates: Iterable[Rate]) -> bool:
    """Whether two printed figures are those of one law, each measured with its Monte Carlo error."""
    for one, other, rate in zip(said.split(" / "), again.split(" / "), rates, strict=True):
        if NOTHING in (one, other):
            if one != other:
                return False
            continue
        a, b = float(one), float(other)
        share = min(max((a + b) / 200, 0.01), 0.99)
        slack = 3 * 2**0.5 * 100 * rate.error(share)
        if abs(a - b) > slack + max(0.25, 0.1 * abs(a)) and a <= 100:
            return False
    return True


def test_the_page_is_what_the_command_writes() -> None:
    """Words and tables exactly; of the figures those that were measured above, within their Monte Carlo errors."""
    text = PAGE.read_text(encoding="utf-8")
    page = read(text)
    assert rendered(SECTIONS, page) == text
    everything = {(table.title, line.label, column): (table, question)
                  for table in TABLES for line in table.lines
                  for column, question in zip(table.columns, line.questions, strict=True) if question}  # fmt: skip
    assert set(page) == set(everything)
    found = {question: once(question) for table, _ in PART for question in asked(table)}
    far = {
        place: (page[place], said)
        for place, said in figures_of(found).items()
        for table, question in [everything[place]]
        if not near(page[place], said, [found[question].get(b.figure, Rate(0, 0)) for b in table.bounds])
    }
    assert not far


def test_the_page_shows_every_table_and_breaks_no_promise_of_its_own() -> None:
    assert [table for section in SECTIONS for table in section.tables] == list(TABLES)
    figures = read(PAGE.read_text(encoding="utf-8"))
    for table in TABLES:
        for line in table.lines:
            for column in table.columns:
                said = figures.get((table.title, line.label, column))
                for bound, figure in zip(table.bounds, said.split(" / "), strict=True) if said else ():
                    if figure != NOTHING and not line.named:
                        assert bound.kept(Rate(float(figure) * bound.unit, 100)), (
                            table.title,
                            line.label,
                            column,
                            said,
                        )


def test_a_broken_promise_is_named_with_its_law_and_figures() -> None:
    table = promises.NULL
    question = table.lines[0].questions[0]
    assert question is not None
    found = broken({question: {"false": Rate(0.2, 1000), "coverage": Rate(0.95, 1000)}})
    assert len(found) == 1
    assert "right/wrong, 1% differ | n = 8 | false most 5 | 20.00" in found[0]


def record(task: int, index: int, arm: str, score: float, text: int | None) -> Record:
    return Record(
        key=f"{arm}{task}-{index}", sample_id=f"suite/task{task}@512#{index}", task=f"suite/task{task}", length=512,
        index=index, arm=arm, prompt_sha256="same", prompt_tokens=1, references=(str(index),),
        facts={} if text is None else {"source": text}, output="1", output_tokens=1, finish="stop", score=score,
        why=None, reference_logprob=None, reference_tokens=0, seconds=0.0,
    )  # fmt: skip


@pytest.mark.parametrize("each", [1, 4])
def test_the_simulation_asks_what_compare_asks(each: int) -> None:
    """Rows from records on disk are those that the laws' pairs give, whatever the order of the samples."""
    law, rng = laws.right_wrong(0.3, -0.2, each, 0.7 if each > 1 else 0.0), np.random.default_rng(1)
    tasks = [next(law.some(40, 1, rng)) for _ in range(3)]
    order = [(i, j) for i in range(3) for j in range(40)]
    random.Random(1).shuffle(order)
    sides = {}
    for arm, of in (("arm", 0), ("base", 1)):
        made = [record(i, j, arm, tasks[i].pairs[j][of], tasks[i].texts[j] if each > 1 else None) for i, j in order]
        sides[stats.Subject(arm)] = stats.by_arm(made)[arm]
    (found,) = stats.Compared(sides, MARGIN).against(stats.Subject("base"))
    one = {row.difference.task: row.difference for row in found.cells}
    for i, task in enumerate(tasks):
        expected, got = row_of(task).difference, one[f"suite/task{i}"]
        assert (got.low, got.high, got.p) == pytest.approx((expected.low, expected.high, expected.p), abs=1e-9)
    pooled = pooled_row([Drawn(1.0, task.pairs, task.texts) for task in tasks]).difference
    got = found.pooled.difference
    assert (got.low, got.high, got.p) == pytest.approx((pooled.low, pooled.high, pooled.p), abs=1e-9)


def test_the_pairs_of_a_text_have_the_correlation_that_the_law_names() -> None:
    law = laws.right_wrong(0.5, 0.0, 4, 0.7)
    steps = np.array([arm - base for arm, base in law.values])
    drawn = steps[law.sequences(4, 20_000, np.random.default_rng(2))]
    assert np.corrcoef(drawn[:, 0], drawn[:, 3])[0, 1] == pytest.approx(0.7, abs=0.03)
    assert drawn.mean() == pytest.approx(law.mean, abs=0.02)


def test_all_data_sets_of_a_size_have_the_chances_of_the_law() -> None:
    law = laws.right_wrong(0.05, -0.01)
    found = list(law.all(100))
    assert sum(one.weight for one in found) == pytest.approx(1, abs=1e-5)
    assert sum(one.weight * sum(one.differences) / 100 for one in found) == pytest.approx(-0.01, abs=1e-5)


def test_a_line_that_no_method_can_hold_says_why_on_the_page() -> None:
    named = [line for table in TABLES for line in table.lines if isinstance(line, Line) and line.named]
    text = PAGE.read_text(encoding="utf-8")
    assert named
    assert all(line.named in text.replace("\n", " ") for line in named)
