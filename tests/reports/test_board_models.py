"""Boards of several models: differences between them, how they were trained, rows over seeds and over checkpoints."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from command_line import cli
from scipy import stats
from test_compare_runs import made, trained
from test_leaderboard import declared, saved

from anchoreval import compare
from anchoreval.errors import CardError
from anchoreval.records.run import Run
from anchoreval.reports.board import board_csv, of_runs, write_board
from anchoreval.reports.board import declared as declared_boards
from anchoreval.reports.board.build import Board, Line, build, gathered_view
from anchoreval.reports.board.cells import Value
from anchoreval.reports.board.declared import lines_of, load_definition
from anchoreval.reports.board.view import COLUMNS, view
from anchoreval.reports.table import TRAINED

LOST = {0: 0.10, 1: 0.20, 2: 0.12}


def board_of(runs: Sequence[Run], **changes: Any) -> Board:
    views = [view(run, Path()) for run in runs]
    return build(of_runs(views), (gathered_view(each, each.name) for each in views), **changes)


def values_of(board: Board, line: Line) -> dict[str, Value]:
    return dict(zip(board.heads, line.values, strict=True))


def shown(board: Board, line: Line) -> dict[str, str]:
    return {head: value.text for head, value in values_of(board, line).items()}


def family(lost: dict[int, float] = LOST) -> list[Run]:
    return [trained("full", seed, 0.0) for seed in lost] + [trained("anchor", seed, lost[seed]) for seed in lost]


def of_step(run: Run, number: int) -> Run:
    """The run of another checkpoint: a run and a model of their own."""
    model = dict(run.header.model) | {"name": f"checkpoint-{number}", "sha256": str(number)}
    return replace(run, header=run.header | {"run": f"r{number}", "model": model})


def test_two_models_have_the_difference_and_the_verdict_that_compare_gives(tmp_path: Path) -> None:
    runs = [made({"fp32": 0.0, "bf16": 0.1}, name="one"), made({"fp32": 0.02, "bf16": 0.3}, name="two")]
    board = board_of(runs)
    rows = {(line.model, line.arm): shown(board, line) for line in board.lines}
    for contrast in compare(runs):
        arm = contrast.arm.partition(" ")[0]
        row, pooled = rows["two", arm], contrast.pooled
        assert row["minus one"] == f"{100 * (pooled.difference.difference or 0):+.1f}"
        assert row["verdict over models"] == pooled.word
        (value,) = [
            values_of(board, line)["minus one"] for line in board.lines if (line.model, line.arm) == ("two", arm)
        ]
        low, high = pooled.difference.low or 0, pooled.difference.high or 0
        assert (value.low, value.high) == (pytest.approx(100 * low), pytest.approx(100 * high))
    assert {rows["one", arm]["verdict over models"] for arm in ("fp32", "bf16")} == {"\u2013"}
    assert not {"trained as", "seed"} & set(board.heads)


def test_a_declared_board_compares_models_with_the_one_that_it_names(tmp_path: Path) -> None:
    paths = [saved(replace(run, path=tmp_path / run.name)) for run in family()[:4]]
    asked = {"suites": ["ruler"], "baseline": "fp32", "columns": ["by_length", "model_difference", "model_verdict"]}
    mine = declared(tmp_path, **asked, baseline_model="full-0")
    done = cli("board", *map(str, paths), "--definition", str(mine), "--output", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    with (tmp_path / "out" / "mine.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if (row["kind"], row["column"]) == ("row", "minus full-0")]
    (contrast,) = compare([paths[0], paths[3]])
    values = {row["model"]: row["value"] for row in rows}
    assert float(values["anchor-0"]) == pytest.approx(100 * (contrast.pooled.difference.difference or 0), abs=1e-3)
    other = declared(tmp_path, **asked, baseline_model="intra-doc-fp32")
    assert cli("board", *map(str, paths), "--definition", str(other), "--output", str(tmp_path / "b")).returncode == 0
    assert "baseline model intra-doc-fp32" in (tmp_path / "b" / "mine.html").read_text()
    with pytest.raises(CardError, match="baseline_model: model_verdict needs the model to compare with"):
        load_definition(declared(tmp_path, **asked | {"columns": ["model_verdict"]}))


def test_rows_say_how_a_model_was_trained_and_others_say_nothing(tmp_path: Path) -> None:
    board = board_of([trained("anchor", 3, 0.1, step=8), made({"fp32": 0.0}, name="base")])
    assert board.heads[:4] == ("trained as", "trained RoPE", "seed", "steps")
    rows = {line.model: [value.text for value in line.values[:4]] for line in board.lines}
    assert rows["anchor-3"] == ["anchor", "fp32", "3", "8 of 16"]
    assert set(rows["base"]) == {"\u2013"}
    csv_path, html = write_board([trained("anchor", 3, 0.1)], tmp_path)
    assert "trained RoPE" in html.read_text() and csv_path.is_file()


def test_both_tables_of_boards_say_how_a_model_was_trained(tmp_path: Path) -> None:
    runs = [*family(), trained("anchor", 0, 0.1, step=8), made({"fp32": 0.0}, name="base")]
    of_runs = list(csv.DictReader(board_csv(runs).splitlines()))
    declared = list(csv.DictReader("".join(lines_of(board_of(runs))).splitlines()))
    for rows, name in (of_runs, "run"), (declared, "model"):
        told = {row[name]: [row[column] for column in TRAINED] for row in rows if row["kind"] == "cell"}
        assert told["anchor-1"] == ["anchor", "fp32", "1", "16"] and told["base"] == [""] * 4
    assert ["anchor", "fp32", "0", "8 of 16"] in [[row[column] for column in TRAINED] for row in of_runs]
    over = {tuple(row[column] for column in TRAINED) for row in declared if "mean of 3 seeds" in row["model"]}
    assert ("anchor", "fp32", "0-2", "16") in over


@pytest.mark.parametrize("table", [COLUMNS, declared_boards.COLUMNS], ids=["board", "declared"])
def test_every_column_of_a_table_is_explained(table: tuple[str, ...]) -> None:
    text = (Path(__file__).parents[2] / "docs" / "tables.md").read_text()
    named = " ".join(re.findall(r"^\| (`.*?) \|", text, re.MULTILINE))
    assert set(table) <= set(re.findall("`(.*?)`", named))


def test_a_variant_with_several_seeds_has_a_row_whose_unit_is_the_seed() -> None:
    board = board_of(family())
    lines = {line.model: line for line in board.lines}
    row = shown(board, lines["anchor-fp32, mean of 3 seeds"])
    means = [values_of(board, lines[f"anchor-{seed}"])["512"].mean for seed in LOST]
    low, high = stats.ttest_1samp(means, 0).confidence_interval()
    value = values_of(board, lines["anchor-fp32, mean of 3 seeds"])["512"]
    assert high > 100 and (value.low, value.high) == (pytest.approx(low), 100.0)
    assert "t interval over seeds" in value.label
    over = compare(family())[-1].pooled
    assert row["minus full-fp32"] == f"{100 * (over.difference.difference or 0):+.1f}"
    assert row["verdict over models"] == over.word
    assert (row["seed"], row["trained as"]) == ("0-2", "anchor")
    assert shown(board, lines["full-fp32, mean of 3 seeds"])["verdict over models"] == "\u2013"
    seed = compare([family()[1], family()[4]])[0].pooled  # a seed is compared with the same seed
    assert shown(board, lines["anchor-1"])["minus full-fp32"] == f"{100 * (seed.difference.difference or 0):+.1f}"


def test_a_seed_that_a_variant_lacks_is_named_in_its_row() -> None:
    runs = [run for run in family() if run.name != "full-1"]
    board = board_of(runs)
    (line,) = [line for line in board.lines if line.model.startswith("anchor-fp32,")]
    assert line.model == "anchor-fp32, mean of 3 seeds (full-fp32 lacks seed 1)"
    assert line.row.across is not None and line.row.across.row.difference.pairs == 2


def test_checkpoints_of_one_training_are_averaged_where_asked_and_have_no_interval() -> None:
    steps = (10, 20, 30, 40, 50)
    runs = [trained("anchor", 0, step / 500, step=step, steps=50) for step in steps]
    runs = [of_step(run, i) for i, run in enumerate(runs)]
    assert not [line for line in board_of(runs).lines if "mean of" in line.model]
    board = board_of(runs, checkpoints=True)
    (line,) = [line for line in board.lines if line.model.startswith("anchor-fp32,")]
    assert line.model == "anchor-fp32, seed 0, mean of 5 checkpoints: no seed variance"
    values = values_of(board, line)
    assert (values["seed"].text, values["steps"].text) == ("0", "10, 20, 30, 40, 50")
    every = [values_of(board, each)["512"].mean for each in board.lines if each != line]
    assert values["512"].mean == pytest.approx(fmean(mean for mean in every if mean is not None)) and len(every) == 5
    assert (values["512"].low, values["512"].high) == (None, None)
    assert "mean over checkpoints, which is no seed variance" in values["512"].label
    assert values["verdict over models"].text == "\u2013"  # the first checkpoint is the baseline model


def test_checkpoints_are_averaged_inside_seeds() -> None:
    runs = [trained("anchor", seed, lost, step=step, steps=20) for seed, lost in LOST.items() for step in (10, 20)]
    runs = [of_step(run, i) for i, run in enumerate(runs)]
    board = board_of(runs, checkpoints=True)
    (line,) = [line for line in board.lines if line.model.startswith("anchor-fp32,")]
    assert line.model == "anchor-fp32, mean of 3 seeds, each of 2 checkpoints"
    value = values_of(board, line)["512"]
    assert value.low is not None and "t interval over seeds" in value.label


def test_log_probabilities_of_two_tokenizers_are_compared_on_no_board() -> None:
    runs = [made({"fp32": 0.0}, name="one"), made({"fp32": 0.3}, name="two", tokenizer={"sha256": "u"})]
    (gap,) = [line.row.across for line in board_of(runs).lines if line.row.across]
    assert gap.row.difference.logprob is None and gap.row.difference.pairs == 200
