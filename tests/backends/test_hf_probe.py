"""What is tried of a model at load: rows beside padding, rows alone, positions that end; logits that are no numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import BOS, EOS, SHAPE, VOCABULARY, prompts, request, save_model
from safetensors.torch import load_file, save_file
from test_hf_answers import NEW_TOKENS, asked, logprob_tolerance, open_hf, outputs, stock_logprob, stock_tokens
from transformers import (
    BartConfig,
    BloomConfig,
    CohereConfig,
    CpmAntConfig,
    CTRLConfig,
    GPT2Config,
    GPTJConfig,
    LlamaConfig,
    OPTConfig,
    Phi3Config,
    Qwen3MoeConfig,
    RecurrentGemmaConfig,
    RobertaConfig,
    RwkvConfig,
    WhisperConfig,
)

from anchoreval.backends.hf.probe import tolerance
from anchoreval.errors import ModelError
from anchoreval.schema import NO_LOGPROB, Continuation

IDS = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": BOS, "eos_token_id": EOS}
GPT = {**IDS, "n_embd": 64, "n_layer": 2, "n_head": 4, "initializer_range": 0.2}
BART = {
    **IDS, "d_model": 64, "decoder_layers": 2, "decoder_ffn_dim": 96, "decoder_attention_heads": 4, "init_std": 0.2,
    "encoder_layers": 2, "encoder_ffn_dim": 96, "encoder_attention_heads": 4, "max_position_embeddings": 300,
    "is_encoder_decoder": False, "decoder_start_token_id": BOS, "forced_eos_token_id": None,
}  # fmt: skip
BERT = {
    **IDS, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96,
    "max_position_embeddings": 300, "is_decoder": True, "initializer_range": 0.2,
}  # fmt: skip
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "head_dim": 16}
#: Configuration and kernel of types that are right beside padding.
RIGHT: dict[str, tuple[Any, str]] = {
    "llama": (LlamaConfig(**SHAPE), "sdpa"),
    "cohere": (CohereConfig(**SHAPE), "sdpa"),
    "phi3, window 24": (Phi3Config(**{**SHAPE, "sliding_window": 24}), "sdpa"),
    "qwen3_moe": (Qwen3MoeConfig(**SHAPE, **MOE), "sdpa"),
    "gpt2": (GPT2Config(**GPT, n_positions=300), "sdpa"),
    "gptj": (GPTJConfig(**GPT, n_positions=300, rotary_dim=8), "eager"),
    "ctrl": (CTRLConfig(**GPT, n_positions=300, dff=96), "sdpa"),
    "opt": (
        OPTConfig(**IDS, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, ffn_dim=96, init_std=0.2,
                  word_embed_proj_dim=64, max_position_embeddings=300), "sdpa"
    ),
    "bloom": (BloomConfig(**IDS, hidden_size=64, n_layer=2, n_head=4, initializer_range=0.2), "eager"),
    "roberta": (RobertaConfig(**BERT), "sdpa"),
}  # fmt: skip
BROKEN: dict[str, tuple[Any, str]] = {
    "rwkv": (RwkvConfig(**IDS, hidden_size=64, num_hidden_layers=2, attention_hidden_size=64), "eager"),
    "cpmant": (CpmAntConfig(vocab_size=VOCABULARY, hidden_size=64, num_attention_heads=4, dim_head=16, dim_ff=96,
                            num_hidden_layers=2), "eager"),
    "whisper": (WhisperConfig(**{k: v for k, v in BART.items() if "position" not in k}), "sdpa"),
    "recurrent_gemma": (
        RecurrentGemmaConfig(**IDS, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
                             lru_width=64, attention_window_size=64), "sdpa"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(RIGHT))
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_types_that_are_right_beside_padding_are_computed_in_batches(name: str, dtype: str, tmp_path: Path) -> None:
    config, kernel = RIGHT[name]
    backend = open_hf(save_model(tmp_path, config), kernel=kernel, dtype=dtype)
    assert "rows" not in backend.describe()


def test_a_type_that_counts_positions_from_the_cache_is_computed_row_by_row(tmp_path: Path) -> None:
    backend = open_hf(save_model(tmp_path, BartConfig(**BART)))
    rows: list[int] = []
    handle = backend.model.register_forward_pre_hook(
        lambda _, __, named: rows.append(named["input_ids"].shape[0]), with_kwargs=True
    )
    chosen = tuple(Continuation(ids, 3) for ids in prompts(3, 4, 9))
    made = outputs(backend, [replace(r, choices=chosen) for r in asked(6)])
    handle.remove()
    assert set(rows) == {1}
    assert backend.describe()["rows"] == "alone: beside padding this model's answers are others"
    for r in asked(6):
        assert list(made[r.sample_id].token_ids) == stock_tokens(backend.model, r.token_ids)
        scored = [(r.reference_ids, made[r.sample_id].reference_logprob)] if r.reference_ids else []
        for choice, score in zip(chosen, made[r.sample_id].choices, strict=True):
            before = len(choice.token_ids) - choice.counted
            want = stock_logprob(backend.model, (*r.token_ids, *choice.token_ids[:before]), choice.token_ids[before:])
            assert score.logprob == pytest.approx(want, abs=bart_tolerance(choice.counted))
        for ids, logprob in scored:
            want = stock_logprob(backend.model, r.token_ids, ids)
            assert logprob == pytest.approx(want, abs=bart_tolerance(len(ids)))


def bart_tolerance(tokens: int) -> float:
    """`logprob_tolerance` for the sizes of BART: 2 layers, sums of up to 96 terms."""
    return float(tokens * 6 * 2 * ((7 * 2 + 1) * 96) ** 0.5 * 2.0**-24 * 10)


def test_rows_alone_are_part_of_the_identity_where_they_were_wrong(llama: Path, tmp_path: Path) -> None:
    alone, batched = open_hf(save_model(tmp_path, BartConfig(**BART))), open_hf(llama)
    before = alone.fingerprint, batched.fingerprint
    for backend in (alone, batched):
        backend._network.alone = not backend._network.alone
    assert alone.fingerprint != before[0] and batched.fingerprint != before[1]


@pytest.mark.parametrize("name", sorted(BROKEN))
def test_a_type_that_cannot_be_answered_is_one_line_at_load(name: str, tmp_path: Path) -> None:
    config, kernel = BROKEN[name]
    with pytest.raises(
        ModelError, match=f"^model type '{name}' (cannot be answered|keeps state this backend cannot batch)"
    ) as raised:
        open_hf(save_model(tmp_path, config), kernel=kernel)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 400


def test_the_tolerance_is_that_of_rounding_and_below_every_fault_seen() -> None:
    assert [tolerance(dtype, 4) for dtype in (torch.float32, torch.float16)] == [0.03, 0.03]
    assert tolerance(torch.bfloat16, 4) == 5 * 2 * 2**-7
    assert tolerance(torch.bfloat16, 80) < 0.4


def test_what_needs_more_positions_than_the_model_has_is_no_answer_and_the_rest_go_on(tmp_path: Path) -> None:
    for name in ("gpt2", "gptj", "ctrl", "opt", "roberta"):
        config, kernel = RIGHT[name]
        backend = open_hf(save_model(tmp_path / name, config), kernel=kernel)
        ids = prompts(1, 280, 280)[0]
        filling = replace(request("fills", ids, 21), min_new_tokens=21)
        made = outputs(backend, [filling, request("over", ids, 22), request("reference", ids, 1, (5,) * 22)])
        assert len(made["fills"].token_ids) == 21, name
        assert {made[n].outcome for n in ("over", "reference")} == {"does_not_fit"}, name
        assert made["over"].why == "301 positions are needed, the model has 300"


@pytest.mark.parametrize("name", ["llama", "bloom"])
def test_positions_without_a_table_have_no_end(name: str, tmp_path: Path) -> None:
    config, kernel = RIGHT[name]
    config = LlamaConfig(**{**SHAPE, "max_position_embeddings": 64}) if name == "llama" else config
    backend = open_hf(save_model(tmp_path, config), kernel=kernel)
    (made,) = backend.answer([request("long", prompts(1, 90, 90)[0], NEW_TOKENS)])
    assert list(made.token_ids) == stock_tokens(backend.model, prompts(1, 90, 90)[0])


@pytest.mark.parametrize("weight", ["embed", "lm_head"])
def test_a_reference_whose_log_probability_is_no_number_costs_no_answer_and_harms_no_other(
    llama: Path, weight: str
) -> None:
    backend = open_hf(llama)
    good, poisoned = request("good", (1, 9, 9), NEW_TOKENS, (4, 5)), 77
    want = outputs(backend, [good])["good"]
    with torch.no_grad():
        if weight == "embed":
            backend.model.get_input_embeddings().weight[poisoned] = torch.nan
        else:  # the logit of one token is minus infinity: a model says so of tokens that it never gives
            backend.model.lm_head = _Masked(backend.model.lm_head, poisoned)
    made = outputs(backend, [good, request("bad", (1, 9, 9), NEW_TOKENS, (poisoned, 6))])
    assert made["bad"].outcome == made["good"].outcome and made["bad"].why is None
    assert (made["bad"].reference_logprob, made["bad"].facts) == (None, {NO_LOGPROB: "it is not finite"})
    assert made["bad"].token_ids == made["good"].token_ids == want.token_ids
    if weight == "embed":
        rounding = logprob_tolerance(backend.model, 2)
        assert made["good"].reference_logprob == pytest.approx(want.reference_logprob, abs=rounding)


def test_a_damaged_weight_is_not_refused_but_every_answer_is_lost(llama: Path, tmp_path: Path) -> None:
    damaged = save_model(tmp_path, LlamaConfig(**SHAPE))
    weights = load_file(damaged / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"][0, 0] = torch.nan
    save_file(weights, damaged / "model.safetensors", metadata={"format": "pt"})
    backend = open_hf(damaged)
    made = outputs(backend, asked(3))
    assert {output.outcome for output in made.values()} == {"not_finite"}
    assert backend.describe()["rope_selftest"]["ok"] and backend.describe()["rope_selftest"]["max_difference"] is None


class _Masked(torch.nn.Module):
    def __init__(self, head: torch.nn.Module, token: int) -> None:
        super().__init__()
        self.head, self.token = head, token

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(hidden)
        logits[..., self.token] = -torch.inf
        return logits
