"""Modules under their paths of version 0.1, for whoever imported one."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

import anchoreval

TABLE = dict(
    line.split(maxsplit=1) for line in (Path(anchoreval.__file__).parent / "moved.txt").read_text("utf-8").splitlines()
)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_every_old_path_leads_to_modules_that_are_there() -> None:
    for old, homes in TABLE.items():
        for home in homes.split():
            assert importlib.util.find_spec(f"anchoreval.{home}"), f"{old} -> {home}"
    from anchoreval.leaderboard.cells import Mean  # type: ignore[import-not-found]
    from anchoreval.results import load_run  # type: ignore[import-not-found]

    from anchoreval.records.run import load_run as now
    from anchoreval.reports.board import cells

    assert load_run is now and Mean is cells.Mean


def test_an_old_path_says_what_the_module_is_called_now_and_sets_its_names(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.warns(DeprecationWarning, match=r"anchoreval\.dealing is now anchoreval\.runs\.dealing"):
        old = importlib.import_module("anchoreval.dealing")
    from anchoreval.runs import dealing

    name = next(name for name, value in vars(dealing).items() if getattr(value, "__module__", "") == dealing.__name__)
    monkeypatch.setattr(dealing, name, getattr(dealing, name))  # is put back
    setattr(old, name, 1)
    assert getattr(dealing, name) == 1


def test_a_path_that_never_was_is_not_found() -> None:
    with pytest.raises(ModuleNotFoundError, match="nothing"):
        importlib.import_module("anchoreval.nothing")
