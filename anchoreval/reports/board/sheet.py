"""<name>.csv of a declared board: one line per number, first measured numbers, then reported numbers, marked as such.

kind: `row` (a column of the board's table), `cell` (task x length), `depth` (tenth of the context x length),
`difference` and `depth_difference` (arm minus baseline), `reported` (printed in a paper). Scores are x 100.
"""

from __future__ import annotations

from collections.abc import Iterator

from anchoreval.reports.board.build import Board, Group
from anchoreval.reports.board.cells import Map
from anchoreval.reports.table import TRAINED, compared_fields, csv_lines, number, scored_fields, trained_fields
from anchoreval.schema import OUTCOMES
from anchoreval.stats import Subject

COLUMNS = (
    "kind", "model", "setting", "arm", "suite", "task", "depth", "length", "column", "value", "low", "high", "asked",
    "scored", "logprob_per_token", "baseline", "pairs", "p", "p_holm", "detectable", "verdict", "comparable", "run",
    "source", "note", "as_wrong", *OUTCOMES, "says", "logprob_says", "same_outputs", "left_out", "lost", "floor",
    "environments", *TRAINED,
)  # fmt: skip
TEXTS = (
    "model", "setting", "arm", "suite", "task", "column", "value", "baseline", "verdict", "run", "source", "note",
    "says", *TRAINED,
)  # fmt: skip
Row = dict[str, str]


def lines_of(board: Board) -> Iterator[str]:
    """Yield the file's lines, header first."""
    return csv_lines(COLUMNS, TEXTS, _rows(board))


def _rows(board: Board) -> Iterator[Row]:
    for line in board.lines:
        of = {"model": line.model, "setting": line.setting, "arm": line.arm, "suite": line.suite}
        of |= {"comparable": "yes" if line.comparable else "no", "environments": str(line.environments)}
        of |= trained_fields(line.row.trained, line.row.seeds, line.row.steps)
        for head, value in zip(board.heads, line.values, strict=True):
            run = "" if value.run is None else board.runs[value.run].path
            shown = value.key if value.mean is None else value.mean
            text = f"{shown:.4f}" if isinstance(value.key, float) and value.low is not None else value.text
            ends = {"low": number(value.low), "high": number(value.high), "as_wrong": value.bound.partition(" ")[0]}
            yield of | ends | {"kind": "row", "column": head, "value": text, "run": run, "note": value.label}
    for group in board.groups:
        yield from _map(board, group, group.tasks, "cell", "difference", "task")
        yield from _map(board, group, group.depths, "depth", "depth_difference", "depth")
    for table in board.declared.reported:
        for printed in table.numbers:
            yield {
                "kind": "reported", "model": printed.model, "setting": printed.trained_on, "arm": printed.method,
                "suite": printed.suite, "column": printed.column, "value": printed.value,
                "source": f"{printed.source}, table {printed.table}", "note": printed.note,
            }  # fmt: skip


def _map(board: Board, group: Group, found: Map, kind: str, differing: str, row_name: str) -> Iterator[Row]:
    group_of = {"model": group.model, "setting": group.setting, "environments": str(group.environments)}
    group_of |= trained_fields(group.trained)

    def row_of(row: int, length: int, arm: Subject, run: int) -> Row:
        tasks = {found.rows[row]} if row_name == "task" else set(group.tasks.rows)
        place = {row_name: found.rows[row], "length": str(length), "arm": group.names[arm]}
        comparable = "no" if group.incomparable & tasks else "yes"
        return group_of | place | {"comparable": comparable, "run": board.runs[run].path}

    for (row, length, arm), mean in found.means.items():
        values = {"value": number(mean.mean, 100), "as_wrong": number(mean.as_wrong, 100)}
        yield row_of(row, length, arm, mean.run) | {"kind": kind} | scored_fields(mean) | values
    for (row, length, arm, baseline), gap in found.gaps.items():
        paired = gap.row.difference
        values = {"baseline": group.names[baseline], "value": number(paired.difference, 100)}
        values |= {"low": number(paired.low, 100), "high": number(paired.high, 100)}
        yield row_of(row, length, arm, gap.run) | {"kind": differing} | compared_fields(gap.row) | values
