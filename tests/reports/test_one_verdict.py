"""Every surface says of the committed runs what `compare` says: the same number, the same word."""

from __future__ import annotations

import csv
import html
import io
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from anchoreval import compare
from anchoreval.records.run import Run, load_run
from anchoreval.reports.board import board_csv, board_html, run_table
from anchoreval.reports.board.declared import write_leaderboard
from anchoreval.reports.compare.contrasts import write_compare
from anchoreval.reports.compare.table import table_of
from anchoreval.reports.export.tables import export
from anchoreval.reports.viewer.write import write_view
from anchoreval.stats import Contrast, Row

REPOSITORY = Path(__file__).parents[2]
BOARDS = REPOSITORY / "leaderboards"
RUNS = sorted(path.parent for path in BOARDS.glob("results/anchor-tiny/*/header.json"))
PLACEBO_RUN = BOARDS / "results" / "anchor-tiny" / "31bf25797b7ffa79"


def several_arms() -> list[Path]:
    return [path for path in RUNS if len(json.loads((path / "header.json").read_text("utf-8"))["arms"]) > 1]


def number(value: float | None) -> str:
    """A signed difference in points, one digit, zero without a sign."""
    text = f"{100 * (value or 0.0):+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text


def size(row: Row) -> str:
    one = row.difference
    return f"{number(one.difference)} [{number(one.low)}, {number(one.high)}]"


def place(row: Row) -> tuple[str, str]:
    one = row.difference
    return one.task or "", "" if one.length is None else str(one.length)


def expected(contrasts: list[Contrast]) -> Iterator[tuple[str, Row]]:
    for contrast in contrasts:
        for row in contrast.rows:
            yield contrast.arm, row


@pytest.fixture(scope="module", params=several_arms(), ids=lambda path: path.name)
def run(request: pytest.FixtureRequest) -> Run:
    return load_run(request.param)


@pytest.fixture(scope="module")
def contrasts(run: Run) -> list[Contrast]:
    return compare(run)


def test_the_table_of_compare_and_its_files_say_the_rows(run: Run, contrasts: list[Contrast], tmp_path: Path) -> None:
    table, body = write_compare(contrasts, tmp_path)
    rows = list(csv.DictReader(table.read_text("utf-8").splitlines()))
    read = [row for one in json.loads(body.read_text("utf-8"))["contrasts"] for row in one["rows"]]
    for (arm, row), line, fields in zip(expected(contrasts), rows, read, strict=True):
        assert (line["arm"], line["task"], line["length"]) == (arm, *place(row))
        assert line["says"] == fields["says"] == row.says and line["verdict"] == fields["verdict"] == row.word
        assert number(float(line["difference"]) / 100) == number(fields["difference"] / 100) == size(row).split(" ")[0]
    for contrast in contrasts:
        text = table_of(contrast)
        for row in contrast.rows if len(contrast.lengths) > 1 else (*contrast.cells, contrast.pooled):
            named = row.difference.task or ("all" if row.difference.length is None else "all tasks")
            lines = [line for line in text.splitlines() if re.match(rf"{named} +{place(row)[1] or 'all'} ", line)]
            assert len(lines) == 1 and size(row) in re.sub(" +", " ", lines[0]) and row.says in lines[0]


def test_the_table_after_a_run_says_the_pooled_rows_and_those_of_lengths(run: Run, contrasts: list[Contrast]) -> None:
    text = run_table(run)
    for contrast in contrasts:
        assert (
            f"{contrast.arm} minus {contrast.baseline}, all pairs: {contrast.pooled.says}, {size(contrast.pooled)}"
            in text
        )
        for row in contrast.lengths if len(contrast.lengths) > 1 else ():
            assert f"  at {row.difference.length:,}: {row.says}, {size(row)}" in text
    assert " vs " not in text


def test_the_page_of_a_run_says_every_row(run: Run, contrasts: list[Contrast]) -> None:
    text = board_html([run])
    page, drawn = html.unescape(text), gaps_of(text)
    for contrast in contrasts:
        assert f'<p class="words">{contrast.pooled.says}, ' in page and size(contrast.pooled) in page
        for row in contrast.cells:
            assert_drawn(drawn, contrast, row, place(row)[0])
        for row in contrast.lengths:
            assert_drawn(drawn, contrast, row, "all pairs")
    assert ">vs<" not in page and "no difference shown," not in page


Gaps = Mapping[tuple[str, int, str, str], list[Any]]


def gaps_of(page: str) -> Gaps:
    """(task, length, arm, baseline) -> what the page's script draws there."""
    (block,) = re.findall(r'<script type="application/json" id="g0">(.*?)</script>', page)
    group = json.loads(block)
    arms, tasks = [name for name, _ in group["arms"]], [name for name, _ in group["tasks"]["rows"]]
    return {(tasks[row], n, arms[a], arms[b]): rest for row, n, a, b, *rest in group["tasks"]["gaps"]}


def assert_drawn(drawn: Gaps, contrast: Contrast, row: Row, name: str) -> None:
    value, low, high, pairs, _, _, _, says, *_ = drawn[name, int(place(row)[1]), contrast.arm, contrast.baseline]
    assert (says, pairs) == (row.says, row.difference.pairs)
    assert [number(tenths / 1000) for tenths in (value, low, high)] == re.findall(r"[+-]?\d+\.\d", size(row))


def test_the_csv_of_a_run_and_its_export_say_every_row(run: Run, contrasts: list[Contrast], tmp_path: Path) -> None:
    pytest.importorskip("pandas")
    own = {(r["arm"], r["task"], r["length"]): r for r in csv.DictReader(io.StringIO(board_csv([run])))
           if r["kind"] in ("cell", "difference") and r["verdict"]}  # fmt: skip
    with export([run], "csv", tmp_path)[2].open(encoding="utf-8", newline="") as file:
        exported = {(r["arm"], r["task"], r["length"]): r for r in csv.DictReader(file)}
    for arm, row in expected(contrasts):
        for line in (own[arm, *place(row)], exported[arm, *place(row)]):
            assert (line["verdict"], line["says"]) == (row.word, row.says)
            assert number(float(line["difference"]) / 100) == number(row.difference.difference)
            assert float(line["p_holm"]) == pytest.approx(row.p_holm, rel=1e-5)


def test_the_lm_eval_files_say_every_row(run: Run, contrasts: list[Contrast], tmp_path: Path) -> None:
    found = [json.loads(path.read_text("utf-8")) for path in export([run], "lm-eval", tmp_path)]
    rows = [row for one in found for row in one["anchoreval"]["differences"]]
    assert [row["says"] for row in rows] == [row.says for _, row in expected(contrasts)]


def test_the_viewer_says_the_pooled_rows(run: Run, contrasts: list[Contrast], tmp_path: Path) -> None:
    write_view(run, tmp_path)
    (index,) = tmp_path.glob("data/*/index.js")
    found = re.search(r'"verdicts":(\[.*?\]),"header"', index.read_text("utf-8"))
    verdicts = json.loads(found[1].replace("\\'", "'")) if found else []
    for contrast, said in zip(contrasts, verdicts, strict=True):
        assert said.startswith(
            f"{contrast.arm} minus {contrast.baseline}: {contrast.pooled.says}, {size(contrast.pooled)}"
        )


def board_of(tmp_path: Path, run: Run) -> tuple[list[dict[str, str]], str]:
    table, page = write_leaderboard([run.path], BOARDS / "anchor-tiny.yaml", tmp_path)
    with table.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file)), page.read_text("utf-8")


def test_a_declared_board_says_every_row(run: Run, contrasts: list[Contrast], tmp_path: Path) -> None:
    lines, page = board_of(tmp_path, run)
    drawn = gaps_of(page)
    for contrast in contrasts:
        assert_board_row(lines, contrast)
        for row in contrast.cells:
            task, length = place(row)
            (line,) = [
                r for r in lines if r["kind"] == "difference" and r["baseline"] == contrast.baseline
                and (r["arm"], r["task"], r["length"]) == (contrast.arm, task, length)
            ]  # fmt: skip
            assert (line["verdict"], line["says"]) == (row.word, row.says)
            assert number(float(line["value"]) / 100) == number(row.difference.difference)
            assert float(line["p_holm"]) == pytest.approx(row.p_holm, rel=1e-5)
            assert_drawn(drawn, contrast, row, task)


def assert_board_row(lines: list[dict[str, str]], contrast: Contrast) -> None:
    """The row of the board's table that stands for all pairs of an arm."""
    own = {r["column"]: r for r in lines if r["kind"] == "row" and r["arm"] == contrast.arm}
    assert own["verdict"]["value"] == contrast.pooled.word and own["verdict"]["note"] == contrast.pooled.says
    assert f"{contrast.pooled.says}, {size(contrast.pooled)}" in own[f"minus {contrast.baseline}"]["note"]


def test_the_committed_board_says_what_compare_says_of_the_run_behind_it() -> None:
    with (BOARDS / "boards" / "anchor-tiny.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    page = html.unescape((BOARDS / "boards" / "anchor-tiny.html").read_text("utf-8"))
    for contrast in compare(PLACEBO_RUN):
        assert_board_row(lines, contrast)
        assert f"minus native: {contrast.pooled.says}, {size(contrast.pooled)}" in page


def printed_rows() -> Mapping[str, list[str]]:
    """Arm -> the cells of the table of docs/embedded.md of what `compare` finds."""
    text = (REPOSITORY / "docs" / "embedded.md").read_text("utf-8").split("| arm minus native |")[1].split("\n\n")[0]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| `")
    ]
    return {row[0].strip("`"): row[1:] for row in rows}


def test_the_page_of_the_embedded_model_prints_the_committed_figures() -> None:
    found: Any = printed_rows()
    contrasts = {one.arm: one for one in compare(PLACEBO_RUN)}
    assert found.keys() == contrasts.keys()
    for arm, contrast in contrasts.items():
        for cell, row in zip(found[arm][:3], (*contrast.lengths, contrast.pooled), strict=True):
            assert cell.startswith(row.word) and size(row) in cell
        assert found[arm][3].startswith(contrast.pooled.logprob_says)
