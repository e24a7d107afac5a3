"""Rotations that depend on the length of a pass, below, across and beyond their switch, against stock transformers."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import SHAPE, prompts, request, save_model
from test_hf_answers import logprob_tolerance, open_hf, outputs
from transformers import LlamaConfig, Phi3Config, Phi4MultimodalConfig, PhimoeConfig

from anchoreval.arms.arm import parse_arm
from anchoreval.backends.hf.backend import HfBackend
from anchoreval.schema import Continuation, Request

SWITCH, NEW = 64, 10
LENGTHS = (30, 55, 58, 61, 63, 64, 65, 90)  # below, across and beyond the switch
FACTORS = {"short_factor": [1.0 + i / 8 for i in range(8)], "long_factor": [2.0 + i for i in range(8)]}
LONGROPE = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": SWITCH, **FACTORS}
PHI = {**SHAPE, "original_max_position_embeddings": SWITCH, "sliding_window": None}
PHIMOE = {"num_local_experts": 4, "num_experts_per_tok": 2}
TOWERS = {
    "vision_config": {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
        "patch_size": 14, "crop_size": 28,
    },
    "audio_config": {
        "hidden_size": 32, "intermediate_size": 64, "num_blocks": 1, "num_attention_heads": 2,
        "ext_pw_out_channel": 32, "nemo_conv_channels": 32, "nemo_final_size": 32,
    },
}  # fmt: skip
SCALED = {"rope_theta": 1e4, "factor": 8.0, "original_max_position_embeddings": SWITCH}
LLAMA3 = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0, **SCALED}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
#: Configuration, and whether the family's generation code drops the cache at the switch.
KINDS: dict[str, tuple[Any, bool]] = {
    "dynamic": (LlamaConfig(**{**SHAPE, "max_position_embeddings": SWITCH}, rope_parameters=DYNAMIC), False),
    "longrope": (LlamaConfig(**SHAPE, rope_parameters=LONGROPE), False),
    "longrope, phi3": (Phi3Config(**PHI, rope_parameters=LONGROPE), True),
    "longrope, phimoe": (
        PhimoeConfig(**PHI, **PHIMOE, rope_parameters={**LONGROPE, "short_mscale": 1.1, "long_mscale": 1.2}),
        True,
    ),
    "longrope, phi4_multimodal": (
        Phi4MultimodalConfig(**PHI, **TOWERS, rope_parameters={**LONGROPE, "partial_rotary_factor": 1.0}),
        True,
    ),
    "yarn": (LlamaConfig(**SHAPE, rope_parameters={"rope_type": "yarn", **SCALED}), False),
    "llama3": (LlamaConfig(**SHAPE, rope_parameters=LLAMA3), False),
    "linear": (LlamaConfig(**SHAPE, rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}), False),
}
GROWING = [kind for kind in KINDS if kind.startswith(("dynamic", "longrope"))]


class Kind:
    """A model of one RoPE type: the backend's, and a stock one that has seen no prompt."""

    def __init__(self, name: str, folder: Path) -> None:
        config, self.drops = KINDS[name]
        self.folder = save_model(folder, config)
        self.backend = open_hf(self.folder)
        self._fresh = copy.deepcopy(self.backend.model)

    def says(self, ids: Sequence[int]) -> list[int]:
        """What `generate` says on this prompt alone.

        Phi-3's kind drops its cache at the switch; transformers 5.16 to 5.22 then feed the last token alone, without
        a cache every pass is over all tokens.
        """
        row = torch.tensor([ids])
        made = copy.deepcopy(self._fresh).generate(
            row,
            attention_mask=torch.ones_like(row),
            max_new_tokens=NEW,
            do_sample=False,
            pad_token_id=0,
            use_cache=not self.drops,
        )
        return made[0, len(ids) :].tolist()

    @torch.no_grad()
    def logprob(self, ids: Sequence[int], counted: int, fed: int) -> float:
        """Of the last `counted` tokens, by one stock pass over the first `fed`."""
        row = torch.tensor([ids[:fed]])
        logits_QV = copy.deepcopy(self._fresh)(row, attention_mask=torch.ones_like(row), use_cache=False).logits[0]
        rows = torch.arange(len(ids) - counted - 1, len(ids) - 1)
        return float(logits_QV.double().log_softmax(-1)[rows, torch.tensor(ids[-counted:])].sum())


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Kind]:
    """The model of a kind, opened once."""
    return functools.cache(lambda name: Kind(name, tmp_path_factory.mktemp("model")))


@pytest.fixture(params=sorted(KINDS))
def kind(request: pytest.FixtureRequest, opened: Callable[[str], Kind]) -> Kind:
    return opened(request.param)


@pytest.fixture(params=sorted(GROWING))
def growing(request: pytest.FixtureRequest, opened: Callable[[str], Kind]) -> Kind:
    return opened(request.param)


def asked() -> list[Request]:
    """Prompts of all lengths; two share a beginning of 60 tokens; references of one, three and forty tokens."""
    ids = [prompts(1, length, length, seed=length)[0] for length in LENGTHS]
    ids.append((*ids[-1][:60], *ids[0][1:8]))
    references = [prompts(1, 2 + size, 2 + size, seed=size)[0][2:] for size in (1, 3, 40)]
    return [request(str(i), p, NEW, references[i % 3]) for i, p in enumerate(ids)]


def test_an_answer_is_what_generate_says_on_that_prompt_alone(kind: Kind) -> None:
    made = outputs(kind.backend, asked())
    assert {r.sample_id: kind.says(r.token_ids) for r in asked()} == {
        name: list(output.token_ids) for name, output in made.items()
    }


def test_the_reference_is_scored_as_one_stock_pass_over_prompt_and_reference(kind: Kind) -> None:
    made = outputs(kind.backend, asked())
    for r in asked():
        whole = (*r.token_ids, *r.reference_ids)
        want = kind.logprob(whole, len(r.reference_ids), len(whole))
        tolerance = logprob_tolerance(kind.backend.model, len(r.reference_ids))
        assert made[r.sample_id].reference_logprob == pytest.approx(want, abs=tolerance)


def test_neither_reference_nor_choices_nor_other_prompts_change_an_answer(growing: Kind) -> None:
    alone = {r.sample_id: outputs(growing.backend, [replace(r, reference_ids=())]) for r in asked()}
    chosen = tuple(Continuation(prompts(1, n, n, seed=n)[0], n - 1) for n in (2, 9, 30))
    for requests in (asked()[::-1], [replace(r, choices=chosen) for r in asked()]):
        made = outputs(growing.backend, requests)
        assert {name: o.token_ids for name, o in made.items()} == {n: a[n].token_ids for n, a in alone.items()}


def test_a_choice_is_scored_as_lm_eval_does_in_a_pass_without_its_last_token(growing: Kind) -> None:
    choices = [Continuation(prompts(1, n, n, seed=n)[0], max(1, n - 2)) for n in (1, 2, 4, 20)]
    for length in (50, 63, 64, 80):
        ids = prompts(1, length, length, seed=length)[0]
        (made,) = growing.backend.answer([replace(request("p", ids, 0), choices=tuple(choices))])
        for choice, got in zip(choices, made.choices, strict=True):
            whole = (*ids, *choice.token_ids)
            want = growing.logprob(whole, choice.counted, len(whole) - 1)
            tolerance = logprob_tolerance(growing.backend.model, choice.counted)
            assert got.logprob == pytest.approx(want, abs=tolerance)


def test_a_row_leaves_no_frequencies_behind(growing: Kind) -> None:
    def state() -> list[Any]:
        rotary = growing.backend.model.model.rotary_emb
        return [rotary.inv_freq.tolist(), rotary.original_inv_freq.tolist(), int(rotary.max_seq_len_cached)]

    before = state()
    list(growing.backend.answer([request("long", prompts(1, 90, 90)[0], NEW, (5, 6, 7))]))
    assert state() == before


@pytest.mark.parametrize("level", ["fp32", "fp64"])
def test_under_a_level_the_answer_and_the_reference_cross_the_switch_too(growing: Kind, level: str) -> None:
    native = outputs(growing.backend, asked())
    with growing.backend.under(replace(parse_arm(level), kernel="auto")):
        made = outputs(growing.backend, asked())
    assert {n: o.token_ids for n, o in made.items()} == {n: o.token_ids for n, o in native.items()}
    for r in asked():
        want = native[r.sample_id].reference_logprob
        tolerance = logprob_tolerance(growing.backend.model, len(r.reference_ids))
        assert made[r.sample_id].reference_logprob == pytest.approx(want, abs=tolerance)


def test_frequencies_that_are_the_same_in_both_lengths_cost_no_second_pass(growing: Kind) -> None:
    backend, passes = growing.backend, []
    handle = backend.model.register_forward_pre_hook(
        lambda _, __, named: passes.append(named["input_ids"].shape[1]), with_kwargs=True
    )
    try:
        list(backend.answer([request("below", prompts(1, 30, 30)[0], 1, (5, 6, 7))]))
    finally:
        handle.remove()
    assert passes == [1, 30, 2]  # the reset, the prompt, the reference on its keys and values


def test_memory_that_runs_out_in_the_middle_leaves_no_frequencies_behind(tmp_path: Path) -> None:
    backend: HfBackend = Kind("dynamic", tmp_path).backend
    want = outputs(backend, asked()[:1])
    stock, calls = backend.model.forward, []

    def forward(**call: Any) -> Any:
        calls.append(call)
        if len(calls) == 5:
            raise torch.OutOfMemoryError("injected")
        return stock(**call)

    backend.model.forward = forward
    (lost,) = backend.answer([request("long", prompts(1, 90, 90)[0], NEW)])
    assert (lost.outcome, lost.why) == ("failed", "out of memory with one row")
    backend.model.forward = stock
    assert outputs(backend, asked()[:1])["0"].token_ids == want["0"].token_ids
