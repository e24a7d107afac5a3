"""Prompts in as few passes as memory allows: the stock forward, shared at any token, no mask of length by length."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import SHAPE, prompts, request, save_model
from test_hf_answers import logprob_tolerance, outputs, spy, stock_logprob, stock_tokens
from torch.nn import functional
from transformers import MistralConfig

from anchoreval.backends.hf.answer import Answering
from anchoreval.backends.hf.backend import HfBackend
from anchoreval.backends.hf.batches import Limits
from anchoreval.backends.hf.network import LowerRight
from anchoreval.schema import Continuation

pytestmark = pytest.mark.numeric
PASSES = Limits(pass_tokens=64)


def answering(backend: HfBackend, limits: Limits) -> Answering:
    return Answering(backend._network, backend._tokenizer, frozenset(), limits, lambda: None)


def calls(backend: HfBackend) -> list[tuple[int, int]]:
    """Shapes of the input and, once it is called, of every pass after."""
    seen: list[tuple[int, int]] = []
    spy(backend, lambda call: seen.append(tuple(call["input_ids"].shape)))
    return seen


@pytest.fixture(scope="module")
def backend(llama: Path) -> HfBackend:
    return HfBackend.open(str(llama))


def test_a_prompt_and_its_reference_are_one_pass(llama: Path, backend: HfBackend) -> None:
    spied = HfBackend.open(str(llama))
    (prompt, reference), seen = prompts(2, 300, 300), calls(spied)
    (made,) = spied.answer([request("one", prompt, 1, reference=reference[:9])])
    assert seen == [(1, 308)]
    want = stock_logprob(backend.model, prompt, reference[:9])
    assert made.reference_logprob == pytest.approx(want, abs=logprob_tolerance(backend.model, 9))
    seen.clear()
    (made,) = spied.answer([request("long", prompt, 1, reference=reference)])
    assert seen == [(1, 363), (1, 64), (1, 64), (1, 64), (1, 44)]
    want = stock_logprob(backend.model, prompt, reference)
    assert made.reference_logprob == pytest.approx(want, abs=logprob_tolerance(backend.model, 300))


def test_an_answer_behind_a_reference_is_what_generate_says(backend: HfBackend) -> None:
    asked = [request(str(i), ids, 10, reference=(9, 8, 7, 6)) for i, ids in enumerate(prompts(9, 20, 300))]
    said = {name: list(output.token_ids) for name, output in outputs(backend, asked).items()}
    assert said == {each.sample_id: stock_tokens(backend.model, each.token_ids) for each in asked}


def test_what_two_prompts_begin_with_is_shared_to_the_token(backend: HfBackend) -> None:
    head = prompts(1, 200, 200)[0]
    asked = [request(str(i), head + (40 + i,) * (3 + i), 4, (9, 8)) for i in range(5)]
    passes = answering(backend, PASSES)
    made = {output.sample_id: output for output in passes.outputs(asked)}
    assert passes.reused_tokens == 4 * 200
    assert passes.prefilled_tokens == 200 + sum(3 + i for i in range(5))
    for each in asked:
        want = stock_logprob(backend.model, each.token_ids, each.reference_ids)
        assert made[each.sample_id].reference_logprob == pytest.approx(want, abs=logprob_tolerance(backend.model, 2))
        assert list(made[each.sample_id].token_ids) == stock_tokens(backend.model, each.token_ids)[:4]


def test_a_beginning_under_an_eighth_is_computed_again_and_its_prompt_is_the_stock_pass(backend: HfBackend) -> None:
    head, *rest = prompts(3, 30, 30)
    asked = [request(str(i), head + tail * 8, 1) for i, tail in enumerate(rest)]
    passes = answering(backend, replace(PASSES, pass_tokens=512))
    list(passes.outputs(asked))
    assert passes.reused_tokens == 0
    assert PASSES.shared(head, (*head, *[5] * 210)) == 30
    assert PASSES.shared(head, (*head, *[5] * 211)) == 0


def test_the_longest_common_beginning_is_found_whatever_the_step() -> None:
    first = tuple(range(1_000))
    for alike in (0, 1, 7, 500, 998, 999):
        second = (*first[:alike], -1, *first[alike + 1 :])
        assert Limits(1).shared(first, second) == alike
        assert Limits(64).shared(first, second) == alike // 64 * 64
        assert PASSES.shared(first, second) == (alike if alike >= 500 else 0)
    assert Limits(1).shared(first, first) == 999


def test_a_prompt_longer_than_a_pass_takes_several_and_no_square_mask(
    backend: HfBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[tuple[int, ...]] = []
    stock = functional.scaled_dot_product_attention

    def watched(query: Any, key: Any, value: Any, attn_mask: Any = None, **rest: Any) -> Any:
        if attn_mask is not None and not isinstance(attn_mask, LowerRight):
            sizes.append(tuple(attn_mask.shape[-2:]))
        return stock(query, key, value, attn_mask=attn_mask, **rest)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", watched)
    (prompt,) = prompts(1, 1_500, 1_500)
    passes = answering(backend, Limits(pass_tokens=900))
    (made,) = passes.outputs([request("long", prompt, 1, (9, 8, 7))])
    assert set(sizes) == {(512, 1_412), (90, 1_502)}
    want = stock_logprob(backend.model, prompt, (9, 8, 7))
    assert made.reference_logprob == pytest.approx(want, abs=logprob_tolerance(backend.model, 3))


@pytest.mark.parametrize("step", [3, 16, 40])
def test_a_lower_right_mask_is_causality_counted_from_the_end(step: int) -> None:
    q, k, v = torch.randn(3, 1, 2, 100, 8, generator=torch.Generator().manual_seed(0))
    want = functional.scaled_dot_product_attention(*(x.double() for x in (q, k, v)), is_causal=True)[:, :, -40:]
    mask = LowerRight.of(40, 100, q.device, step)
    for _ in range(2):  # its numbers are made once
        got = functional.scaled_dot_product_attention(q[:, :, -40:], k, v, attn_mask=mask)
        assert torch.allclose(got.double(), want, atol=2.0**-18)
    assert mask.floats is not None and mask.floats.shape == (step, 100)
    assert mask.shape == (1, 1, 40, 100) and mask.dtype == torch.bool
    assert (mask & True).equal(torch.ones(40, 100, dtype=torch.bool).tril(60)[None, None])
    assert torch.where(mask, 0.0, -torch.inf)[0, 0, 0].isfinite().sum() == 61


def test_a_pass_that_does_not_fit_is_halved(llama: Path) -> None:
    backend = HfBackend.open(str(llama))
    seen = calls(backend)

    def limited(call: dict[str, Any]) -> None:
        if call["input_ids"].shape[1] > 600:
            raise torch.OutOfMemoryError("injected")

    spy(backend, limited)
    (prompt,) = prompts(1, 1_500, 1_500)
    (made,) = answering(backend, Limits(pass_tokens=2_048)).outputs([request("long", prompt, 1)])
    assert (made.finish, [tokens for _, tokens in seen]) == ("length", [512, 512, 476])


def test_an_answer_that_is_scored_comes_in_the_pass_of_its_prompt(llama: Path) -> None:
    backend = HfBackend.open(str(llama))
    (prompt,), seen = prompts(1, 700, 700), calls(backend)
    list(backend.answer([request("text", prompt, 0, (9, 8, 7))]))
    assert seen == [(1, 702)]


def test_the_only_choice_comes_in_the_pass_of_its_prompt(llama: Path, backend: HfBackend) -> None:
    spied = HfBackend.open(str(llama))
    (prompt,), seen, ids = prompts(1, 300, 300), calls(spied), (9, 8, 7, 6)
    for counted in (4, 2):
        asked = replace(request("one", prompt), max_new_tokens=0, choices=(Continuation(ids, counted),))
        (made,) = spied.answer([asked])
        want = stock_logprob(backend.model, (*prompt, *ids[: 4 - counted]), ids[4 - counted :])
        assert made.choices[0].logprob == pytest.approx(want, abs=logprob_tolerance(backend.model, counted))
    assert seen == [(1, 303), (1, 303)]


def test_the_length_of_a_pass_is_no_part_of_the_identity_and_chunks_are(llama: Path, tmp_path: Path) -> None:
    passes = HfBackend.open(str(llama))
    tokens = passes.limits.pass_tokens
    described = passes.describe()
    assert tokens is not None and tokens >= 512
    assert described["prefill"] == "few passes"
    assert described["throughput"] == {"batch_tokens": 32_768, "rows": 32, "pass_tokens": tokens}
    before = passes.fingerprint
    passes._limits = replace(passes._limits, pass_tokens=1_024)
    assert passes.fingerprint == before
    chunks = HfBackend.open(str(llama), chunk_tokens=512)
    assert chunks.describe()["prefill"] == {"chunk_tokens": 512} and chunks.fingerprint != before
    window = HfBackend.open(str(save_model(tmp_path, MistralConfig(**SHAPE, sliding_window=24))))
    assert window.describe()["prefill"] == {"chunk_tokens": 512}


def test_choices_behind_a_shared_context_equal_one_pass_each(backend: HfBackend) -> None:
    head, *tails = prompts(4, 90, 90)
    choices = tuple(Continuation(ids, len(ids)) for ids in ((9, 8), (7,), (6, 5, 4)))
    asked = [
        replace(request(str(i), head + tail[:5]), max_new_tokens=0, choices=choices) for i, tail in enumerate(tails)
    ]
    for each, output in zip(asked, sorted(answering(backend, PASSES).outputs(asked), key=by_id), strict=True):
        for choice, score in zip(choices, output.choices, strict=True):
            want = stock_logprob(backend.model, each.token_ids, choice.token_ids)
            assert score.logprob == pytest.approx(want, abs=logprob_tolerance(backend.model, 3))


def by_id(output: Any) -> str:
    return str(output.sample_id)
