"""anchor-tiny, the embedded checkpoint: small, really retrieving, and sensitive to a damaged rotation."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch

from anchoreval import evaluate, load_run, paired
from anchoreval.cards import find_model

FOLDER = Path(find_model("anchor-tiny")[1].checkpoint)


def test_the_checkpoint_is_small_and_whole() -> None:
    sizes = [path.stat().st_size for path in FOLDER.iterdir()]
    assert sum(sizes) < 12e6
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {path.name for path in FOLDER.iterdir()}


@pytest.mark.slow
def test_it_retrieves_and_the_instrument_sees_a_damaged_rotation(tmp_path: Path) -> None:
    """Eight samples a cell: the floors lie far below the committed figures of 100 samples, far above chance (0)."""
    result = evaluate(
        "anchor-tiny",
        "ruler/niah_single_1,ruler/niah_single_2",
        lengths=[1024],
        arms="native,fp32,bf16-angle",
        limit=8,
        output=tmp_path,
    )
    scores = {
        arm: [record.score for record in result.records if record.arm == arm]
        for arm in ("native", "fp32", "bf16-angle")
    }
    means = {arm: sum(filter(None, values)) / len(values) for arm, values in scores.items()}
    assert means["native"] >= 0.75
    assert means["bf16-angle"] <= means["native"] - 0.5
    damage = paired(result.records, "bf16-angle", "native").pooled
    assert damage.p is not None and damage.p < 0.01


def test_on_a_float32_llama_the_detected_level_is_fp32_and_native_equals_it_bit_for_bit(tmp_path: Path) -> None:
    result = evaluate("anchor-tiny", "ruler/niah_single_1", lengths=[512], arms="native,fp32", limit=3, output=tmp_path)
    rope = result.header["backend"]["rope"]
    assert rope["detected"] == "fp32"
    by_arm = {(record.arm, record.index): (record.output, record.reference_logprob) for record in result.records}
    assert all(by_arm["native", index] == by_arm["fp32", index] for index in range(3))


def test_a_checkpoint_saved_elsewhere_runs_and_its_records_carry_another_key(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    copy = tmp_path / "my-llama"
    AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).save_pretrained(copy)
    AutoTokenizer.from_pretrained(FOLDER).save_pretrained(copy)
    runs = [
        evaluate(
            model, "ruler/vt", lengths=[512], limit=2, output=tmp_path / "runs", haystack="generated", dtype="float32"
        )
        for model in ("anchor-tiny", str(copy))
    ]
    assert runs[1].path.parent.name == "my-llama"
    assert [record.output for record in runs[0].records] == [record.output for record in runs[1].records]
    assert {record.key for record in runs[0].records}.isdisjoint(record.key for record in runs[1].records)


def test_the_same_run_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    def digest(name: str) -> str:
        evaluate("anchor-tiny", "ruler/niah_single_1", lengths=[512], arms="bf16", limit=4, output=tmp_path / name)
        (path,) = (tmp_path / name).glob("*/*")
        facts = [
            (record.key, record.output, record.reference_logprob, record.score) for record in load_run(path).records
        ]
        return hashlib.sha256(repr(facts).encode()).hexdigest()

    assert digest("one") == digest("two")
