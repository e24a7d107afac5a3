"""Checkpoints: what is read, what is refused with one line, and what identifies them."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import EOS, SHAPE, prompts, request, save_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, DynamicCache, LlamaConfig, MambaConfig

from anchoreval.backends.hf.backend import HfBackend
from anchoreval.backends.hf.load import load
from anchoreval.backends.hf.network import LowerRight, extend_rows
from anchoreval.errors import ModelError
from anchoreval.model.checkpoint import find_checkpoint

REQUESTS = [request(str(i), ids, 6, reference=(9, 8)) for i, ids in enumerate(prompts(4, 20, 90))]


@pytest.fixture
def copied(llama: Path, tmp_path: Path) -> Path:
    """A Llama's folder that a test may change."""
    return Path(shutil.copytree(llama, tmp_path / "copied"))


def refusal(folder: Path | str, **options: Any) -> str:
    with pytest.raises(ModelError) as caught:
        HfBackend.open(str(folder), **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_auto_keeps_the_dtype_that_the_weights_were_saved_in(tmp_path: Path) -> None:
    folder = save_model(tmp_path, LlamaConfig(**SHAPE), dtype=torch.bfloat16)
    assert HfBackend.open(str(folder)).describe()["dtype"] == "bfloat16"
    assert HfBackend.open(str(folder), dtype="float32").describe()["dtype"] == "float32"


def test_the_description_says_what_was_loaded(llama: Path) -> None:
    described = HfBackend.open(str(llama), chunk_tokens=64).describe()
    weights = hashlib.sha256((llama / "model.safetensors").read_bytes()).hexdigest()
    assert described["files_sha256"]["model.safetensors"] == weights
    model = AutoModelForCausalLM.from_pretrained(llama)
    assert described["parameters"] == model.num_parameters()
    assert (described["max_length"], described["kernel"], described["device"]) == (4096, "sdpa", "cpu")
    assert described["prefill"] == {"chunk_tokens": 64}
    assert described["rope_selftest"]["ok"] is True


def test_shards_give_the_same_answers_as_one_file(llama: Path, tmp_path: Path) -> None:
    AutoModelForCausalLM.from_pretrained(llama).save_pretrained(tmp_path, max_shard_size="100KB")
    shutil.copy(llama / "tokenizer.json", tmp_path)
    sharded = HfBackend.open(str(tmp_path))
    assert sum(name.endswith(".safetensors") for name in sharded.describe()["files_sha256"]) > 2

    def said(backend: HfBackend) -> list[tuple[Any, ...]]:
        return [(o.token_ids, o.reference_logprob) for o in backend.answer(REQUESTS)]

    assert said(sharded) == said(HfBackend.open(str(llama)))


def test_pickled_weights_are_refused(copied: Path) -> None:
    (copied / "model.safetensors").unlink()
    (copied / "pytorch_model.bin").write_bytes(b"\x80")
    line = refusal(copied)
    assert "pytorch_model.bin" in line and "safetensors" in line


def test_a_missing_shard_is_named(copied: Path) -> None:
    (copied / "model.safetensors").unlink()
    index = {"weight_map": {"model.embed_tokens.weight": "model-00001-of-00002.safetensors"}}
    (copied / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "model-00001-of-00002.safetensors" in refusal(copied)


def test_broken_weights_a_missing_config_and_a_missing_tokenizer_are_one_line(copied: Path) -> None:
    (copied / "tokenizer.json").rename(copied / "elsewhere")
    assert "tokenizer.json" in refusal(copied)
    (copied / "elsewhere").rename(copied / "tokenizer.json")
    (copied / "model.safetensors").write_bytes(b"not weights")
    refusal(copied)
    (copied / "config.json").unlink()
    assert "config.json" in refusal(copied)


def test_what_is_neither_a_folder_nor_on_the_hub_is_one_line() -> None:
    assert "no/such-model" in refusal("no/such-model")
    assert "no such folder" in refusal("no such folder")


def test_weights_that_are_missing_are_not_made_up(copied: Path) -> None:
    weights = load_file(copied / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, copied / "model.safetensors", {"format": "pt"})
    assert "model.layers.1.mlp.up_proj.weight" in refusal(copied)


def test_bad_options_are_named(llama: Path) -> None:
    assert "float64" in refusal(llama, dtype="float64")
    assert "use_kernels" in refusal(llama, use_kernels=True)
    assert "rows" in refusal(llama, rows=0)
    assert "nonsense" in refusal(llama, kernel="nonsense")
    assert "quantum" in refusal(llama, device="quantum")
    if not torch.cuda.is_available():
        assert "CUDA" in refusal(llama, device="cuda")


def test_a_model_with_a_recurrent_state_is_refused(tmp_path: Path) -> None:
    config = MambaConfig(vocab_size=259, hidden_size=16, num_hidden_layers=1, state_size=4)
    assert "mamba" in refusal(save_model(tmp_path, config))


def test_code_of_the_checkpoint_is_not_run_unless_asked(copied: Path) -> None:
    config = json.loads((copied / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"}}
    (copied / "config.json").write_text(json.dumps(config))
    (copied / "own.py").write_text(f"open({str(copied / 'ran')!r}, 'w')\nclass Own: pass\n")
    assert "trust_remote_code" in refusal(copied)
    assert not (copied / "ran").exists()


def test_the_fingerprint_follows_weights_dtype_and_chunk(llama: Path, copied: Path) -> None:
    stock = HfBackend.open(str(llama), dtype="float32").fingerprint
    assert HfBackend.open(str(copied), dtype="float32").fingerprint == stock
    assert HfBackend.open(str(llama), dtype="bfloat16").fingerprint != stock
    assert HfBackend.open(str(llama), dtype="float32", chunk_tokens=64).fingerprint != stock
    weights = copied / "model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.write_bytes(bytes(raw))
    assert HfBackend.open(str(copied), dtype="float32").fingerprint != stock


def test_end_tokens_come_from_both_configs_and_the_tokenizer(copied: Path) -> None:
    (copied / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 8]}))
    (copied / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "<pad>"}}))
    assert HfBackend.open(str(copied)).describe()["eos_token_ids"] == [0, EOS, 7, 8]


def test_tokens_that_the_model_does_not_have_are_refused(llama: Path) -> None:
    backend = HfBackend.open(str(llama))
    with pytest.raises(ModelError, match="token 400"):
        next(iter(backend.answer([request("x", (1, 400))])))
    with pytest.raises(ModelError, match="empty prompt"):
        next(iter(backend.answer([request("x", ())])))


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.half)])
def test_the_mask_of_a_chunk_has_the_bits_of_the_one_that_every_layer_makes(
    llama: Path, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first chunk has no mask, the second floats made once; both chunks with booleans are the stock way."""
    network = load(find_checkpoint(str(llama)), dtype, "cpu", "sdpa", False)
    ids, kinds = prompts(1, 200, 200)[0], []
    stock = type(network.model).forward

    def seen(self: Any, *args: Any, **kwargs: Any) -> Any:
        kinds.append(type(kwargs["attention_mask"]))
        return stock(self, *args, **kwargs)

    monkeypatch.setattr(type(network.model), "forward", seen)

    def chunked() -> torch.Tensor:
        cache = DynamicCache(config=network.model.config)
        with torch.inference_mode():
            rows = torch.tensor([ids, ids[::-1]])
            extend_rows(network, cache, rows[:, :130], range(130), 0)
            return extend_rows(network, cache, rows[:, 130:], range(130, 200), 130, keep=70)

    made = chunked()
    assert kinds == [torch.Tensor, LowerRight] and made.shape[:2] == (2, 70)
    monkeypatch.setattr(network, "_plain", False)
    assert torch.equal(made, chunked()) and kinds[2:] == [torch.Tensor, torch.Tensor]
