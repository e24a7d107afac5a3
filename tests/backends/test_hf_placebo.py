"""The placebo of an arm: the same computation in other chunks and batches, and nothing else."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from checkpoints import SHAPE, prompts, request, save_model
from test_hf_answers import logprob_tolerance, spy
from transformers import LlamaConfig

from anchoreval import evaluate
from anchoreval.arms.arm import parse_arm
from anchoreval.backends.hf.answer import Answering
from anchoreval.backends.hf.backend import HfBackend
from anchoreval.backends.hf.batches import Limits
from anchoreval.errors import UnsupportedArm

pytestmark = pytest.mark.numeric
REQUESTS = [request(str(i), ids, 6, reference=(9, 8, 7)) for i, ids in enumerate(prompts(8, 100, 300))]
SETTINGS: dict[str, Any] = {"chunk_tokens": 64, "batch_tokens": 16_384, "rows": 32}


def answers(backend: HfBackend, arm: str) -> dict[str, tuple[Any, ...]]:
    with backend.under(parse_arm(arm)):
        return {o.sample_id: (o.token_ids, o.reference_logprob) for o in backend.answer(REQUESTS)}


@pytest.fixture(scope="module")
def backend(llama: Path) -> HfBackend:
    return HfBackend.open(str(llama), **SETTINGS)


def test_a_placebo_is_computed_in_other_shapes_and_differs_by_rounding_alone(llama: Path) -> None:
    """Whether another shape moves a bit is the processor's affair: that others were computed is what must hold."""
    backend = HfBackend.open(str(llama), **SETTINGS)
    plain, chunks = answers(backend, "fp32"), set()
    spy(backend, lambda call: chunks.add(call["input_ids"].shape[1]))
    placebo = answers(backend, "fp32~placebo")
    assert max(chunks) == 24 < SETTINGS["chunk_tokens"]
    for name, (tokens, logprob) in plain.items():
        assert placebo[name][0] == tokens
        assert placebo[name][1] == pytest.approx(logprob, abs=logprob_tolerance(backend.model, 3))


def test_after_a_placebo_the_arm_has_its_bits_back(backend: HfBackend) -> None:
    before = answers(backend, "bf16")
    answers(backend, "bf16~placebo")
    assert answers(backend, "bf16") == before


def test_a_placebo_is_what_a_backend_of_those_limits_computes(backend: HfBackend, llama: Path) -> None:
    limits = Limits(**SETTINGS).placebo()
    assert (limits.chunk_tokens, limits.batch_tokens, limits.rows) == (24, 6144, 12)
    other = HfBackend.open(str(llama), chunk_tokens=24, batch_tokens=6144, rows=12)
    assert answers(other, "bf16") == answers(backend, "bf16~placebo")


def test_documents_of_an_arm_are_not_reused_by_its_placebo(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = HfBackend.open(str(llama), **SETTINGS)
    ids = REQUESTS[0].token_ids
    half = len(ids) // 2
    segments = (-1, *[0] * (half - 1), *[1] * (len(ids) - half - 8), *[2] * 8)
    roles: Any = ("document", "document", "query")
    split = dataclasses.replace(REQUESTS[0], segment_ids=segments, roles=roles)
    chunks: list[int] = []
    start = Answering.__init__

    def spied(self: Answering, *given: Any, **named: Any) -> None:
        start(self, *given, **named)
        chunks.append(self._limits.chunk_tokens)

    monkeypatch.setattr(Answering, "__init__", spied)
    for arm in ("anchor/fp32", "anchor/fp32~placebo"):
        with backend.under(parse_arm(arm)):
            list(backend.answer([split]))
            assert backend.documents.reused_tokens == 0
    assert chunks == [64, 24]


def test_a_model_that_computes_whole_prompts_has_no_placebo(tmp_path: Path) -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    folder = save_model(tmp_path, LlamaConfig(**{**SHAPE, "rope_parameters": rope, "max_position_embeddings": 128}))
    backend = HfBackend.open(str(folder), **SETTINGS)
    with pytest.raises(UnsupportedArm, match="no placebo"), backend.under(parse_arm("native~placebo")):
        pass


def test_the_header_says_what_a_placebo_was_computed_in(backend: HfBackend) -> None:
    with backend.under(parse_arm("bf16~placebo")) as applied:
        assert applied["computed_in"] == {"chunk_tokens": 24, "batch_tokens": 6144, "rows": 12}
    with backend.under(parse_arm("bf16")) as applied:
        assert "computed_in" not in applied


def test_identical_settings_give_identical_bytes_on_a_cpu(tmp_path: Path) -> None:
    made = []
    for name in ("one", "two"):
        run = evaluate(
            "anchor-tiny",
            "ruler/niah_single_1",
            lengths=[512],
            arms="bf16",
            limit=4,
            placebo=True,
            output=tmp_path / name,
            backend_args={"device": "cpu"},
        )
        made.append([dataclasses.replace(record, seconds=0.0) for record in run.records])
    assert made[0] == made[1]
    assert [record.arm for record in made[0]].count("bf16~placebo") == 4
