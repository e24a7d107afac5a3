"""A job that is cut again and again ends all the same, whatever computes: what is on disk is not asked again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from standin import NAME, TINY, Rules, prompt_of, standing_in

from anchoreval import evaluate
from anchoreval.backends.fake import FakeBackend
from anchoreval.errors import RunError
from anchoreval.records.folder import RunFolder
from anchoreval.records.run import Run, load_run
from anchoreval.runs import prompts as made
from anchoreval.runs.verify.records import findings
from anchoreval.schema import Output, Record, Request, Sample

TASKS = "ruler/vt,ruler/niah_single_1"


@contextmanager
def cut_after(records: int) -> Iterator[None]:
    """Every run is stopped once so many more records are on disk."""
    stock, left = RunFolder.append, records

    def append(self: RunFolder, record: Record, *logprobs: Any) -> None:
        nonlocal left
        if left == 0:
            raise KeyboardInterrupt
        stock(self, record, *logprobs)
        left -= 1

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunFolder, "append", append)
        yield


def run(output: Path, limit: int, tasks: str = TASKS, **changes: Any) -> Run:
    asked: dict[str, Any] = {"lengths": [512], "rope": "bf16,fp32", "backend": "fake", "haystack": "generated"}
    return evaluate(changes.pop("model", "anchor-tiny"), tasks, limit=limit, output=output, **asked | changes)


def in_pieces(every: int, most: int, output: Path, limit: int, **changes: Any) -> Run:
    """The run, stopped whenever `every` more records are on disk, in `most` calls at the most."""
    for _ in range(most):
        with cut_after(every), suppress(KeyboardInterrupt):
            return run(output, limit, **changes)
    raise AssertionError(f"no end after {most} calls")


def differences(path: Path) -> list[str]:
    return [str(finding) for finding in findings(path) if finding.differs]


@pytest.mark.parametrize(
    ("every", "changes"),
    [(1, {"limit": 3}), (3, {"placebo": True}), (8, {}), (8, {"tasks": "ruler/vt", "limit": 64, "until": "40pt@90%"})],
    ids=["every record", "every third, with a placebo", "every eighth", "every eighth, until a verdict"],
)
def test_a_run_that_is_cut_every_few_records_ends_and_asks_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: int, changes: dict[str, Any]
) -> None:
    asked, stock = [], FakeBackend.answer

    def counted(self: FakeBackend, requests: Sequence[Request]) -> Iterator[Output]:
        for request in requests:
            asked.append(request.sample_id)
            yield from stock(self, [request])

    monkeypatch.setattr(FakeBackend, "answer", counted)
    asked_for = {"limit": 6} | changes
    whole = run(tmp_path / "whole", **asked_for)
    asked.clear()
    calls = -(-len(whole.records) // every)
    pieces = in_pieces(every, calls, tmp_path / "pieces", **asked_for)
    # The answer that comes in the moment of a cut is not on disk.
    assert len(asked) == len(whole.records) + calls - 1
    assert [replace(each, seconds=0) for each in pieces.records] == [replace(each, seconds=0) for each in whole.records]
    assert pieces.header.get("until") == whole.header.get("until") and not differences(pieces.path)


@pytest.mark.numeric
def test_a_run_on_hf_that_is_cut_computes_the_rest_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from anchoreval.backends.hf.backend import HfBackend

    sent: list[list[str]] = []
    stock = HfBackend.answer

    def noted(self: HfBackend, requests: Sequence[Request]) -> Iterator[Output]:
        sent.append([request.sample_id for request in requests])
        return stock(self, requests)

    monkeypatch.setattr(HfBackend, "answer", noted)
    asked: dict[str, Any] = {"backend": "hf", "tasks": "ruler/niah_single_1", "rope": "native", "dtype": "float32"}
    asked["options"] = {"batch_tokens": 1600}  # about three prompts
    whole = run(tmp_path / "whole", 12, **asked)
    sent.clear()
    pieces = in_pieces(5, 3, tmp_path / "pieces", 12, **asked)
    assert [len(each) for each in sent] == [12, 7, 2] and len({*sent[1]} | {*sent[2]}) == 7
    assert not differences(pieces.path) and pieces.header["resumed"] == 2
    before = {record.key: record for record in whole.records}
    for record in pieces.records:
        other = before[record.key]
        # Other batches round otherwise: float32 at about 16 of magnitude, a thousand roundings a token.
        tolerance = 2e-3 * record.reference_tokens
        assert record.reference_logprob == pytest.approx(other.reference_logprob, abs=tolerance, rel=0)
        assert (record.output, record.score) == (other.output, other.score)


def test_a_run_against_a_server_that_is_cut_asks_nothing_that_is_on_disk(tmp_path: Path) -> None:
    rules = Rules()
    with standing_in(rules) as address:
        asked: dict[str, Any] = {
            "model": NAME,
            "tokenizer": str(TINY),
            "backend": "openai",
            "rope": "native",
            "options": {"base_url": address, "logprobs": False, "concurrency": 2},
        }
        there: set[str] = set()
        for call in range(1, 4):
            rules.bodies.clear()
            with cut_after(8), suppress(KeyboardInterrupt):
                result = run(tmp_path, 10, **asked)
                break
            prompts = {prompt_of(body) for body in rules.bodies}
            assert not prompts & there, "only what came in the moment of the cut may be asked again"
            there = prompts_on_disk(tmp_path, prompts | there)
            assert len(there) == 8 * call
    assert call == 3 and len(result.records) == 20 and not differences(result.path)


def prompts_on_disk(output: Path, prompts: set[str]) -> set[str]:
    """Those of the prompts that have a record."""
    (folder,) = output.glob("*/*")
    hashes = {record.prompt_sha256 for record in load_run(folder).records}
    return {text for text in prompts if hashlib.sha256(text.encode()).hexdigest() in hashes}


def test_prompts_that_have_their_answers_are_not_cut_into_tokens_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[str] = []
    stock = made.to_request

    def noted(sample: Sample, *given: Any, **named: Any) -> Request:
        sent.append(sample.id)
        return stock(sample, *given, **named)

    with cut_after(70), suppress(KeyboardInterrupt):
        run(tmp_path, 80, "niah/number", rope="native", settings={"depths": 10, "repeats": 8})
    monkeypatch.setattr(made, "to_request", noted)
    result = run(tmp_path, 80, "niah/number", rope="native", settings={"depths": 10, "repeats": 8})
    ids = [record.sample_id for record in result.records]
    assert len(ids) == 80 and sent == [ids[0], ids[64], *ids[70:]], "and the first of each group, to be compared"


def test_a_record_of_another_prompt_is_named_wherever_it_stands(tmp_path: Path) -> None:
    with cut_after(9), suppress(KeyboardInterrupt):
        run(tmp_path, 10, "ruler/vt", rope="native")
    (file,) = tmp_path.glob("*/*/records.jsonl")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows[4] |= {"prompt_sha256": "0" * 64, "key": rows[4]["key"][::-1]}
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    before = file.read_bytes()
    with pytest.raises(RunError, match="ruler/vt@512#4 under native stands there with another prompt"):
        run(tmp_path, 10, "ruler/vt", rope="native")
    assert file.read_bytes() == before
