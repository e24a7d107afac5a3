"""Position plans in vLLM against transformers with explicit position ids: chunked, batched, prefix-cached."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch

pytest.importorskip("vllm", reason="VLLM ABSENT: nothing was computed by vLLM (make test-vllm)")

from engines import Answer, Engine, Reference, checkpoint, engine, picked
from layouts import laid_out, plan_of, positions_of
from vllm.exceptions import VLLMValidationError

from anchoreval.arms.rope import parse_level
from anchoreval.errors import AnchorEvalError
from anchoreval.vllm_plugin.settings import engine_settings

pytestmark = pytest.mark.filterwarnings("ignore")

SCHEMES = ("contiguous", "shift:5000", "anchor-shift:3000", "reset", "anchor-reset")
TOKENS, BLOCKS = laid_out()
PLANS = [plan_of(BLOCKS, scheme) for scheme in SCHEMES]
NEW = 4
NATIVE = parse_level("native")
# Measured: 1e-5 in the mean and 4e-4 at most, the order of fp32 sums; a wrong position moves these by 0.5
MEAN, MOST = 1e-4, 5e-3


@pytest.fixture(scope="module")
def reference(llama: Path) -> Reference:
    return Reference(llama)


@pytest.fixture(scope="module")
def planned(llama: Path) -> Iterator[Engine]:
    """Stock arithmetic with plans, chunks of 128 tokens, and a table for positions up to 8,191."""
    settings = engine_settings(llama, NATIVE, True, None, positions=8192)
    with engine(llama, "float32", settings, max_num_batched_tokens=128, enable_chunked_prefill=True) as made:
        yield made


def expected(
    reference: Reference, scheme: str, generated: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """Prompt and answer log-probabilities in transformers, and the tokens it would have generated."""
    ids = [*TOKENS, *generated]
    table = reference.logprobs(ids, positions=positions_of(BLOCKS, scheme, len(generated)))
    scored = picked(table[:-1], ids[1:])
    return scored[: len(TOKENS) - 1], scored[len(TOKENS) - 1 :], table[len(TOKENS) - 1 : -1].argmax(-1).tolist()


def near(got: torch.Tensor, want: torch.Tensor) -> bool:
    return float((got - want).abs().mean()) < MEAN and float((got - want).abs().max()) < MOST


def test_a_batch_of_plans_in_chunks_is_transformers_with_position_ids(planned: Engine, reference: Reference) -> None:
    answers = planned.answers([TOKENS] * 5, PLANS, SCHEMES, NEW)
    contiguous = answers[0].prompt
    for scheme, answer in zip(SCHEMES, answers, strict=True):
        prompt, made, best = expected(reference, scheme, answer.generated)
        assert near(answer.prompt, prompt), scheme
        assert near(answer.generated_logprobs, made), scheme
        assert list(answer.generated) == best, scheme
        if not scheme.startswith(("contiguous", "shift")):  # a shift of all positions changes nothing, by rights
            assert float((answer.prompt - contiguous).abs().mean()) > 0.05, scheme


def test_cached_prefixes_go_on_at_the_plans_positions(planned: Engine, reference: Reference) -> None:
    planned.llm.reset_prefix_cache()
    for round_number in range(2):
        answers = planned.answers([TOKENS] * 5, PLANS, SCHEMES, NEW, score=False)
        for scheme, answer in zip(SCHEMES, answers, strict=True):
            assert answer.cached == (352 if round_number else 0), scheme  # 11 blocks of 32 out of 361 tokens
            _, made, best = expected(reference, scheme, answer.generated)
            assert near(answer.generated_logprobs, made), scheme
            assert list(answer.generated) == best, scheme


def wrong(reference: Reference, answers: Sequence[Answer]) -> list[str]:
    return [
        scheme
        for scheme, answer in zip(SCHEMES, answers, strict=True)
        if not near(answer.generated_logprobs, expected(reference, scheme, answer.generated)[1])
    ]


def test_without_a_salt_keys_rotated_for_another_plan_are_reused(planned: Engine, reference: Reference) -> None:
    for salts, wrongs in ((None, {"anchor-shift:3000", "reset", "anchor-reset"}), (SCHEMES, set())):
        planned.llm.reset_prefix_cache()
        first = None if salts is None else [salts[0]]
        planned.answers([TOKENS], [PLANS[0]], first, NEW, score=False)  # contiguous, into the cache
        answers = planned.answers([TOKENS] * 5, PLANS, salts, NEW, score=False)
        assert set(wrong(reference, answers)) - {"shift:5000"} == wrongs


def test_tokens_behind_a_plan_follow_its_last_position(planned: Engine, reference: Reference) -> None:
    reference_tokens = (40, 50, 60, 70, 80)  # teacher-forced behind the prompt
    ids = [*TOKENS, *reference_tokens]
    answer = planned.answers([ids], [plan_of(BLOCKS, "anchor-reset")], ["behind"])[0]
    assert near(answer.prompt, reference.prompt(ids, positions=positions_of(BLOCKS, "anchor-reset", 5)))


@pytest.mark.parametrize(
    ("plan", "named"),
    [
        ([0, 1], "in threes"),
        (["0", 1, -1], "whole numbers"),
        ([0, 0, -1], "tokens from 1 on"),
        ([-1, 1, -1], "positions are from 0 on"),
        ([0, 1, -3], "documents from -2 on"),
        ([0, 2, -2], "the anchor is the first token"),
        ([0, 1, 3, 0, 1, -2], "the anchor is the first token"),
        ([0, 1, 3, 0, 1, 4, 0, 1, 3], "has ended before"),
    ],
)
def test_a_malformed_plan_fails_its_call_and_no_other(planned: Engine, plan: list[int], named: str) -> None:
    with pytest.raises(VLLMValidationError, match=named):
        planned.answers([TOKENS], [plan])
    assert planned.answers([TOKENS], [PLANS[0]], ["again"])[0].generated


def test_a_plan_that_is_longer_than_its_prompt_fails_its_call_and_no_other(planned: Engine) -> None:
    with pytest.raises(VLLMValidationError, match="between 0 and the prompt length"):
        planned.answers([TOKENS[:300]], [PLANS[0]])
    assert planned.answers([TOKENS], [PLANS[0]], ["again"])[0].generated


def test_a_plan_beyond_the_table_fails_its_call_and_no_other(planned: Engine) -> None:
    with pytest.raises(VLLMValidationError, match="reaches position 8192, and the rotary table ends at 8191"):
        planned.answers([TOKENS], [[8192, 1, -1]], new=1)
    with pytest.raises(VLLMValidationError, match="reaches position 8192"):
        planned.answers([TOKENS], [[8189, 1, -1]], new=4)
    assert planned.answers([TOKENS[:1]], [[8188, 1, -1]], ["again"], new=4)[0].generated


# From here on other engines are built. Closing one ends the process groups of all: `planned` answers no more.


def test_a_request_without_a_plan_is_the_stock_engine(llama: Path, planned: Engine) -> None:
    mine = planned.answers([TOKENS], salts=["none"])[0]
    with engine(llama, max_num_batched_tokens=128, enable_chunked_prefill=True) as stock:
        theirs = stock.answers([TOKENS])[0]
    assert torch.equal(mine.prompt, theirs.prompt)
    assert mine.generated == theirs.generated


@pytest.mark.parametrize("kind", ["mistral", "qwen2", "qwen3"])
def test_other_architectures_take_plans(tmp_path: Path, kind: str) -> None:
    folder = checkpoint(tmp_path, kind)
    with engine(folder, "float32", engine_settings(folder, parse_level("fp32"), True, None)) as made:
        answer = made.answers([TOKENS], [plan_of(BLOCKS, "anchor-reset")])[0]
    other = Reference(folder)
    assert near(answer.prompt, other.prompt(TOKENS, "fp32", positions=positions_of(BLOCKS, "anchor-reset")))


def test_plans_without_their_worker_are_refused_when_the_engine_starts(llama: Path) -> None:
    with pytest.raises(AnchorEvalError, match="worker_cls"):
        Engine(llama, "float32", {"additional_config": {"anchoreval": {"plans": True}}})
