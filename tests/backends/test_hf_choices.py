"""Log-probabilities of choices against one plain pass per prompt and choice, in float64 where the backend can."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import FIRST_BYTE, SHAPE, VOCABULARY, prompts, request, save_model
from test_hf_answers import logprob_tolerance, spy
from test_hf_patterns import ARMS, ASKED, dense
from transformers import Gemma3TextConfig, GPTNeoXConfig, LlamaConfig, MistralConfig

from anchoreval.arms.arm import parse_arm
from anchoreval.backends.hf.backend import HfBackend
from anchoreval.cards import find_model
from anchoreval.errors import ModelError
from anchoreval.schema import Continuation, Output, Request

NEOX = {key: value for key, value in SHAPE.items() if key != "num_key_value_heads"}
CONFIGS: dict[str, Any] = {
    "llama": LlamaConfig(**SHAPE),
    "mistral, window 12": MistralConfig(**SHAPE, sliding_window=12),
    "gemma3": Gemma3TextConfig(
        **SHAPE,
        head_dim=16,
        sliding_window=12,
        query_pre_attn_scalar=16,
        layer_types=["sliding_attention", "full_attention"],
    ),
    "gpt-neox": GPTNeoXConfig(**NEOX),
}
LENGTHS = ((1, 1), (5, 5), (3, 2), (1, 0), (7, 1), (2, 2), (70, 70), (5, 3), (12, 12), (4, 4), (6, 6))


def choosing(asked: Request, lengths: tuple[tuple[int, int], ...] = LENGTHS, seed: int = 0) -> Request:
    """The prompt with random choices of (tokens, counted), and nothing to generate."""
    draw = random.Random(f"{asked.sample_id} {seed}")
    ids = [tuple(draw.randrange(FIRST_BYTE, VOCABULARY) for _ in range(tokens)) for tokens, _ in lengths]
    choices = tuple(Continuation(each, counted) for each, (_, counted) in zip(ids, lengths, strict=True))
    return replace(asked, choices=choices, max_new_tokens=0, reference_ids=())


def open_hf(folder: Path, **options: Any) -> HfBackend:
    return HfBackend.open(str(folder), **{"chunk_tokens": 16, **options})


def chosen(backend: HfBackend, asked: list[Request], arm: str = "native") -> dict[str, Output]:
    with backend.under(parse_arm(arm)):
        return {output.sample_id: output for output in backend.answer(asked)}


def plainly(model: Any, asked: Request, arm: str = "native") -> Iterator[tuple[float, bool]]:
    """Of every choice, one pass over prompt and choice without a cache; log-softmax and sum in float64."""
    for choice in asked.choices:
        logits_QV = dense(model, asked.token_ids + choice.token_ids, asked, arm)[:-1][-choice.counted :]
        counted = torch.tensor(choice.token_ids[-choice.counted :])
        if not choice.counted:
            yield 0.0, True
            continue
        each_Q = logits_QV.log_softmax(-1)[torch.arange(len(counted)), counted]
        yield float(each_Q.sum()), logits_QV.argmax(-1).tolist() == counted.tolist()


@pytest.fixture(params=sorted(CONFIGS), scope="module")
def wide(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> HfBackend:
    """A model in float64, apart from what its own code computes in float32 (norms, angles)."""
    backend = open_hf(save_model(tmp_path_factory.mktemp("model"), CONFIGS[request.param]))
    backend.model.double()
    return backend


@pytest.fixture(scope="module")
def tiny() -> HfBackend:
    """anchor-tiny, a trained model, in float32."""
    return HfBackend.open(find_model("anchor-tiny")[1].checkpoint, chunk_tokens=64, dtype="float32")


def test_choices_equal_one_plain_pass_each_under_every_arm(wide: HfBackend) -> None:
    for arm in ("native", *ARMS):
        asked = [choosing(each) for each in ASKED]
        for name, output in chosen(wide, asked, arm).items():
            want = list(plainly(wide.model, next(r for r in asked if r.sample_id == name), arm))
            assert [each.logprob for each in output.choices] == pytest.approx([x for x, _ in want], rel=1e-6), (
                arm,
                name,
            )
            assert [each.greedy for each in output.choices] == [greedy for _, greedy in want]
            assert (output.finish, output.text, output.reference_logprob) == ("stop", "", None)


def test_what_the_model_says_itself_is_greedy_and_one_other_token_is_not(tiny: HfBackend) -> None:
    ids = tiny._tokenizer.encode("One of the special magic numbers for")
    said = chosen(tiny, [request("p", (0, *ids), 6)])["p"].token_ids
    other = (*said[:3], said[3] + 1, *said[4:])
    choices = (Continuation(said, 6), Continuation(other, 6), Continuation(other, 2), Continuation(said[:1], 1))
    made = chosen(tiny, [replace(request("p", (0, *ids), 0), choices=choices)])["p"]
    assert [each.greedy for each in made.choices] == [True, False, tiny_greedy(tiny, (0, *ids), other), True]


def tiny_greedy(backend: HfBackend, prompt: tuple[int, ...], choice: tuple[int, ...]) -> bool:
    """Whether the last two of `choice` are what a plain pass finds likeliest."""
    with torch.inference_mode():
        logits_QV = backend.model(torch.tensor([prompt + choice]), use_cache=False).logits[0]
    return logits_QV[-3:-1].argmax(-1).tolist() == list(choice[-2:])


def test_on_a_trained_model_choices_equal_plain_passes_within_rounding(tiny: HfBackend) -> None:
    asked = [choosing(each, LENGTHS) for each in (request(str(i), p) for i, p in enumerate(prompts(3, 60, 300)))]
    made = chosen(tiny, asked)
    for r in asked:
        for each, (want, greedy) in zip(made[r.sample_id].choices, plainly(tiny.model, r), strict=True):
            assert each.logprob == pytest.approx(want, abs=logprob_tolerance(tiny.model, 70))
            assert each.greedy == greedy


def test_choices_in_rows_equal_choices_one_by_one(llama: Path) -> None:
    asked = [choosing(request(str(i), p)) for i, p in enumerate(prompts(6, 30, 200))]
    together, passes = open_hf(llama), []
    spy(together, lambda call: passes.append(tuple(call["input_ids"].shape)))
    rows, single = chosen(together, asked), chosen(open_hf(llama, rows=1), asked)
    assert (8, 31) in {(n, q) for n, q in passes if n > 1} or max(n for n, _ in passes) == 8
    for r in asked:
        for first, second, choice in zip(
            rows[r.sample_id].choices, single[r.sample_id].choices, r.choices, strict=True
        ):
            tolerance = logprob_tolerance(together.model, choice.counted)
            assert first.logprob == pytest.approx(second.logprob, abs=tolerance)
            assert first.greedy == second.greedy


def test_a_choice_has_the_same_bits_in_whatever_order_and_company_its_prompt_is_asked(llama: Path) -> None:
    asked = [choosing(request(str(i), p)) for i, p in enumerate(prompts(6, 30, 200))]
    backend = open_hf(llama)
    alone = {name: out.choices for r in asked for name, out in chosen(backend, [r]).items()}
    assert {name: out.choices for name, out in chosen(backend, asked[::-1]).items()} == alone


def test_one_token_costs_no_pass_and_logits_are_asked_for_where_tokens_are_counted(llama: Path) -> None:
    backend, calls = open_hf(llama), []
    spy(backend, lambda call: calls.append((tuple(call["input_ids"].shape), call["logits_to_keep"])))
    ids = prompts(1, 40, 40)[0]
    chosen(backend, [choosing(request("one", ids), ((1, 1),) * 5)])
    assert calls == [((1, 16), 1), ((1, 16), 1), ((1, 8), 1)]
    calls.clear()
    chosen(backend, [choosing(request("late", ids), ((30, 2), (28, 3), (20, 1)))])
    assert calls[3:] == [((3, 29), 29 - 18)]  # the 20th token is predicted behind the 19th, column 18


def test_prompts_that_share_a_beginning_are_prefilled_once_whatever_their_lengths(llama: Path) -> None:
    backend, tokens = open_hf(llama, batch_tokens=4_096), []
    spy(backend, lambda call: tokens.append(call["input_ids"].shape[1]))
    heads = prompts(3, 640, 640)
    asked = [request(f"{h}-{i}", heads[h] + (40 + i,) * (1 + 60 * i)) for i in range(8) for h in range(3)]
    chosen(backend, [choosing(r, ((1, 1), (1, 1))) for r in asked])
    assert sum(tokens) == 3 * 640 + sum(1 + 60 * i for i in range(8)) * 3


def test_choices_and_a_generated_answer_go_together(llama: Path) -> None:
    backend = open_hf(llama)
    plain = [request(str(i), p, 6, reference=(9, 8)) for i, p in enumerate(prompts(7, 30, 90))]
    both = [replace(r, choices=choosing(r, LENGTHS[:4]).choices) for r in plain]
    alone, made = chosen(backend, plain), chosen(backend, both)
    for r in both:
        assert made[r.sample_id].token_ids == alone[r.sample_id].token_ids
        assert made[r.sample_id].reference_logprob == alone[r.sample_id].reference_logprob
        assert len(made[r.sample_id].choices) == 4


def test_where_memory_runs_out_choices_are_scored_one_by_one(llama: Path) -> None:
    asked = [choosing(request(str(i), p)) for i, p in enumerate(prompts(4, 30, 200))]
    want, backend, seen = chosen(open_hf(llama, rows=1), asked), open_hf(llama), []

    def limited(call: dict[str, Any]) -> None:
        seen.append(call["input_ids"].shape[0])
        if seen[-1] > 1:
            raise torch.OutOfMemoryError("injected")

    spy(backend, limited)
    assert {name: o.choices for name, o in chosen(backend, asked).items()} == {n: o.choices for n, o in want.items()}
    assert sum(rows > 1 for rows in seen) == 1  # what did not fit is not tried again


def test_a_prompt_whose_choices_do_not_fit_alone_is_an_error_output(llama: Path) -> None:
    backend = open_hf(llama)

    def limited(call: dict[str, Any]) -> None:
        if call["attention_mask"].shape[1] > 140:
            raise torch.OutOfMemoryError("injected")

    spy(backend, limited)
    asked = [choosing(request("short", prompts(1, 50, 50)[0])), choosing(request("long", prompts(1, 150, 150)[0]))]
    made = chosen(backend, asked)
    assert (made["long"].finish, made["long"].why, made["long"].choices) == ("error", "out of memory with one row", ())
    assert len(made["short"].choices) == len(LENGTHS)


def test_logits_that_are_not_finite_are_an_error(llama: Path) -> None:
    backend = open_hf(llama)
    with torch.no_grad():
        backend.model.get_input_embeddings().weight[77] = torch.nan
    bad = replace(request("bad", (1, 9, 9), 4), choices=(Continuation((5,), 1), Continuation((77, 6), 2)))
    made = chosen(backend, [bad, choosing(request("good", (1, 9, 9)), ((1, 1),))])
    assert (made["bad"].finish, made["bad"].why, made["bad"].choices) == ("error", "the logits are not finite", ())
    assert made["good"].finish == "stop"


def test_a_token_that_the_model_lacks_is_refused(llama: Path) -> None:
    asked = replace(request("p", (1, 9)), choices=(Continuation((VOCABULARY,), 1),))
    with pytest.raises(ModelError, match=f"token {VOCABULARY}"):
        chosen(open_hf(llama), [asked])


def test_a_placebo_scores_in_other_rows_to_the_same_numbers_within_rounding(llama: Path) -> None:
    asked, backend, rows = [choosing(request("p", prompts(1, 100, 100)[0]))], open_hf(llama, rows=8), []
    spy(backend, lambda call: rows.append(call["input_ids"].shape[0]))
    first, most = chosen(backend, asked)["p"], max(rows)
    rows.clear()
    with backend.under(replace(parse_arm("native"), placebo=True)):
        (second,) = backend.answer(asked)
    before, after = ([each.logprob for each in output.choices] for output in (first, second))
    assert after == pytest.approx(before, abs=logprob_tolerance(backend.model, 70))
    assert (most, max(rows)) == (8, 3)  # other shapes were computed; whether that moves a bit is the processor's affair


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_frequencies_that_grow_do_not_leak_from_choice_to_choice(kind: str, tmp_path: Path) -> None:
    rope: dict[str, Any] = {"rope_type": kind, "rope_theta": 1e4, "factor": 4.0}
    if kind == "longrope":
        rope |= {"short_factor": [1.0] * 8, "long_factor": [3.0] * 8, "original_max_position_embeddings": 64}
    shape = {**SHAPE, "max_position_embeddings": 64 if kind == "dynamic" else 256}
    backend = open_hf(save_model(tmp_path, LlamaConfig(**shape, rope_parameters=rope)))
    asked = choosing(request("p", prompts(1, 60, 60)[0]), ((40, 40), (3, 3), (2, 2), (20, 20)))
    together = chosen(backend, [asked])["p"].choices
    alone = [chosen(backend, [replace(asked, choices=(choice,))])["p"].choices[0] for choice in asked.choices]
    assert list(together) == alone
