"""Document masks in vLLM against transformers with the mask written out: chunked, batched, prefix-cached."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

pytest.importorskip("vllm", reason="VLLM ABSENT: nothing was computed by vLLM (make test-vllm)")

from engines import Engine, Reference, checkpoint, engine, picked
from layouts import laid_out, plan_of, positions_of

from anchoreval.arms.patterns import mask
from anchoreval.arms.rope import parse_level
from anchoreval.errors import UnsupportedArm
from anchoreval.vllm_plugin.settings import engine_settings

pytestmark = pytest.mark.filterwarnings("ignore")

LEVEL = "bf16-table"  # so that level, plan and mask are proved together
PROMPTS = [laid_out(), laid_out((5, 33, 40, 31, 50, 7), seed=1), laid_out((40, 100, 64, 64, 32, 9), seed=2)]
SCHEMES = ("contiguous", "anchor-reset", "anchor-shift:1500")
PLANS = [plan_of(blocks, scheme) for (_, blocks), scheme in zip(PROMPTS, SCHEMES, strict=True)]
TOKENS = [tokens for tokens, _ in PROMPTS]
NEW = 4
# Measured: 1e-5 to 5e-5 in the mean, the order of fp32 sums and now and then a unit of a bf16 product; another
# mask moves these by 0.1 and more
MEAN, MOST = 2e-4, 2e-2


@pytest.fixture(scope="module")
def reference(llama: Path) -> Reference:
    return Reference(llama)


@pytest.fixture(scope="module", params=["anchor", "intra-doc"])
def masked(request: pytest.FixtureRequest, llama: Path) -> Iterator[tuple[str, Engine]]:
    """A pattern and an engine under it, which computes 128 tokens at a time."""
    settings = engine_settings(llama, parse_level(LEVEL), True, request.param)
    with engine(llama, "float32", settings, max_num_batched_tokens=128, enable_chunked_prefill=True) as made:
        yield request.param, made


def expected(reference: Reference, index: int, pattern: str, generated: tuple[int, ...]) -> torch.Tensor:
    """Log-probabilities [tokens, vocabulary] of a prompt and what was generated, in transformers."""
    tokens, blocks = PROMPTS[index]
    ids = [*tokens, *generated]
    positions = positions_of(blocks, SCHEMES[index], len(generated))
    return reference.logprobs(ids, LEVEL, positions, mask(blocks, pattern, len(ids)))


def near(got: torch.Tensor, want: torch.Tensor) -> bool:
    return float((got - want).abs().mean()) < MEAN and float((got - want).abs().max()) < MOST


def test_a_batch_in_chunks_is_transformers_under_the_mask(masked: tuple[str, Engine], reference: Reference) -> None:
    pattern, vllm = masked
    answers = vllm.answers(TOKENS, PLANS, ["a", "b", "c"], NEW)
    for index, answer in enumerate(answers):
        table = expected(reference, index, pattern, answer.generated)
        ids = [*TOKENS[index], *answer.generated]
        scored, prompt = picked(table[:-1], ids[1:]), len(TOKENS[index])
        assert near(answer.prompt, scored[: prompt - 1])
        assert near(answer.generated_logprobs, scored[prompt - 1 :])
        assert list(answer.generated) == table[prompt - 1 : -1].argmax(-1).tolist()
        others = {"full", "intra-doc", "anchor"} - {pattern}
        for other in others:
            apart = picked(expected(reference, index, other, answer.generated)[:-1], ids[1:])[: prompt - 1]
            assert float((answer.prompt - apart).abs().mean()) > 0.05


def test_cached_prefixes_keep_their_documents(masked: tuple[str, Engine], reference: Reference) -> None:
    pattern, vllm = masked
    vllm.llm.reset_prefix_cache()
    for round_number in range(2):
        answers = vllm.answers(TOKENS, PLANS, ["a", "b", "c"], NEW, score=False)
        for index, answer in enumerate(answers):
            assert bool(answer.cached) == bool(round_number)
            table = expected(reference, index, pattern, answer.generated)
            assert near(answer.generated_logprobs, picked(table[len(TOKENS[index]) - 1 :], answer.generated))


def test_a_prompt_without_a_plan_sees_everything(masked: tuple[str, Engine], reference: Reference) -> None:
    answer = masked[1].answers([TOKENS[0]], salts=["none"])[0]
    assert near(answer.prompt, reference.prompt(TOKENS[0], LEVEL))


def test_says_names_the_masking_layers(masked: tuple[str, Engine]) -> None:
    said = masked[1].says()
    assert said["attention"] == ["CPU_ATTN (DocumentsImpl)"]
    assert said["detected"] == LEVEL
    assert said["asked"] == {"rope": LEVEL, "plans": True, "documents": masked[0]}


def test_sliding_windows_are_refused_by_the_layers_themselves(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, "mistral")
    settings = engine_settings(folder, parse_level("native"), True, "anchor")
    settings["hf_overrides"]["sliding_window"] = 64
    with pytest.raises(UnsupportedArm, match="a sliding window"):
        Engine(folder, "float32", settings)
