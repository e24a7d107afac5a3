"""Runs -> a board: one CSV and one self-contained page. A board of runs has the default definition, `of_runs`.

view        one run that was read whole, as a board shows it, and board.csv of runs
definition  strict YAML: what a board shows, with the numbers that papers printed
build       what a board keeps of each run; groups, maps and rows
cells       means, paired differences, maps, and the columns that a definition may name
models      differences between models, and rows over the seeds of a trained variant
page        the page (imports jinja2)
declared    boards that a definition in YAML declares: run folders, read by way of `store`, and <name>.csv
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from anchoreval.files import write_whole
from anchoreval.records.run import Run
from anchoreval.reports.board.view import RunView, csv_text, view
from anchoreval.reports.page import TABLES, TITLES, require_page
from anchoreval.reports.terminal import run_table

if TYPE_CHECKING:
    from anchoreval.reports.board.definition import Declared

__all__ = ["Run", "RunView", "board_csv", "board_html", "of_runs", "run_table", "view", "write_board"]

WIDE = 5  # lengths
MOST_ACROSS = 20  # models that a board of runs compares with the first


def write_board(runs: Sequence[Run], folder: Path, checkpoints: bool = False) -> tuple[Path, Path]:
    """Write board.csv and board.html, each whole or not at all, and return their paths.

    With `checkpoints`, the scores of the checkpoints of one training are averaged in a row.

    The same runs give the same bytes. Run folders are named relative to `folder`. Raise RunError if a file cannot be
    written, or if a file of that name exists that is not ours.
    """
    views = [view(run, folder) for run in runs]
    require_page(folder / "board.csv", *TABLES)
    require_page(folder / "board.html", *TITLES)
    return (
        write_whole(folder / "board.csv", [csv_text(views)]),
        write_whole(folder / "board.html", _html(views, checkpoints)),
    )


def board_csv(runs: Sequence[Run], folder: Path = Path()) -> str:
    """Return the text of board.csv."""
    return csv_text([view(run, folder) for run in runs])


def board_html(runs: Sequence[Run], folder: Path = Path()) -> str:
    """Return the text of board.html; links to run folders are relative to `folder`."""
    return "".join(_html([view(run, folder) for run in runs]))


def _html(views: Sequence[RunView], checkpoints: bool = False) -> Iterator[str]:
    from anchoreval.reports.board.build import build, gathered_view
    from anchoreval.reports.board.page import page

    names = Counter(view.name for view in views)
    labels = [view.name if names[view.name] == 1 else view.path for view in views] if len(views) > 1 else [""]
    return page(build(of_runs(views), map(gathered_view, views, labels), checkpoints=checkpoints))


def of_runs(views: Sequence[Run | RunView]) -> Declared:
    """Return the definition of a board of runs: all that they hold, each against its own first arm.

    Their tasks are one suite, so that its pooled difference is that of `compare`. Models are compared with the first,
    or with its variant if several seeds of it are there.
    """
    from anchoreval.reports.board.definition import ACROSS, BY_LENGTH, Declared, Definition

    tasks = tuple(dict.fromkeys(task for view in views for task in view.tasks))
    suites = {task.partition("/")[0] for task in tasks}
    name = suites.pop() if len(suites) == 1 else "all tasks"
    lengths = sorted({length for view in views for length in view.lengths})
    firsts = {view.arms[0] for view in views if view.arms}

    models, base = {(view.model, str(view.header.model.get("sha256"))) for view in views}, None
    if 1 < len(models) <= MOST_ACROSS:
        trained = [card for view in views if (card := view.header.trained)]
        first = views[0].header.trained
        seeds = {card.seed for card in trained if first and card.name == first.name}
        base = first.name if first and len(seeds) > 1 else views[0].model

    over_arms = [] if base and all(len(view.arms) < 2 for view in views) else ["difference", "verdict", "p_holm"]
    means = ["mean"] if len(lengths) > 1 else []
    wide = len(lengths) > WIDE  # the verdict then stands before the lengths, where it is in view
    columns = [*means, *over_arms, BY_LENGTH] if wide else [BY_LENGTH, *means, *over_arms]
    definition = Definition.model_construct(
        title=views[0].model if len(views) == 1 else f"{len(views)} runs",
        suites=[name],
        lengths=lengths,
        arms=list(dict.fromkeys(arm for view in views for arm in view.arms)),
        baseline=firsts.pop() if len(firsts) == 1 else "",
        baseline_model=base,
        columns=[*columns, "logprob", "samples", *(ACROSS if base else ())],
    )
    return Declared("board", definition, {name: tasks}, (), {})
