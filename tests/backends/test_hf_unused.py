"""Weights that the architecture has no place for: refused by name, or named in the header where they are harmless."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import SHAPE, save_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import DeepseekV3Config, GPT2Config, GPTNeoXConfig, LlamaConfig

from anchoreval.backends.hf.backend import HfBackend
from anchoreval.cli import parser as cli
from anchoreval.errors import ModelError

LATENT = {
    **SHAPE, "num_key_value_heads": 4, "q_lora_rank": 32, "kv_lora_rank": 16, "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16, "v_head_dim": 16, "head_dim": 8, "n_routed_experts": 4, "num_experts_per_tok": 2,
    "moe_intermediate_size": 32, "n_group": 2, "topk_group": 1, "n_shared_experts": 1, "first_k_dense_replace": 2,
}  # fmt: skip


def with_weights(source: Path, folder: Path, **more: Tensor) -> Path:
    """A copy of the checkpoint with more weights in its file; `__` in a name stands for a dot."""
    copied = Path(shutil.copytree(source, folder))
    add(copied, {name.replace("__", "."): weight for name, weight in more.items()})
    return copied


def add(folder: Path, weights: Mapping[str, Tensor]) -> None:
    file = folder / "model.safetensors"
    save_file({**load_file(file), **weights}, file, {"format": "pt"})


def refusal(folder: Path, **options: Any) -> str:
    with pytest.raises(ModelError) as caught:
        HfBackend.open(str(folder), **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def unused(folder: Path, **options: Any) -> dict[str, Any]:
    said = HfBackend.open(str(folder), **options).describe()["unused_weights"]
    json.dumps(said)
    return dict(said)


def test_biases_that_the_architecture_lacks_are_refused_by_name(llama: Path, tmp_path: Path) -> None:
    biases = {f"model__layers__{layer}__self_attn__q_proj__bias": torch.ones(64) for layer in range(2)}
    line = refusal(with_weights(llama, tmp_path / "biased", **biases))
    assert "2 weights that LlamaForCausalLM has no place for (model.layers.0.self_attn.q_proj.bias," in line
    assert "unused_weights=allow" in line


def test_layers_beyond_the_stated_number_are_refused(llama: Path, tmp_path: Path) -> None:
    folder = with_weights(llama, tmp_path / "short")
    stated = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(stated | {"num_hidden_layers": 1}))
    assert "9 weights" in (line := refusal(folder)) and "model.layers.1." in line and "too few layers" in line


def test_unused_weights_may_be_allowed_and_are_then_named_and_part_of_the_identity(llama: Path, tmp_path: Path) -> None:
    name = "model.layers.0.self_attn.q_proj.bias"
    folder = with_weights(llama, tmp_path / "biased", **{name.replace(".", "__"): torch.ones(64)})
    backend = HfBackend.open(str(folder), unused_weights="allow")
    assert backend.describe()["unused_weights"] == {"allowed": {"weights": 1, "first": [name]}}
    other = with_weights(folder, tmp_path / "other")
    assert HfBackend.open(str(other), unused_weights="allow").fingerprint == backend.fingerprint
    assert unused(llama) == {}
    assert "refuse or allow" in refusal(llama, unused_weights="perhaps")


def test_a_run_names_them_in_its_header_and_on_stderr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from anchoreval.cards import find_model

    source = Path(find_model("anchor-tiny")[1].checkpoint)
    bias = torch.full((256,), 3.0, dtype=torch.bfloat16)
    folder = with_weights(source, tmp_path / "m", model__layers__0__self_attn__q_proj__bias=bias)
    flags = ["--model", str(folder), "--tasks", "ruler/niah_single_1", "--lengths", "512", "--limit", "1"]
    flags += ["--haystack", "generated", "--output", str(tmp_path / "runs")]
    assert cli.main(["run", *flags]) == 2
    assert "q_proj.bias" in capsys.readouterr().err
    assert cli.main(["run", *flags, "--backend-args", "unused_weights=allow"]) == 0
    assert "left out, allowed: 1 weights of the checkpoint (model.layers.0" in capsys.readouterr().err
    header = json.loads(next(tmp_path.glob("runs/*/*/header.json")).read_text())
    assert header["backend"]["unused_weights"]["allowed"]["weights"] == 1


def test_rotary_frequencies_of_older_checkpoints_are_harmless_and_compared(llama: Path, tmp_path: Path) -> None:
    inv_freq = 1e4 ** (-torch.arange(0, 16, 2) / 16)
    names = [f"model.layers.{layer}.self_attn.rotary_emb.inv_freq" for layer in range(2)]
    folder = with_weights(llama, tmp_path / "old")
    add(folder, {name: inv_freq.to(torch.bfloat16) for name in names})
    assert unused(folder) == {"buffers made anew": {"weights": 2, "first": names}}
    add(folder, {names[1]: inv_freq / 4})
    assert unused(folder)["frequencies_off"] == pytest.approx(0.75, abs=1e-4)


def test_masks_that_older_versions_saved_are_harmless_and_biases_of_their_name_are_not(tmp_path: Path) -> None:
    sizes = {"vocab_size": 259, "n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 64}
    gpt2 = save_model(tmp_path / "gpt2", GPT2Config(**sizes, bos_token_id=1, eos_token_id=2))
    name = "transformer.h.0.attn.bias"
    add(gpt2, {name: torch.ones(1, 1, 64, 64)})
    assert unused(gpt2) == {"buffers made anew": {"weights": 1, "first": [name]}}
    neox = save_model(tmp_path / "neox", GPTNeoXConfig(**{k: v for k, v in SHAPE.items() if "key_value" not in k}))
    mask, wrong = "gpt_neox.layers.0.attention.masked_bias", "gpt_neox.layers.0.attention.extra.bias"
    add(neox, {mask: torch.tensor(-1e9)})
    assert unused(neox)["buffers made anew"]["first"] == [mask]
    add(neox, {wrong: torch.ones(64)})
    assert wrong in refusal(neox)


def test_layers_that_predict_further_tokens_are_named_and_plain_ones_of_their_number_refused(tmp_path: Path) -> None:
    """transformers ignores layer 61 of every DeepSeek-V3, whatever it is."""
    folder = save_model(tmp_path / "v3", DeepseekV3Config(**LATENT))
    predicting = {
        "model.layers.61.eh_proj.weight": torch.ones(64, 128),
        "model.layers.61.self_attn.o_proj.weight": torch.ones(64, 64),
    }
    plain = Path(shutil.copytree(folder, tmp_path / "plain"))
    add(folder, predicting)
    assert unused(folder) == {"ignored by the architecture": {"weights": 2, "first": sorted(predicting)}}
    add(plain, {"model.layers.61.self_attn.o_proj.weight": torch.ones(64, 64)})
    assert "model.layers.61.self_attn.o_proj.weight" in refusal(plain)


def test_towers_of_other_inputs_are_named(llama: Path, tmp_path: Path) -> None:
    folder = with_weights(llama, tmp_path / "m", vision_tower__blocks__0__attn__qkv__weight=torch.ones(4, 4))
    kind = "of other inputs than text"
    assert unused(folder) == {kind: {"weights": 1, "first": ["vision_tower.blocks.0.attn.qkv.weight"]}}


def test_weights_of_another_shape_are_refused(llama: Path, tmp_path: Path) -> None:
    folder = with_weights(llama, tmp_path / "m", model__layers__1__mlp__up_proj__weight=torch.ones(127, 64))
    assert "cannot be loaded" in refusal(folder)
    assert "cannot be loaded" in refusal(folder, unused_weights="allow")


def test_a_head_that_is_stored_beside_the_embedding_it_is_tied_to_is_used(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "m", LlamaConfig(**{**SHAPE, "tie_word_embeddings": True}))
    embedding = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    add(folder, {"lm_head.weight": embedding.clone()})
    assert unused(folder) == {}
    add(folder, {"lm_head.weight": 2 * embedding})
    backend = HfBackend.open(str(folder))
    assert torch.equal(backend.model.lm_head.weight, 2 * embedding)
