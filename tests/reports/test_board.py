"""Text table, board.csv and board.html: what they show, that they are inert, and that they repeat."""

from __future__ import annotations

import csv
import io
import json
import random
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from anchoreval.errors import RunError
from anchoreval.records.header import Header
from anchoreval.records.run import Run
from anchoreval.reports.board import board_csv, board_html, run_table, write_board
from anchoreval.reports.page import contrast, ink, steps
from anchoreval.reports.words import plain
from anchoreval.schema import Record

TASKS = ("niah_single_1", "niah_multikey_1", "vt", "qa_1", "qa_2")
ARMS = ("native", "fp32", "bf16-angle")
LENGTHS = (512, 2048)
HOSTILE = (
    "<script>document.title='owned'</script>",
    "</script><script>document.title='owned'</script>",
    "</pre></td><img src=x onerror=\"document.title='owned'\">",
    "\u202egnorw\u202c \u200b \x00 \x1b[31m \ud800 &lt;b&gt; {{ 7*7 }} {% raw %}",
    "' onmouseover=document.title='owned' x='",
    "A" * 1_000_000,
)


def make_run(path: Path, hostile: bool = False, samples: int = 12) -> Run:
    """A run in which bf16-angle loses most answers at 2,048 and one sample of vt has no score."""
    rng = random.Random(7)
    places = [(t, n) for t in TASKS for n in LENGTHS if (t, n) != ("qa_2", 512)]
    records = []
    for task, length in places:
        for i in range(samples):
            right = rng.random() < 0.85
            for arm in ARMS:
                kept = right and not (arm == "bf16-angle" and rng.random() < length / 2500)
                score = None if (task, i) == ("vt", 3) else float(kept)
                text = HOSTILE[i % len(HOSTILE)] if hostile else f" {1000 + i if kept else rng.randrange(999)}"
                records.append(_record(task, length, i, arm, score, text, text if hostile else str(1000 + i)))
    return Run(path, Header(_header(path.name, samples, hostile)), tuple(records))


def _record(task: str, length: int, i: int, arm: str, score: float | None, text: str, reference: str) -> Record:
    return Record(
        key=f"{arm}{task}{length}{i}", sample_id=f"ruler/{task}@{length}#{i}",
        task=f"ruler/{task}", length=length,
        index=i, arm=arm, prompt_sha256=f"{i:064x}", prompt_tokens=length - 100, references=(reference,),
        facts={"depth": i / 12}, output=text, output_tokens=8, finish="length", score=score,
        why="out of memory" if score is None else None, reference_logprob=-0.4 - (arm == "bf16-angle") * i,
        reference_tokens=4, seconds=0.1,
    )  # fmt: skip


def _header(name: str, samples: int, hostile: bool) -> dict[str, Any]:
    bad = HOSTILE[1] if hostile else ""
    return {
        "schema": 1, "run": name + bad, "created": "2026-01-02T03:04:05+00:00",
        "model": {"name": "tiny" + bad, "path": "models/tiny", "sha256": "ab" * 32, "parameters": 4_000_000,
                  "dtype": "bfloat16"},
        "tokenizer": {"sha256": "cd" * 32, "anchor_token": "<s>"},
        "arms": [{"name": arm, "asked": {"rope": arm}, "applied": {"rope": arm + bad}} for arm in ARMS],
        "tasks": [f"ruler/{task}" for task in TASKS], "lengths": list(LENGTHS), "limit": samples, "seed": 42,
        "template": "base", "sources": {"haystack": "generated", "qa": "published"}, "comparable": False,
        "unmakeable": [{"task": "ruler/qa_2", "length": 512, "why": "smallest possible is 803" + bad}],
        "versions": {}, "backend": {"name": "fake"},
    }  # fmt: skip


@pytest.fixture(scope="module")
def run() -> Run:
    return make_run(Path("runs/demo"))


@pytest.fixture(scope="module")
def html(run: Run) -> str:
    return board_html([run], Path("runs/demo"))


def maps(page: str) -> dict[str, Any]:
    """The first block of maps that a page holds for its script."""
    (block,) = re.findall(r'<script type="application/json" id="g0">(.*?)</script>', page)
    return dict(json.loads(block))


def rows(run: Run) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(board_csv([run], Path("runs")))))


def test_the_text_table_says_which_arm_is_damaged(run: Run) -> None:
    text = run_table(run)
    pooled = re.search(
        r"bf16-angle minus native, all pairs: worse, (-\d+\.\d) \[-.*\], 106 pairs \(\d+ of the same output\), "
        r"2 left out: 2 without a score, p=", text,
    )  # fmt: skip
    assert pooled and float(pooled[1]) < -20
    assert "fp32 minus native, all pairs: identical (equivalence within 1 needs about 731 samples), 0.0 [-5.5," in text
    assert "by task and length: 9 identical" in text and "noise floor: no placebo in this run" in text
    assert "ruler/vt at 512 native 11/12" in text
    assert "ruler/qa_2 at 512: smallest possible is 803" in text
    assert "Not comparable with published scores: haystack generated." in text
    assert max(map(len, text.splitlines()[:10])) <= 100


def test_a_narrow_terminal_gets_panels_below_one_another(run: Run) -> None:
    table = run_table(run, width=60).split("* scored/asked")[0]
    assert max(map(len, table.splitlines())) <= 60
    assert table.count("niah_single_1") == 3


def test_csv_has_one_row_per_cell_and_per_average(run: Run) -> None:
    found = rows(run)
    cells = [row for row in found if row["kind"] == "cell"]
    assert len(cells) == len(TASKS) * len(LENGTHS) * len(ARMS)
    vt = next(row for row in cells if (row["task"], row["length"], row["arm"]) == ("ruler/vt", "512", "native"))
    assert (vt["asked"], vt["scored"], vt["interval"], vt["path"]) == ("12", "11", "clopper-pearson", "demo")
    dash = next(row for row in cells if row["unmakeable"])
    assert (dash["task"], dash["mean_x100"], dash["unmakeable"]) == (
        "ruler/qa_2",
        "",
        "smallest possible is 803",
    )
    assert {row["comparable"] for row in found} == {"no"}
    means = {(row["arm"], row["length"]): row["tasks"] for row in found if row["kind"] == "mean"}
    assert means["native", "512"] == "4" and means["native", "2048"] == "5"


def test_csv_means_and_differences_are_those_of_the_records(run: Run) -> None:
    def mean(arm: str) -> float:
        chosen = [r for r in run.records if (r.task, r.length, r.arm) == ("ruler/qa_1", 2048, arm)]
        return 100 * sum(r.score or 0.0 for r in chosen) / len(chosen)

    row = next(r for r in rows(run) if (r["task"], r["length"], r["arm"]) == ("ruler/qa_1", "2048", "bf16-angle"))
    assert float(row["mean_x100"]) == pytest.approx(mean("bf16-angle"), abs=1e-3)
    assert float(row["difference"]) == pytest.approx(mean("bf16-angle") - mean("native"), abs=1e-3)
    assert (row["baseline"], row["pairs"]) == ("native", "12")


def test_a_formula_is_text_in_a_spreadsheet(run: Run) -> None:
    bad = Run(run.path, {**run.header, "run": "=cmd|' /C calc'!A0"}, run.records)
    assert rows(bad)[0]["run"].startswith("'=cmd")


def test_rendering_twice_gives_the_same_bytes(run: Run, tmp_path: Path) -> None:
    first = [path.read_bytes() for path in write_board([run], tmp_path)]
    assert [path.read_bytes() for path in write_board([run], tmp_path)] == first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["board.csv", "board.html"]


def test_a_board_that_cannot_be_written_is_an_error(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"cannot write .*board\.csv"):
        write_board([run], tmp_path / "file")


def test_the_page_shows_run_marks_and_reasons(html: str) -> None:
    assert "Not comparable with published scores: haystack generated." in html
    assert "ruler/qa_2 at 512 cannot be made: smallest possible is 803" in html
    assert maps(html)["why"] == {"4 512": "smallest possible is 803"}
    assert 'href="./records.jsonl"' in html
    assert "means over 4-5 of 13 tasks" in html
    for fact in ("models/tiny", "bfloat16", "&lt;s&gt;", "4,000,000"):
        assert fact in html


def test_every_number_links_to_samples_that_are_on_the_page(html: str) -> None:
    targets = set(re.findall(r'href="#([^"]+)"', html))
    assert len(targets) == len(TASKS) * len(LENGTHS) - 1  # one cell cannot be made
    assert targets <= set(re.findall(r'id="([^"]+)"', html))


def test_the_page_loads_nothing_from_elsewhere(html: str) -> None:
    assert not re.search(r"""(src|href|action|url)\s*[=(]\s*["']?(https?:)?//""", html)
    assert "default-src 'none'" in html


def test_hostile_text_is_spelled_out_and_cut() -> None:
    page = board_html([make_run(Path("runs/bad"), hostile=True)])
    assert page.count("<script") == page.count("</script>") == 3  # two data blocks and the page's own
    assert "<img" not in page
    assert "⟨U+202E⟩" in page and "⟨U+D800⟩" in page and "{{ 7*7 }}" in page
    assert "999,600 more characters not shown" in page
    assert len(page) < 2_000_000
    page.encode("utf-8")


def test_plain_keeps_ordinary_text_of_any_script() -> None:
    assert plain("naïve 中文 שלום\n\tx") == "naïve 中文 שלום\n\tx"
    assert plain("abcdef", 3) == "abc … [3 more characters not shown]"


def test_numbers_are_readable_on_every_colour() -> None:
    for light, dark in steps().values():
        assert contrast(ink(light), light) >= 4.5
        assert contrast(ink(dark), dark) >= 4.5


def test_the_text_table_needs_neither_torch_nor_jinja() -> None:
    code = "import sys, anchoreval.reports.board; print([m for m in ('torch', 'jinja2', 'scipy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("backend", "says"),
    [
        ({"engine": "vllm", "versions": {"vllm": "0.32.0"}, "device": "cpu"}, "vllm, vllm 0.32.0, cpu"),
        ({"engine": "openai", "versions": {}, "device": None, "server": {"address": HOSTILE[0]}}, "openai, &lt;script"),
    ],
)
def test_a_board_says_which_engine_computed_and_where(tmp_path: Path, backend: dict[str, Any], says: str) -> None:
    run = make_run(tmp_path)
    nameless = run.header["model"] | {"sha256": None, "dtype": None}
    page = board_html([replace(run, header=run.header | {"backend": backend, "model": nameless})])
    assert says in page and "sha256 None" not in page and HOSTILE[0] not in page
