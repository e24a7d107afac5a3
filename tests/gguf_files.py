"""A checkpoint of a Llama as the GGUF file that llama.cpp reads, in float32. Needs the package `gguf`."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import torch
from safetensors.torch import load_file

#: Name of a tensor of transformers -> of llama.cpp, in a layer.
_IN_LAYER = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_OUTSIDE = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}


def written(folder: Path, path: Path) -> Path:
    """The path, where a Llama with tied embeddings and a byte-level BPE now stands.

    llama.cpp rotates neighbouring dimensions of q and k, transformers halves: the rows of their weights change places.
    Its list of ways to cut text before BPE does not hold every tokenizer's; prompts go as token ids.
    """
    config = json.loads((folder / "config.json").read_text("utf-8"))
    file = gguf.GGUFWriter(path, "llama")
    file.add_file_type(gguf.LlamaFileType.ALL_F32)
    file.add_context_length(config["max_position_embeddings"])
    file.add_embedding_length(config["hidden_size"])
    file.add_block_count(config["num_hidden_layers"])
    file.add_feed_forward_length(config["intermediate_size"])
    file.add_head_count(config["num_attention_heads"])
    file.add_head_count_kv(config["num_key_value_heads"])
    file.add_layer_norm_rms_eps(config["rms_norm_eps"])
    file.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    file.add_rope_dimension_count(config["head_dim"])
    file.add_vocab_size(config["vocab_size"])
    _add_tokenizer(file, folder, config)
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    for name, weight in load_file(folder / "model.safetensors").items():
        file.add_tensor(_name(name), _neighbouring(weight, heads.get(name.split(".")[-2])))
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()
    return path


def _add_tokenizer(file: gguf.GGUFWriter, folder: Path, config: dict[str, int]) -> None:
    said = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    tokens = {number: token for token, number in said["model"]["vocab"].items()}
    tokens |= {each["id"]: each["content"] for each in said["added_tokens"]}
    special = {each["id"] for each in said["added_tokens"] if each["special"]}
    file.add_tokenizer_model("gpt2")
    file.add_tokenizer_pre("default")
    file.add_token_list([tokens[number] for number in range(config["vocab_size"])])
    kinds = gguf.TokenType
    file.add_token_types([kinds.CONTROL if number in special else kinds.NORMAL for number in range(len(tokens))])
    file.add_token_merges([pair if isinstance(pair, str) else " ".join(pair) for pair in said["model"]["merges"]])
    file.add_bos_token_id(config["bos_token_id"])
    file.add_eos_token_id(config["eos_token_id"])
    file.add_add_bos_token(True)


def _name(name: str) -> str:
    if name in _OUTSIDE:
        return _OUTSIDE[name]
    _, _, layer, rest = name.split(".", 3)
    return f"blk.{layer}.{_IN_LAYER[rest.removesuffix('.weight')]}.weight"


def _neighbouring(weight: torch.Tensor, heads: int | None) -> np.ndarray:
    """The weight in float32, its rows as llama.cpp rotates them where it has heads that are rotated."""
    values = weight.to(torch.float32)
    if heads is not None:
        rows, columns = values.shape
        values = values.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)
    return values.contiguous().numpy()
