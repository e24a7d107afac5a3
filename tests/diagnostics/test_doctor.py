"""The page about a checkpoint: what it says of models whose truth is known."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from checkpoints import SHAPE, VOCABULARY, save_model, save_tokenizer
from command_line import cli
from tiny_models import ARCHITECTURES, STOCK_IN_BF16, build
from tokenizers import processors
from transformers import GPT2Config, LlamaConfig

from anchoreval.arms.patch_hf import rotary_modules
from anchoreval.backends.hf.load import StockNetwork
from anchoreval.cards import ModelCard
from anchoreval.diagnostics.doctor import checks as doctor_checks
from anchoreval.diagnostics.doctor import page as doctor
from anchoreval.errors import UnknownName
from anchoreval.tokenizer import load_tokenizer

CPU = torch.device("cpu")
FAMILIES = [
    "llama", "llama-llama3", "mistral-window", "qwen2", "qwen3", "gemma3-local", "phi3-longrope", "olmo2", "mixtral",
    "gpt-neox", "smollm3",
]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def fast() -> Iterator[None]:
    """Fewer positions than a user's run looks at."""
    ceiling, tokens = doctor_checks.CEILING, doctor.SINK_TOKENS
    doctor_checks.CEILING, doctor.SINK_TOKENS = 1 << 15, 64
    yield
    doctor_checks.CEILING, doctor.SINK_TOKENS = ceiling, tokens


def named(folder: Path) -> str:
    """The folder, its tokenizer given names for its special tokens."""
    (folder / "tokenizer_config.json").write_text('{"bos_token": "<s>", "eos_token": "</s>"}')
    return str(folder)


def saved(folder: Path, name: str) -> Path:
    family, settings = ARCHITECTURES[name]
    return save_model(folder, getattr(transformers, f"{family}Config")(**{**settings, "vocab_size": VOCABULARY}))


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_gets_a_page(tmp_path: Path, name: str) -> None:
    facts = doctor.examine(named(saved(tmp_path, name)))
    json.dumps(facts)
    assert facts["detected_by_dtype"]["float32"] == "fp32"
    assert facts["detected_by_dtype"]["bfloat16"] == STOCK_IN_BF16.get(name, "bf16")
    assert facts["selftest"]["ok"] and not facts["rope"]["damaged"]
    assert 2**-12 < facts["inv_freq_error_after_cast"] <= 2**-8  # bf16 has 8 significant bits
    assert len(facts["sink"]["by_layer"]) == 2 and all(0 <= share < 1 for share in facts["sink"]["by_layer"])
    assert all(facts["arms"][level]["allowed"] for level in ("native", "fp32", "bf16", "bf16-angle"))
    text = doctor.page(facts)
    assert len(text.splitlines()) <= 45 and max(len(line) for line in text.splitlines()) <= 130


def test_a_model_without_rope_gets_a_page_that_says_so(tmp_path: Path) -> None:
    config = GPT2Config(
        vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=2, n_positions=512, bos_token_id=1, eos_token_id=2
    )
    model = named(save_model(tmp_path, config))
    printed = cli("doctor", "--model", model, "--device", "cpu").stdout
    assert "none found" in printed and "trained at   512" in printed and "arms         native" in printed
    facts = json.loads(cli("doctor", "--model", model, "--device", "cpu", "--json").stdout)
    assert facts["arms"]["native"]["allowed"] and not facts["arms"]["fp32"]["allowed"]
    assert "no RoPE found" in facts["arms"]["fp32"]["why"]


def test_a_model_that_does_not_exist_is_one_line() -> None:
    with pytest.raises(UnknownName, match="anchor-tiny"):
        doctor.examine("anchor-tinny")


def test_models_without_sdpa_or_with_shared_keys_get_a_page(tmp_path: Path) -> None:
    oss = doctor.examine(named(saved(tmp_path / "gpt-oss", "gpt-oss")))
    assert oss["engine"]["kernel"] == "eager" and "no kernel 'sdpa'" in doctor.page(oss)
    assert doctor.examine(str(tmp_path / "gpt-oss"), kernel="fused")["engine"]["kernel"] == "fused"
    kinds = ["sliding_attention", "full_attention"] * 2
    shared = transformers.Gemma3nTextConfig(
        **{**SHAPE, "num_hidden_layers": 4, "head_dim": 16, "layer_types": kinds, "num_kv_shared_layers": 2},
        hidden_size_per_layer_input=8, vocab_size_per_layer_input=VOCABULARY, laurel_rank=8, sliding_window=24,
        activation_sparsity_pattern=[0.0] * 4,
    )  # fmt: skip
    facts = doctor.examine(named(save_model(tmp_path / "gemma3n", shared)))
    assert len(facts["sink"]["by_layer"]) == 4 and facts["arms"]["bf16"]["allowed"]


def test_a_model_that_hands_out_no_weights_gets_the_rest_of_its_page(tmp_path: Path) -> None:
    config = transformers.FalconConfig(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, alibi=True,
        new_decoder_architecture=False, multi_query=False,
    )  # fmt: skip
    facts = doctor.examine(named(save_model(tmp_path, config)))
    assert facts["sink"]["by_layer"] is None and "ALiBi twice" in doctor.page(facts)
    assert [name for name, arm in facts["arms"].items() if arm["allowed"]] == ["native"]


# angles


def test_the_last_resolved_position_is_where_the_spacing_of_the_dtype_passes_the_bound() -> None:
    one = torch.tensor([1.0])
    # position x 1.0: bf16 holds whole numbers up to 256, and 257 becomes 256; fp32 holds all below 2**24
    assert doctor_checks.last_resolved(one, "fp32", "bf16", 1 << 12) == {"fine": 256, "coarse": 256}
    assert doctor_checks.last_resolved(one, "fp32", "fp32", 1 << 12) == {"fine": 4095, "coarse": 4095}
    assert doctor_checks.last_resolved(one * 0.9, "fp32", "fp64", 1 << 12) == {"fine": 4095, "coarse": 4095}
    # 0.37 becomes 189/512 in bf16, off by 8.594e-4 a position: 2**-9 is passed at 3, 0.5 at 582
    assert doctor_checks.last_resolved(one * 0.37, "bf16", "fp64", 1 << 12) == {"fine": 2, "coarse": 581}
    # fp32 products below 2**16 are off by half of 2**-8 at most, which is FINE; from there on by twice that
    fine = doctor_checks.last_resolved(torch.tensor([0.875421]), "fp32", "fp32", 1 << 18)["fine"]
    assert 2**16 / 0.875421 - 1 <= fine <= 2**16 / 0.875421 + 100


def test_positions_are_checked_across_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = doctor_checks.last_resolved(torch.tensor([0.9, 0.03]), "bf16", "bf16", 5000)
    monkeypatch.setattr(doctor_checks, "_BLOCK", 37)
    assert doctor_checks.last_resolved(torch.tensor([0.9, 0.03]), "bf16", "bf16", 5000) == whole


def test_a_damaged_buffer_is_found_and_angles_are_judged_by_the_sound_one() -> None:
    model = build("llama")
    sound = doctor_checks.resolved(model, 4096)
    for module in rotary_modules(model).values():
        module.to(torch.bfloat16)
    assert doctor_checks.resolved(model, 4096) == sound
    assert sound["bf16-angle"]["fine"] < 10 < sound["fp32"]["fine"] == sound["fp64"]["fine"] == 4095


@pytest.mark.parametrize(("name", "rotated"), [("llama", 16), ("gpt-neox", 4)])
def test_the_error_after_a_cast_is_that_of_the_rounded_formula(name: str, rotated: int) -> None:
    inv_freq_F = 1e4 ** -(torch.arange(0, rotated, 2, dtype=torch.float64) / rotated)
    want = float((inv_freq_F.to(torch.bfloat16).double() / inv_freq_F - 1).abs().max())
    assert want > 9e-4
    assert doctor_checks.after_cast(build(name)) == pytest.approx(want, abs=1e-6)


def test_detection_by_dtype_copies_no_weights_and_leaves_the_model_alone() -> None:
    model = build("olmo2")
    before = {name: (p.data_ptr(), p.dtype) for name, p in model.named_parameters()}
    assert doctor_checks.detected_levels(model) == {"float32": "fp32", "bfloat16": "fp32", "float16": "fp32"}
    assert {name: (p.data_ptr(), p.dtype) for name, p in model.named_parameters()} == before


# the first token's share


@pytest.mark.parametrize("name", ["llama", "mistral-window", "gemma3-local", "phi3-longrope", "gpt-neox"])
def test_shares_equal_those_of_one_dense_pass(name: str) -> None:
    model = build(name)
    ids = torch.randint(3, 128, (80,), generator=torch.Generator().manual_seed(0)).tolist()
    kernel = model.config._attn_implementation
    got = doctor_checks.sink_shares(StockNetwork(model, CPU), ids)
    assert model.config._attn_implementation == kernel
    model.set_attn_implementation("eager")
    row = torch.tensor([ids])
    with torch.no_grad():
        dense = model(row, attention_mask=torch.ones_like(row), output_attentions=True, use_cache=False).attentions
    want = [float(weights[0, :, 40:, 0].double().mean()) for weights in dense]
    assert got == pytest.approx(want, abs=1e-5)


def test_a_planted_sink_is_seen_and_an_even_model_has_the_even_share() -> None:
    model = build("llama")
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.q_proj.weight.zero_()
    ids = list(range(3, 67))
    assert doctor_checks.sink_shares(StockNetwork(model, CPU), ids) == pytest.approx([doctor._even(64)] * 2, rel=1e-5)


# lengths, anchor, layers

CARD = ModelCard(about="x", checkpoint="x")


MAX, ORIGINAL = "max_position_embeddings", "original_max_position_embeddings"
LLAMA31 = {MAX: 131072, "rope_scaling": {"rope_type": "llama3", "factor": 8.0, ORIGINAL: 8192}}
QWEN2_YARN = {MAX: 131072, "rope_scaling": {"type": "yarn", "factor": 4.0, ORIGINAL: 32768}}
SAILOR2 = {MAX: 131072, "rope_scaling": {"type": "default", "factor": 4.0}}
PHI3 = {MAX: 131072, ORIGINAL: 4096, "rope_scaling": {"type": "longrope", "long_factor": [2.0], "short_factor": [1.0]}}
LINEAR8, SLIDING = {"rope_type": "linear", "factor": 8.0}, {"rope_type": "default", "rope_theta": 1e4}
GEMMA3 = {"text_config": {MAX: 131072, "rope_parameters": {"full_attention": LINEAR8, "sliding_attention": SLIDING}}}
NESTED_YARN = {MAX: 40, "rope_parameters": {"full_attention": {"rope_type": "yarn", "factor": 2.0, ORIGINAL: 20}}}


@pytest.mark.parametrize(
    ("stated", "trained", "source"),
    [
        (LLAMA31, 131072, MAX),
        (QWEN2_YARN, 32768, ORIGINAL),
        (NESTED_YARN, 20, ORIGINAL),
        (SAILOR2, 131072, MAX),
        ({MAX: 32768, "sliding_window": 4096}, 32768, MAX),
        (GEMMA3, 131072, MAX),
        (PHI3, 131072, MAX),
        ({MAX: 4096, "rope_scaling": {"type": "linear", "factor": 4.0}}, 4096, MAX),
        ({"n_positions": 512}, 512, MAX),
        ({}, None, None),
    ],
    ids=["llama-3.1", "qwen2-yarn", "nested-yarn", "sailor2-l", "mistral", "gemma3", "phi3", "linear", "gpt2", "none"],
)
def test_the_trained_length_is_never_a_product(stated: dict[str, Any], trained: int | None, source: str | None) -> None:
    found = doctor.trained_length(stated, CARD, None)
    assert (found["trained"], found["source"]) == (trained, source)
    card = CARD.model_copy(update={"max_length": 77})
    assert doctor.trained_length(stated, card, None)["trained"] == 77
    assert doctor.trained_length(stated, card, 55)["trained"] == 55
    assert (found["meaning"] is None) == (found["original"] is None)


def test_both_lengths_of_a_configuration_are_explained() -> None:
    yarn = doctor.trained_length(QWEN2_YARN, CARD, None)["meaning"]
    assert "32,768" in yarn and "131,072" in yarn and "--max-length" in yarn
    assert "8,192 is what llama3 scaling starts from" in doctor.trained_length(LLAMA31, CARD, None)["meaning"]


def tokenizer_of(folder: Path, *, adds_bos: bool, template: str | None, bos: bool = True) -> Any:
    inner = save_tokenizer(folder)
    if adds_bos:
        inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    inner.save(str(folder / "tokenizer.json"))
    config = {"eos_token": "</s>", **({"bos_token": "<s>"} if bos else {})} | (
        {"chat_template": template} if template else {}
    )
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return load_tokenizer(folder)


BODY = "{% for m in messages %}[{{ m.content }}]{% endfor %}"


@pytest.mark.parametrize(
    ("adds_bos", "template", "expected"),
    [
        (True, None, (1, None)),
        (False, "{{ bos_token }}" + BODY, (0, 1)),
        (True, "{{ bos_token }}" + BODY, (1, 2)),
        (True, "<s>" + BODY, (1, 2)),
        (True, BODY, (1, 1)),
        (False, BODY, (0, 0)),
        (True, "{{ raise_exception('no') }}", (1, None)),
    ],
)
def test_an_anchor_that_is_added_twice_is_seen(
    tmp_path: Path, adds_bos: bool, template: str | None, expected: Any
) -> None:
    facts = doctor.anchor_facts(tokenizer_of(tmp_path, adds_bos=adds_bos, template=template))
    assert (facts["from_tokenizer"], facts["from_tokenizer_and_template"]) == expected
    assert ("TWICE" in doctor._anchor_line(facts)) == (expected[1] == 2)


def test_without_an_anchor_the_page_says_so_and_arms_that_need_it_are_not_allowed(tmp_path: Path) -> None:
    tokenizer = tokenizer_of(tmp_path, adds_bos=True, template=None)
    facts = doctor.anchor_facts(tokenizer, "none")
    line = doctor._anchor_line(facts)
    assert facts["id"] is None and "none, as asked" in line and "(1 tokens)" in line
    assert len(doctor.prose_ids(tokenizer, 16, "none")) == 16
    assert doctor.prose_ids(tokenizer, 16)[1:] == doctor.prose_ids(tokenizer, 16, "none")[:15]


def test_a_tokenizer_without_bos_has_eos_for_anchor(tmp_path: Path) -> None:
    facts = doctor.anchor_facts(tokenizer_of(tmp_path, adds_bos=False, template=None, bos=False))
    assert (facts["kind"], facts["text"], facts["from_tokenizer"]) == ("EOS", "</s>", 0)


@pytest.mark.parametrize(
    ("name", "kinds", "window", "without"),
    [
        ("llama", {"full_attention": 2}, None, []),
        ("mistral-window", {"sliding_attention": 2}, 8, []),
        ("mistral", {"full_attention": 2}, None, []),
        ("qwen2", {"full_attention": 2}, None, []),
        ("gemma3-local", {"sliding_attention": 1, "full_attention": 1}, 8, []),
        ("smollm3", {"full_attention": 2}, None, [1]),
    ],
)
def test_layers_are_counted_by_kind(name: str, kinds: dict[str, int], window: int | None, without: list[int]) -> None:
    found = doctor_checks.layer_kinds(build(name).config)
    assert found == {"kinds": kinds, "sliding_window": window, "without_rope": without}


@pytest.mark.half
def test_a_bf16_model_needs_the_fused_kernel_for_wide_products(tmp_path: Path) -> None:
    facts = doctor.examine(named(save_model(tmp_path, LlamaConfig(**SHAPE), torch.bfloat16)))
    assert facts["rope"]["detected"] == "bf16"
    assert facts["arms"]["fp32-qk"] == {"allowed": True, "kernel": "fused", "why": None}
    assert facts["arms"]["fp32"]["kernel"] == "sdpa" == facts["arms"]["bf16"]["kernel"]
    assert facts["arms"]["fp32+anchor-shift:16"]["allowed"]
    assert "with fused" in doctor.page(facts)
