"""The same command over a finished run: no prompt is made again, and what changed is noticed all the same."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from anchoreval import cards, evaluate
from anchoreval import suites as data
from anchoreval.backends.fake import FakeBackend
from anchoreval.cards import load_tasks
from anchoreval.errors import RunError
from anchoreval.records.header import HEADER
from anchoreval.records.lines import RECORDS
from anchoreval.records.run import Run
from anchoreval.schema import Sample
from anchoreval.suites.recipe import Recipe

TINY = Path(__file__).parents[2] / "models" / "anchor-tiny"


@pytest.fixture(scope="module", autouse=True)
def _cards_read_once() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cards, "load_tasks", cache(load_tasks))
        yield


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Ids of the samples whose prompts were made, in order."""
    ids: list[str] = []
    for name, generator in list(data.generators().items()):

        def noted(recipe: Recipe, make: Any = generator.make) -> Iterator[Sample]:
            for sample in make(recipe):
                ids.append(sample.id)
                yield sample

        monkeypatch.setitem(data.generators(), name, replace(generator, make=noted))
    return ids


def run(output: Path, limit: int | None = 3, tasks: str = "ruler/vt,ruler/niah_single_1", **changes: Any) -> Run:
    asked: dict[str, Any] = {"lengths": [512], "backend": "fake", "rope": "bf16,fp32"} | changes
    return evaluate(asked.pop("model", "anchor-tiny"), tasks, limit=limit, output=output, **asked)


def content(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


@pytest.mark.parametrize("changes", [{}, {"tasks": "ruler/vt", "limit": 64, "until": "40pt@90%"}, {"placebo": True}])
def test_a_finished_run_makes_no_prompt_again_and_stays_as_it_is(
    tmp_path: Path, made: list[str], changes: dict[str, Any]
) -> None:
    first = run(tmp_path, **changes)
    before = content(first.path)
    assert made
    made.clear()
    totals: list[str] = []
    again = run(tmp_path, tell=totals.append, **changes)
    assert again == first and content(first.path) == before and not made
    assert json.dumps(again.header) == json.dumps(first.header)  # boards show it as it stands


def test_what_was_left_out_is_said_again(tmp_path: Path, made: list[str]) -> None:
    told: list[list[str]] = [[], []]
    for lines in told:
        made.clear()
        run(tmp_path, 1, "ruler/niah*", lengths=[300], rope="native", haystack="generated", tell=lines.append)
    assert told[0] == told[1] and any("left out: " in line for line in told[0]) and not made


def test_a_finished_cell_makes_its_first_prompt_alone(tmp_path: Path, made: list[str]) -> None:
    def dying(self: FakeBackend, requests: Any) -> Iterator[Any]:
        if requests[0].sample_id.startswith("ruler/niah"):
            raise KeyboardInterrupt
        return stock(self, requests)

    stock = FakeBackend.answer
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(FakeBackend, "answer", dying)
        run(tmp_path)
    made.clear()
    assert len(run(tmp_path).records) == 12
    assert sorted(made) == [
        "ruler/niah_single_1@512#0",
        *[f"ruler/niah_single_1@512#{i}" for i in (1, 2)],
        "ruler/vt@512#0",
    ]


def test_a_changed_file_of_the_model_begins_a_new_run(tmp_path: Path) -> None:
    shutil.copytree(TINY, tmp_path / "m")
    first = run(tmp_path / "r", model=str(tmp_path / "m"))
    file = tmp_path / "m" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"note": "mended"}))
    told: list[str] = []
    other = run(tmp_path / "r", model=str(tmp_path / "m"), tell=told.append)
    assert other.path != first.path and any("config.json changed" in line for line in told)


@pytest.mark.parametrize("changes", [{"seed": 7}, {"limit": 4}, {"anchor": "none"}, {"max_length": 1000}])
def test_what_is_asked_otherwise_is_no_finished_run(tmp_path: Path, made: list[str], changes: dict[str, Any]) -> None:
    run(tmp_path)
    made.clear()
    run(tmp_path, **changes)
    assert made


def test_a_changed_source_text_begins_a_new_run_and_the_same_text_none(tmp_path: Path, made: list[str]) -> None:
    squad = tmp_path / "texts" / "squad.json"
    squad.parent.mkdir()
    squad.write_text(json.dumps(articles("dusk")))
    asked: dict[str, Any] = {"tasks": "ruler/qa_1", "data_dir": squad.parent, "haystack": "published"}
    first = run(tmp_path / "r", **asked)
    assert first.header["source_files"]["squad.json"]["sha256"] == hashlib.sha256(squad.read_bytes()).hexdigest()
    made.clear()
    assert run(tmp_path / "r", **asked) == first and not made
    squad.write_text(json.dumps(articles("dawn")))
    told: list[str] = []
    other = run(tmp_path / "r", tell=told.append, **asked)
    assert other.path != first.path and any("the source texts changed" in line for line in told)


def articles(time: str) -> dict[str, Any]:
    """Forty paragraphs, each with its question, in the form of SQuAD."""
    rows = []
    for i in range(40):
        text = f"The ferry of harbour {i} leaves at {time} and carries {i + 3} crates of salt to the island."
        asked = {"id": str(i), "question": f"What does the ferry of harbour {i} carry?", "is_impossible": False}
        rows.append({"context": text, "qas": [asked | {"answers": [{"text": f"{i + 3} crates", "answer_start": 0}]}]})
    return {"data": [{"title": "Ferries", "paragraphs": rows}]}


def test_a_finished_run_that_was_changed_since_is_named(tmp_path: Path) -> None:
    path = run(tmp_path).path
    lines = (path / RECORDS).read_bytes().splitlines(keepends=True)
    (path / RECORDS).write_bytes(b"".join(lines[:-1]))
    with pytest.raises(RunError, match="changed since it finished"):
        run(tmp_path)


def test_headers_beside_that_are_none_are_no_reason_to_fail(tmp_path: Path) -> None:
    first = run(tmp_path)
    for number, text in enumerate(['{"identity": 3}', "[]", "{", json.dumps(dict(first.header) | {"arms": 3})]):
        (first.path.parent / str(number)).mkdir()
        (first.path.parent / str(number) / HEADER).write_text(text)
    assert run(tmp_path) == first
