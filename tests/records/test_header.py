"""A header is its JSON, with every fact of it as an attribute; one that says nothing is empty in each."""

from __future__ import annotations

from pathlib import Path

import pytest

from anchoreval.errors import RunError
from anchoreval.records.header import TWICE, Header
from anchoreval.records.run import Run, header_alone

RESULTS = Path(__file__).parents[2] / "leaderboards" / "results" / "anchor-tiny"


@pytest.mark.parametrize("name", ["3ea75cb9ef6b0c93", "31bf25797b7ffa79"])
def test_headers_of_both_formats_say_tasks_arms_and_cells(name: str) -> None:
    run = header_alone(RESULTS / name)
    header = run.header
    assert (run.name, run.model, header.form) == (name, "anchor-tiny", "base")
    assert header.arms == [row["name"] for row in header["arms"]] and header.tasks == list(header.cards)
    assert header.scorers == {task: card["scorer"] for task, card in header.cards.items()}
    assert header.asked == {(row["task"], row["length"]): row["samples"] for row in header["asked"]}
    assert header.samples == sum(header.asked.values()) and {length for _, length in header.asked} <= {*header.lengths}
    assert run.parts.identity.seed == header["seed"] and run.parts is run.parts


def test_a_header_that_says_nothing_is_empty() -> None:
    names = [*vars(Header()), *(name for name, part in vars(Header).items() if isinstance(part, property))]
    assert len(names) > 10 and not any(getattr(Header(), name) for name in names)
    assert not Header().incomparable() and not Header().incomparable_words() and Header({"a": 1}).at("a", "b") is None
    with pytest.raises(RunError, match=r"run/header\.json: run: field required"):
        _ = Run(Path("run"), Header(), ()).parts


def test_plain_json_becomes_a_header() -> None:
    run = Run(Path("place"), Header({"arms": ["bf16", {"name": "fp32"}], "backend": {"server": {"api": "chat"}}}), ())
    assert (run.arms, run.name, run.header.form) == (("bf16", "fp32"), "place", "server")


def test_what_stands_twice_in_a_new_header_is_that_of_its_identity(tmp_path: Path) -> None:
    from anchoreval import evaluate

    run = evaluate("anchor-tiny", "ruler/vt", lengths=[512], limit=1, backend="fake", output=tmp_path, seed=7)
    assert isinstance(run.header, Header) and run.header["seed"] == 7
    assert {name: run.header.get(name) for name in TWICE} == {name: run.header.identity.get(name) for name in TWICE}


def test_a_task_that_is_not_comparable_for_no_reason_is_named_all_the_same() -> None:
    assert (
        Header({"incomparable": {"ruler/qa_1": ""}, "tasks": ["ruler/qa_1"]}).incomparable_words() == "see header.json"
    )
