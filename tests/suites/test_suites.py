"""The suites of the package: a folder each, names that no two share, averages over tasks that there are."""

from __future__ import annotations

from pathlib import Path

import pytest

from anchoreval import suites as package
from anchoreval.cards import load_tasks
from anchoreval.reports.board.definition import COLUMNS
from anchoreval.suites import FOLDERS, averages, suites
from anchoreval.suites.ruler.scoring import ELEVEN, THIRTEEN


def test_every_folder_of_suites_is_a_suite() -> None:
    folder = Path(str(package.__file__)).parent
    assert {path.parent.name for path in folder.glob("*/__init__.py")} == set(FOLDERS) == set(suites())


@pytest.mark.parametrize("part", ["generators", "scorers", "settings", "averages"])
def test_no_two_suites_share_a_name(part: str) -> None:
    names = [name for suite in suites().values() for name in getattr(suite, part)]
    assert len(names) == len(set(names))


def test_averages_name_tasks_of_cards_and_no_column_of_boards() -> None:
    tasks = load_tasks()[0]
    for average in averages().values():
        assert average.tasks.keys() <= tasks.keys() and min(average.tasks.values()) > 0
    assert not averages().keys() & COLUMNS.keys()


def test_rulers_averages_are_over_the_tasks_of_the_papers_whatever_the_card_holds() -> None:
    sets = load_tasks()[1]
    assert len(THIRTEEN) == 13 and set(THIRTEEN) <= set(sets["ruler"])
    assert set(ELEVEN) == set(sets["ruler-11-wang"])
    assert set(averages()["ruler_13"].tasks) == set(THIRTEEN)
