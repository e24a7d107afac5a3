"""`bench engines`: the ratio of pairs and its interval."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from anchoreval.bench import engines
from anchoreval.bench.engines import OURS, Setting, interval, jobs, line, report_engines, saved
from anchoreval.cli.parser import main
from anchoreval.errors import UnknownName


def test_the_interval_of_a_median_covers_95_of_100() -> None:
    """Of 9 values both but the outermost: 1 - 2 * (1 + 9) / 512 = 0.961; of 15 the fourth from either end, 0.965."""
    assert interval(range(9)) == (1, 7)
    assert interval(range(15)) == (3, 11)
    assert interval(range(5)) == (0, 4) and interval([7.0]) == (7.0, 7.0)


def test_a_line_ends_with_the_ratio_of_pairs_and_its_interval() -> None:
    assert line("stock", [1.0, 2.0, 4.0], [2.0, 2.0, 2.0]).split() == ["stock", "2.000", "1.000", "[0.500,", "2.000]"]
    assert line(OURS, [1.0, 2.0, 4.0], [1.0, 2.0, 4.0]).split() == [OURS, "2.000"]


def test_prompts_of_pairs_share_nothing_and_questions_share_their_context() -> None:
    made = jobs(64, 3, 2)
    apart = [prompt for pair in (*made["score"].pairs, *made["generate"].pairs) for prompt in pair]
    assert len(set(apart)) == 3 + 3 * 2
    for first, second in made["questions"].pairs:
        assert first != second and first.split(".")[:2] == second.split(".")[:2]


def test_an_unknown_job_is_named_before_anything_is_loaded() -> None:
    with pytest.raises(UnknownName, match="generate"):
        report_engines([64], ["generat"], 1, 2, 4, None, "cpu", lambda _: None)


def test_what_is_measured_is_said_by_length_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "cpu.json"
    sizes = [
        "--lengths",
        "120,160",
        "--pairs",
        "1",
        "--together",
        "2",
        "--new-tokens",
        "2",
        "--jobs",
        "questions,generate",
    ]
    assert main(["bench", "engines", *sizes, "--shape", "anchor-tiny", "--output", str(path)]) == 0
    made, printed = json.loads(path.read_text("utf-8")), capsys.readouterr().out
    ours = [(row["tokens"], row["job"].split(",")[0]) for row in made["figures"] if row["engine"] == OURS]
    assert ours == [(tokens, job) for tokens in (120, 160) for job in ("score", "generate")]
    assert {"transformers", "transformers, continuous"} <= {row["engine"] for row in made["figures"]}
    assert all(second > 0 for row in made["figures"] for second in row["seconds"])
    assert "a random Llama of shape anchor-tiny with 290 positions" in printed and "160 tokens" in printed


def test_questions_on_a_context_are_not_read_from_its_beginning_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    setting = Setting(saved(None, 0, Path()), 400)
    ours, tokens = engines._Ours(setting), []
    stock = ours.backend.model.forward

    def forward(**call: Any) -> Any:
        tokens.append(call["input_ids"].shape[1])
        return stock(**call)

    monkeypatch.setattr(ours.backend.model, "forward", forward)
    ours("score", jobs(300, 1, 3)["questions"].pairs[0])
    assert tokens[0] > 250 and max(tokens[1:]) < 100
