"""Tokens and log-probabilities of the batched backend against stock transformers, one prompt at a time."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from agreement import assert_agree, logit_tolerance
from checkpoints import EOS, SHAPE, prompts, request, save_model
from transformers import (
    Gemma2Config,
    Gemma3TextConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Qwen3Config,
)

from anchoreval.backends.hf.backend import HfBackend
from anchoreval.schema import Output, Request, rounded

SMALL = {"chunk_tokens": 32, "batch_tokens": 2_048, "rows": 8}
NEW_TOKENS = 10
NEOX = {key: value for key, value in SHAPE.items() if key != "num_key_value_heads"}
GEMMA = {**SHAPE, "head_dim": 16, "sliding_window": 24, "query_pre_attn_scalar": 16}
CONFIGS: dict[str, tuple[Any, str]] = {
    "llama": (LlamaConfig(**SHAPE), "sdpa"),
    "llama eager": (LlamaConfig(**SHAPE), "eager"),
    "llama yarn": (
        LlamaConfig(
            **SHAPE,
            rope_parameters={
                "rope_type": "yarn",
                "rope_theta": 1e4,
                "factor": 8.0,
                "original_max_position_embeddings": 512,
            },
        ),
        "sdpa",
    ),
    "mistral, window 24": (MistralConfig(**SHAPE, sliding_window=24), "sdpa"),
    "qwen3": (Qwen3Config(**SHAPE, head_dim=16), "sdpa"),
    "gemma3, every sixth layer full": (Gemma3TextConfig(**{**GEMMA, "num_hidden_layers": 6}), "sdpa"),
    "gemma2, soft cap": (Gemma2Config(**GEMMA), "eager"),
    "gpt-neox": (GPTNeoXConfig(**NEOX), "sdpa"),
}


def asked(count: int = 14, longest: int = 150) -> list[Request]:
    return [
        request(str(i), ids, NEW_TOKENS, reference=ids[1 : 1 + i % 5])
        for i, ids in enumerate(prompts(count, 3, longest))
    ]


def open_hf(folder: Path, **options: Any) -> HfBackend:
    return HfBackend.open(str(folder), **{**SMALL, **options})


def outputs(backend: HfBackend, requests: list[Request]) -> dict[str, Output]:
    return {output.sample_id: output for output in backend.answer(requests)}


def bits(made: dict[str, Output]) -> dict[str, tuple[Any, ...]]:
    return {name: (o.token_ids, o.text, o.finish, o.reference_logprob) for name, o in made.items()}


def stock_tokens(model: Any, ids: tuple[int, ...]) -> list[int]:
    """What `generate` says after one unpadded prompt."""
    row = torch.tensor([ids])
    whole = model.generate(
        row, attention_mask=torch.ones_like(row), max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0
    )
    return whole[0, row.shape[1] :].tolist()


def plain_logits(model: Any) -> Callable[[Request, tuple[int, ...]], torch.Tensor]:
    """Logits `QV` of one pass over a prompt and what follows it, by a copy of the model in float64."""
    wide = copy.deepcopy(model).double()

    def of(r: Request, tokens: tuple[int, ...]) -> torch.Tensor:
        row = torch.tensor([(*r.token_ids, *tokens)])
        with torch.no_grad():
            return wide(row, attention_mask=torch.ones_like(row), use_cache=False).logits[0]

    return of


def stock_logprob(model: Any, prompt: tuple[int, ...], reference: tuple[int, ...]) -> float:
    """One pass over prompt and reference; log-softmax and sum in float64."""
    row = torch.tensor([(*prompt, *reference)])
    with torch.no_grad():
        logits_QV = model(row, attention_mask=torch.ones_like(row), use_cache=False).logits[0].double()
    rows = torch.arange(len(prompt) - 1, len(prompt) - 1 + len(reference))
    return float(logits_QV.log_softmax(-1)[rows, torch.tensor(reference)].sum())


def logprob_tolerance(model: Any, tokens: int) -> float:
    """How far two orders of fp32 summation may drive a summed log-probability apart: six standard deviations.

    A logit (below 10 here) passes through about 7 products per layer and the head, sums of up to
    `intermediate_size` terms whose roundings of 2**-24 add up as a random walk; a log-softmax takes the
    difference of two of them.
    """
    roundings = (7 * model.config.num_hidden_layers + 1) * model.config.intermediate_size
    return tokens * 6 * 2 * roundings**0.5 * 2.0**-24 * 10


@pytest.fixture(params=sorted(CONFIGS), scope="module")
def any_model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> HfBackend:
    config, kernel = CONFIGS[request.param]
    return open_hf(save_model(tmp_path_factory.mktemp("model"), config), kernel=kernel)


def test_ragged_batches_say_what_generate_says(any_model: HfBackend) -> None:
    made = outputs(any_model, asked())
    assert {r.sample_id: stock_tokens(any_model.model, r.token_ids) for r in asked()} == {
        name: list(output.token_ids) for name, output in made.items()
    }
    assert len({output.token_ids for output in made.values()}) > 10  # the models do not all say the same


def test_no_token_of_these_answers_is_so_near_a_tie_that_rounding_could_choose(any_model: HfBackend) -> None:
    """So answers in float32 are the same on every processor and in every batch, and are compared token by token."""
    logits, made = plain_logits(any_model.model), outputs(any_model, asked())
    for r in asked():
        answer = made[r.sample_id].token_ids
        best_Q2 = logits(r, answer)[len(r.token_ids) - 1 : -1].topk(2).values
        assert float((best_Q2[:, 0] - best_Q2[:, 1]).min()) > logit_tolerance(any_model.model)


def test_reference_logprobs_equal_one_full_pass_in_float64(any_model: HfBackend) -> None:
    made = outputs(any_model, asked())
    for r in (r for r in asked() if r.reference_ids):
        want = stock_logprob(any_model.model, r.token_ids, r.reference_ids)
        tolerance = logprob_tolerance(any_model.model, len(r.reference_ids))
        assert made[r.sample_id].reference_logprob == pytest.approx(want, abs=tolerance)
        assert tolerance < abs(want) / 1_000


@pytest.mark.parametrize("budget", [0, 1])
def test_a_long_reference_is_scored_in_pieces_to_the_same_sum(llama: Path, budget: int) -> None:
    backend = open_hf(llama)
    prompt, reference = prompts(2, 150, 150, seed=3)
    (made,) = backend.answer([request("long", prompt, budget, reference=reference)])
    want = stock_logprob(backend.model, prompt, reference)
    assert made.reference_logprob == pytest.approx(want, abs=logprob_tolerance(backend.model, len(reference)))
    assert made.token_logprobs is not None and len(made.token_logprobs) == 150
    assert math.fsum(made.token_logprobs) == pytest.approx(made.reference_logprob, abs=1e-9)
    assert list(map(rounded, made.token_logprobs)) == list(made.token_logprobs)
    if not budget:
        assert (made.text, made.finish, made.outcome) == ("", "scored", "answered")


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.half)])
def test_an_output_is_the_same_whatever_shares_its_batch(llama: Path, dtype: str) -> None:
    backend = open_hf(llama, dtype=dtype)
    rows: list[int] = []
    spy(backend, lambda call: rows.append(call["input_ids"].shape[0]))
    together = outputs(backend, asked())
    assert max(rows) > 4
    rows.clear()
    alone = {name: out for r in asked() for name, out in outputs(backend, [r]).items()}
    assert max(rows) == 4  # a row in company of fillers
    fives = outputs(open_hf(llama, dtype=dtype, rows=5), asked()[::-1])
    fresh = open_hf(llama, dtype=dtype).model
    for other in (alone, fives):
        assert_agree(asked(), together, other, plain_logits(fresh), logit_tolerance(fresh))


def test_finished_rows_leave_and_the_others_go_on_unchanged(llama: Path) -> None:
    backend = open_hf(llama)
    requests = asked(16, longest=100)
    whole = outputs(backend, requests)
    seen: list[int] = []
    spy(backend, lambda call: seen.append(call["input_ids"].shape[0]))
    stops = {name: (output.text[1 + int(name) % 6],) for name, output in whole.items() if len(output.text) > 7}
    cut = outputs(backend, [with_stop(r, stops.get(r.sample_id, ())) for r in requests])
    assert len(stops) > 8
    assert min(n for n in seen if n > 1) == 4 < max(seen) == 8
    for name, output in cut.items():
        assert whole[name].token_ids[: len(output.token_ids)] == output.token_ids
        if name in stops:
            assert output.text == whole[name].text[: whole[name].text.find(stops[name][0])]
            assert output.finish == "stop"


def test_any_end_token_ends_an_answer_and_is_not_shown(llama: Path) -> None:
    backend = open_hf(llama)
    free = outputs(backend, asked())
    ends = frozenset({free["3"].token_ids[4], free["5"].token_ids[2], EOS})
    backend._eos = ends
    for name, output in outputs(backend, asked()).items():
        want = list(free[name].token_ids)
        at = next((i for i, token in enumerate(want) if token in ends), None)
        assert list(output.token_ids) == (want if at is None else want[: at + 1])
        assert output.finish == ("length" if at is None else "stop")
        assert free[name].text.startswith(output.text)


def test_a_shared_prefix_is_prefilled_once_with_the_same_bits(llama: Path) -> None:
    from anchoreval.backends.hf.answer import Answering
    from anchoreval.backends.hf.batches import Limits

    head = prompts(1, 200, 200)[0]
    requests = [request(str(i), head + (40 + i,) * (3 + i), NEW_TOKENS, (9, 8)) for i in range(9)]
    for limits in (Limits(32, 2_048, 8), Limits(32, 1, 1)):  # rows of a batch; one row after the other
        backend = open_hf(llama)
        answering = Answering(backend._network, backend._tokenizer, backend._eos, limits, lambda: None)
        shared = bits({o.sample_id: o for o in answering.outputs(requests)})
        assert answering.reused_tokens == 8 * 192
        assert answering.prefilled_tokens == 200 + 8 * 8 + sum(3 + i for i in range(9))
        fresh = Limits(limits.chunk_tokens, limits.batch_tokens, limits.rows)
        alone: dict[str, Any] = {}
        for r in requests:
            one = Answering(backend._network, backend._tokenizer, backend._eos, fresh, lambda: None)
            alone |= bits({o.sample_id: o for o in one.outputs([r])})
        assert shared == alone


def test_no_mask_of_length_by_length_is_built(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[tuple[int, int]] = []
    stock = torch.nn.functional.scaled_dot_product_attention

    def watched(query: Any, key: Any, value: Any, attn_mask: Any = None, **rest: Any) -> Any:
        if attn_mask is not None:
            sizes.append((attn_mask.shape[0] * attn_mask.shape[-2], attn_mask.shape[-1]))
        return stock(query, key, value, attn_mask=attn_mask, **rest)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    outputs(open_hf(llama), [request(str(i), p, 4) for i, p in enumerate(prompts(6, 290, 300))])
    assert max(columns for _, columns in sizes) > 280
    assert max(rows for rows, _ in sizes) <= 32  # the chunk; decoding has one row per prompt


def test_packing_is_never_guessed_at(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import masking_utils

    def guess(*_: Any) -> None:
        raise AssertionError("transformers looked for packed sequences")

    monkeypatch.setattr(masking_utils, "find_packed_sequence_indices", guess)
    assert len(outputs(open_hf(llama), asked(4))) == 4


def test_out_of_memory_halves_the_batch_and_gives_the_same_outputs(llama: Path) -> None:
    backend = open_hf(llama)
    want = bits(outputs(backend, asked(16, 100)))
    seen: list[int] = []

    def limited(call: dict[str, Any]) -> None:
        rows = call["input_ids"].shape[0]
        seen.append(rows)
        if rows > 5:
            raise torch.OutOfMemoryError("injected")

    spy(backend, limited)
    assert bits(outputs(backend, asked(16, 100))) == want
    assert seen.count(8) == 1  # what did not fit is not tried again


def test_a_prompt_that_does_not_fit_alone_is_an_error_output_and_the_rest_go_on(llama: Path) -> None:
    backend = open_hf(llama)

    def limited(call: dict[str, Any]) -> None:
        if call["attention_mask"].shape[1] > 140:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    spy(backend, limited)
    requests = [request("short", prompts(1, 50, 50)[0]), request("long", prompts(1, 150, 150)[0])]
    made = outputs(backend, requests)
    assert (made["long"].finish, made["long"].why) == ("error", "out of memory with one row")
    assert made["short"].finish != "error"


def test_other_errors_of_the_model_are_not_taken_for_memory(llama: Path) -> None:
    backend = open_hf(llama)

    def broken(_: dict[str, Any]) -> None:
        raise RuntimeError("shapes do not match")

    spy(backend, broken)
    with pytest.raises(RuntimeError, match="shapes"):
        outputs(backend, asked(2))


def test_a_row_with_broken_logits_is_an_error_and_harms_no_other(llama: Path) -> None:
    backend = open_hf(llama)
    poisoned = 77
    requests = [
        request(str(i), tuple(5 if t == poisoned else t for t in r.token_ids), NEW_TOKENS)
        for i, r in enumerate(asked(8, 100))
    ]
    want = bits(outputs(backend, requests))
    bad = request("bad", (1, poisoned, 9) * 15, NEW_TOKENS)
    with torch.no_grad():
        backend.model.get_input_embeddings().weight[poisoned] = torch.nan
    made = bits(outputs(backend, [*requests, bad]))
    assert made.pop("bad")[2] == "error"
    same = [name for name in want if poisoned not in want[name][0]]
    assert len(same) > 4
    assert {name: made[name] for name in same} == {name: want[name] for name in same}


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_frequencies_that_grow_with_the_prompt_do_not_leak_into_the_next(kind: str, tmp_path: Path) -> None:
    rope: dict[str, Any] = {"rope_type": kind, "rope_theta": 1e4, "factor": 4.0}
    if kind == "longrope":
        rope |= {"short_factor": [1.0] * 8, "long_factor": [3.0] * 8, "original_max_position_embeddings": 64}
    shape = {**SHAPE, "max_position_embeddings": 64 if kind == "dynamic" else 256}
    backend = open_hf(save_model(tmp_path, LlamaConfig(**shape, rope_parameters=rope)))
    requests = [request(str(i), p, NEW_TOKENS, (9, 8, 7)) for i, p in enumerate(prompts(8, 70, 200))]
    requests.append(request("short", prompts(1, 20, 20)[0], NEW_TOKENS))
    whole = outputs(backend, requests)
    for r in requests:
        fresh = open_hf(tmp_path)
        assert bits({r.sample_id: whole[r.sample_id]}) == bits(outputs(fresh, [r]))
        assert list(whole[r.sample_id].token_ids) == stock_tokens(open_hf(tmp_path).model, r.token_ids)


def with_stop(asked: Request, stop: tuple[str, ...]) -> Request:
    return request(asked.sample_id, asked.token_ids, asked.max_new_tokens, asked.reference_ids, stop)


def spy(backend: HfBackend, look: Callable[[dict[str, Any]], None]) -> None:
    """`look` sees the arguments of every pass through the model, and may raise."""
    stock = backend.model.forward

    def forward(**call: Any) -> Any:
        look(call)
        return stock(**call)

    backend.model.forward = forward
