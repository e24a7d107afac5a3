"""LongBench v2's table against a transcription of upstream's result.py and numbers worked out by hand."""

from __future__ import annotations

import itertools
import random
import re
from pathlib import Path
from typing import Any

import pytest
from longbench_v2_files import write_folder

from anchoreval import evaluate
from anchoreval.cli.parser import main
from anchoreval.records.run import Run
from anchoreval.reports.averages.longbench import DOMAINS, lines_v2, report
from anchoreval.schema import Record
from anchoreval.suites.longbench_v2.scoring import UNPARSABLE

# Of every size, difficulty and domain: questions of the published data set.
SIZES = {"short": 180, "medium": 215, "long": 108}
EASY = 192
PER_DOMAIN = (175, 125, 81, 39, 50, 33)


def record(index: int, score: float | None, arm: str = "bf16", **changes: Any) -> Record:
    facts = {"prompting": "zero_shot", "difficulty": "easy", "size": "short", "domain": DOMAINS[0], "cut": False}
    facts |= {name: changes.pop(name) for name in list(changes) if name in facts}
    values: dict[str, Any] = {
        "key": f"{index}{arm}", "sample_id": f"longbench_v2/questions@120000#{index}", "task": "longbench_v2/questions",
        "length": 120000, "index": index, "arm": arm, "prompt_sha256": "0" * 64, "prompt_tokens": 9,
        "references": ("The correct answer is (A)",), "facts": facts, "output": "", "output_tokens": 1,
        "finish": "stop", "score": score, "why": None, "reference_logprob": None, "reference_tokens": 0, "seconds": 0.0,
    }  # fmt: skip
    return Record(**values | changes)


def published(seed: int) -> list[Record]:
    """503 records whose facts are spread as in the published data set, with scores and unparsable answers drawn."""
    rng = random.Random(seed)
    sizes = [name for name, count in SIZES.items() for _ in range(count)]
    domains = [name for name, count in zip(DOMAINS, PER_DOMAIN, strict=True) for _ in range(count)]
    rng.shuffle(sizes)
    made = []
    for i in range(503):
        score = float(rng.random() < 0.3)
        why = UNPARSABLE if not score and rng.random() < 0.2 else None
        made.append(
            record(i, score, why=why, size=sizes[i], difficulty="easy" if i < EASY else "hard", domain=domains[i])
        )
    return made


def result_py(pred_data: list[dict[str, Any]]) -> list[str]:
    """THUDM/LongBench 2e00731 result.py, the row of one file behind its name, not compensated."""
    easy, hard, short, medium, long = 0, 0, 0, 0, 0
    easy_acc, hard_acc, short_acc, medium_acc, long_acc = 0, 0, 0, 0, 0
    for pred in pred_data:
        acc = int(pred["judge"])
        if pred["difficulty"] == "easy":
            easy += 1
            easy_acc += acc
        else:
            hard += 1
            hard_acc += acc
        if pred["length"] == "short":
            short += 1
            short_acc += acc
        elif pred["length"] == "medium":
            medium += 1
            medium_acc += acc
        else:
            long += 1
            long_acc += acc
    return [
        str(round(100 * (easy_acc + hard_acc) / len(pred_data), 1)),
        str(round(100 * easy_acc / easy, 1)),
        str(round(100 * hard_acc / hard, 1)),
        str(round(100 * short_acc / short, 1)),
        str(round(100 * medium_acc / medium, 1)),
        str(round(100 * long_acc / long, 1)),
    ]


def table(records: list[Record]) -> dict[str, tuple[str, int]]:
    """Row -> its number as printed and the questions it is of."""
    rows = (re.fullmatch(r"  (\S.*?) +(\S+) +of (\d+)", line) for line in lines_v2(records))
    return {row[1]: (row[2], int(row[3])) for row in rows if row}


@pytest.mark.parametrize("seed", range(20))
def test_the_six_numbers_are_those_of_upstreams_result_py(seed: int) -> None:
    records = published(seed)
    preds = [{"judge": r.score == 1.0, "difficulty": r.facts["difficulty"], "length": r.facts["size"]} for r in records]
    found = table(records)
    names = ("overall", "easy", "hard", "short", "medium", "long")
    assert [found[name][0] for name in names] == result_py(preds)
    assert [found[name][1] for name in names] == [503, 192, 311, 180, 215, 108]
    assert [found[name][1] for name in DOMAINS] == list(PER_DOMAIN)
    for name in DOMAINS:
        scores = [r.score or 0.0 for r in records if r.facts["domain"] == name]
        assert found[name][0] == f"{100 * sum(scores) / len(scores):.1f}"


def test_numbers_by_hand_with_empty_buckets_and_answers_that_are_unparsable_or_missing() -> None:
    records = [
        record(0, 1.0),
        record(1, 0.0, why=UNPARSABLE, difficulty="hard", cut=True),
        record(2, 0.0, difficulty="hard", size="medium", domain=DOMAINS[4]),
        record(3, None, why="the backend failed", size="long", domain="A new domain"),
    ]
    found = table(records)
    assert found["overall"] == ("33.3*", 3) and found["easy"] == ("100.0*", 1) and found["hard"] == ("0.0", 2)
    assert found["short"] == ("50.0", 2) and found["medium"] == ("0.0", 1) and found["long"] == ("–", 0)
    assert found[DOMAINS[0]] == ("50.0", 2) and found[DOMAINS[1]] == ("–", 0)
    assert found["A new domain"] == ("–", 0)
    text = "\n".join(lines_v2(records))
    assert "4 of 503 questions" in text and "  1 answers unparsable, counted as wrong (25.0 of 100)" in text
    assert "* 1 questions without a score, counted nowhere: 1 without a score" in text
    assert "  1 of 4 prompts lost their middle; chance is 25.0" in text


def test_nothing_but_failures_is_a_table_of_dashes() -> None:
    assert {value for value, _ in table([record(0, None)]).values()} == {"–"}
    assert not list(lines_v2([record(0, 1.0, task="ruler/vt")]))


def test_arms_lengths_and_promptings_have_tables_of_their_own(tmp_path: Path) -> None:
    cells = itertools.product(("bf16", "fp32"), (1000, 2000), ("cot", "zero_shot"))
    records = [
        record(i, float(i % 2), arm, length=length, prompting=prompting, key=str(i))
        for i, (arm, length, prompting) in enumerate(cells)
    ]
    text = report(Run(tmp_path, {"run": "r", "model": {"name": "m"}}, tuple(records)))
    assert text.count("1 of 503 questions") == 8 and text.index("arm fp32") > text.index("arm bf16")
    for length, prompting in itertools.product((1000, 2000), ("cot", "zero_shot")):
        assert text.count(f"(longbench_v2/questions, {prompting}, prompts cut at {length} tokens)") == 2
    assert "recursion limit" not in text


def test_letters_are_in_a_table_of_their_own_and_need_no_parsing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_folder(tmp_path / "data")
    settings: dict[str, Any] = {"lengths": [400], "limit": 8, "backend": "fake", "data_dir": folder}
    right = evaluate("anchor-tiny", "longbench_v2_choices", output=tmp_path / "right", **settings)
    wrong = evaluate(
        "anchor-tiny", "longbench_v2_choices", output=tmp_path / "wrong", backend_args={"mode": "wrong"}, **settings
    )
    assert {r.score for r in right.records} == {1.0} and {r.score for r in wrong.records} == {0.0}
    assert all(len(r.choices) == 4 and r.output_tokens == 0 for r in right.records)
    assert main(["longbench", str(right.path)]) == 0
    out = capsys.readouterr().out
    assert "(longbench_v2_choices/questions, choices, prompts cut at 400 tokens), 8 of 503 questions" in out
    assert "unparsable" not in out and re.search("overall +100.0 +of 8", out)


def test_the_control_without_context_is_the_same_for_both_flags_and_not_for_letters(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_folder(tmp_path / "data")
    common = ["--model", "anchor-tiny", "--backend", "fake", "--lengths", "400", "--limit", "4", "--data-dir"]
    run = ["run", *common, str(folder), "--output", str(tmp_path / "runs")]
    assert main([*run, "--tasks", "longbench_v2", "--no-context"]) == 0
    assert main([*run, "--tasks", "longbench_v2", "--prompting", "no_context"]) == 0
    assert "context left out (--no-context)" in capsys.readouterr().out
    paths = sorted((tmp_path / "runs" / "anchor-tiny").iterdir())
    assert len(paths) == 2
    assert len({(path / "records.jsonl").read_text().split('"seconds"')[0] for path in paths}) == 1
    assert main([*run, "--tasks", "longbench_v2_choices", "--no-context"]) == 2
    assert "longbench_v2_choices/questions has no prompt without its context" in capsys.readouterr().err
    assert main([*run, "--tasks", "longbench_v2_choices", "--prompting", "cot"]) == 2
    assert "--prompting is no setting of the chosen tasks: longbench_v2 has it" in capsys.readouterr().err
