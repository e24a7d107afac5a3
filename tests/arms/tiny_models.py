"""Tiny random models of many architectures, made from configurations in memory, and their RoPE by the papers.

`frequencies` and `rotated` are written from the definitions, in float64, and share no code with the package.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import transformers
from torch import Tensor

from anchoreval.arms.patch_hf import rotary_modules, rotating_modules

SHAPE = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32768,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
HEADS_ONLY = {key: value for key, value in SHAPE.items() if key != "num_key_value_heads"}
ORIGINAL = {"factor": 8.0, "original_max_position_embeddings": 4096}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    **ORIGINAL,
}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, **ORIGINAL}
SCALED = {"rope_theta": 1e4, "factor": 4.0}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0 + i / 8 for i in range(8)],
    "long_factor": [2.0 + i for i in range(8)],
}
LOCAL_GLOBAL = {"head_dim": 16, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}
GLOBAL_LOCAL = {"head_dim": 16, "sliding_window": 8, "layer_types": ["full_attention", "sliding_attention"]}
EXPERTS = {"num_local_experts": 2, "num_experts_per_tok": 1}

ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", SHAPE),
    "llama-llama3": ("Llama", {**SHAPE, "rope_parameters": LLAMA3}),
    "llama-yarn": ("Llama", {**SHAPE, "rope_parameters": YARN}),
    "llama-linear": ("Llama", {**SHAPE, "rope_parameters": {"rope_type": "linear", **SCALED}}),
    "llama-dynamic": (
        "Llama",
        {**SHAPE, "max_position_embeddings": 64, "rope_parameters": {"rope_type": "dynamic", **SCALED}},
    ),
    "mistral": ("Mistral", {**SHAPE, "sliding_window": None}),
    "mistral-window": ("Mistral", {**SHAPE, "sliding_window": 8}),
    "qwen2": ("Qwen2", SHAPE),
    "qwen3": ("Qwen3", {**SHAPE, "head_dim": 16}),
    "gemma": ("Gemma", {**SHAPE, "head_dim": 16}),
    "gemma2": ("Gemma2", {**SHAPE, **LOCAL_GLOBAL, "query_pre_attn_scalar": 16}),
    "gemma3-local": ("Gemma3Text", {**SHAPE, **LOCAL_GLOBAL, "query_pre_attn_scalar": 16}),
    "gemma3-global": ("Gemma3Text", {**SHAPE, **GLOBAL_LOCAL, "query_pre_attn_scalar": 16}),
    "phi3": ("Phi3", SHAPE),
    "phi3-longrope": (
        "Phi3",
        {
            **SHAPE,
            "max_position_embeddings": 4096,
            "original_max_position_embeddings": 64,
            "rope_parameters": LONGROPE,
        },
    ),
    "phi": ("Phi", {**SHAPE, "num_key_value_heads": 4, "partial_rotary_factor": 0.5}),
    "mixtral": ("Mixtral", {**SHAPE, **EXPERTS, "sliding_window": None}),
    "olmo": ("Olmo", SHAPE),
    "olmo2": ("Olmo2", SHAPE),
    "olmo3": ("Olmo3", {**SHAPE, "sliding_window": 8}),
    "cohere": ("Cohere", SHAPE),
    "cohere2": ("Cohere2", {**SHAPE, "sliding_window": 8, "head_dim": 16}),
    "granite": ("Granite", SHAPE),
    "starcoder2": ("Starcoder2", SHAPE),
    "stablelm": ("StableLm", SHAPE),
    "gpt-neox": ("GPTNeoX", HEADS_ONLY),
    "gpt-oss": ("GptOss", {**SHAPE, **EXPERTS, "head_dim": 16, "sliding_window": 8}),
    "smollm3": ("SmolLM3", {**SHAPE, "no_rope_layers": [1, 0]}),
    "glm4": ("Glm4", {**SHAPE, "head_dim": 16}),
    "ernie4.5": ("Ernie4_5", {**SHAPE, "head_dim": 16}),
}
INTERLEAVED = {"cohere", "cohere2", "glm4", "ernie4.5"}
#: What the stock code of a bf16 model computes (read from the modelling files); all others are `bf16`.
STOCK_IN_BF16 = {
    **dict.fromkeys(("olmo", "olmo2", "olmo3", "ernie4.5"), "fp32"),
    **dict.fromkeys(("cohere", "cohere2"), "bf16-table"),
}


def build(name: str, dtype: torch.dtype = torch.float32) -> Any:
    """The model `name`, seeded, in eval mode; frequencies stay fp32, as after from_pretrained(dtype=...)."""
    family, settings = ARCHITECTURES[name]
    config = getattr(transformers, f"{family}Config")(**settings)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            # random models attend almost evenly; make scores large enough for positions to matter
            if parameter.ndim == 2 and any(part in path for part in ("q_proj", "k_proj", "qkv_proj", "query_key")):
                parameter.mul_(8)
            if path.endswith("sinks"):
                parameter.normal_()
        sound = [dict(module._buffers) for module in rotary_modules(model).values()]
        model.to(dtype)
        for module, buffers in zip(rotary_modules(model).values(), sound, strict=True):
            module._buffers.update(buffers)
    return model


def layer_type(model: Any, layer: int) -> str | None:
    """The key of rope_parameters for a layer: None where all layers share them."""
    nested = any(isinstance(value, dict) for value in model.config.rope_parameters.values())
    return model.config.layer_types[layer] if nested else None


def rope_parameters(model: Any, layer: int) -> dict[str, Any]:
    kind = layer_type(model, layer)
    return model.config.rope_parameters if kind is None else model.config.rope_parameters[kind]


def frequencies(model: Any, layer: int, length: int) -> tuple[Tensor, float]:
    """Inverse frequencies [d / 2] in float64 and the scaling of cos and sin, at `length` positions."""
    config, given = model.config, rope_parameters(model, layer)
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    d = int(head * given.get("partial_rotary_factor", 1.0))
    exponent = torch.arange(0, d, 2, dtype=torch.float64) / d
    base, factor = given["rope_theta"], given.get("factor")
    plain = base**-exponent
    match given["rope_type"]:
        case "linear":
            return plain / factor, 1.0
        case "dynamic":  # NTK-aware, with the length in place of a fixed factor
            most = config.max_position_embeddings
            grown = base * (factor * max(length, most) / most - (factor - 1)) ** (d / (d - 2))
            return grown**-exponent, 1.0
        case "llama3":
            turns = given["original_max_position_embeddings"] * plain / (2 * math.pi)
            low, high = given["low_freq_factor"], given["high_freq_factor"]
            keep = ((turns - low) / (high - low)).clamp(0, 1)
            return keep * plain + (1 - keep) * plain / factor, 1.0
        case "yarn":  # NTK-by-parts: pairs that turn 32 times and more are kept, under one turn interpolated
            original = given["original_max_position_embeddings"]
            low, high = (d * math.log(original / (n * 2 * math.pi)) / (2 * math.log(base)) for n in (32, 1))
            if given.get("truncate", True):
                low, high = math.floor(low), math.ceil(high)
            low, high = max(low, 0), min(high, d - 1)
            keep = 1 - ((torch.arange(d // 2, dtype=torch.float64) - low) / (high - low)).clamp(0, 1)
            return keep * plain + (1 - keep) * plain / factor, 0.1 * math.log(factor) + 1
        case "longrope":
            original = given["original_max_position_embeddings"]
            chosen = given["long_factor"] if length > original else given["short_factor"]
            ratio = config.max_position_embeddings / original
            scaling = math.sqrt(1 + math.log(ratio) / math.log(original))
            return plain / torch.tensor(chosen, dtype=torch.float64), scaling
    return plain, 1.0


def rotated(x: Tensor, angle: Tensor, scaling: float, interleaved: bool) -> Tensor:
    """x [..., L, D] turned by angle [L, d / 2] as complex numbers in float64; the rest is left alone."""
    d = 2 * angle.shape[-1]
    turn = torch.polar(torch.full_like(angle, scaling), angle)
    head, rest = x.double()[..., :d], x.double()[..., d:]
    if interleaved:
        pairs = torch.view_as_complex(head.unflatten(-1, (-1, 2)).contiguous())
        return torch.cat([torch.view_as_real(pairs * turn).flatten(-2), rest], -1)
    real, imaginary = head.chunk(2, -1)
    turned = torch.complex(real.contiguous(), imaginary.contiguous()) * turn
    return torch.cat([turned.real, turned.imag, rest], -1)


def moduli(x: Tensor, d: int, interleaved: bool) -> Tensor:
    """The length of the pair that each of the d rotated components of x [..., D] belongs to; 0 past d."""
    head = x.double()[..., :d]
    if interleaved:
        length = head.unflatten(-1, (-1, 2)).norm(dim=-1).repeat_interleave(2, -1)
    else:
        half = head.unflatten(-1, (2, -1)).norm(dim=-2)
        length = torch.cat([half, half], -1)
    return torch.cat([length, torch.zeros_like(x.double()[..., d:])], -1)


def token_ids(length: int, batch: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(3, 128, (batch, length), generator=generator)


@torch.no_grad()
def logits(model: Any, length: int = 20, offset: int = 0) -> Tensor:
    ids = token_ids(length)
    positions = torch.arange(length)[None] + offset
    return model(ids, attention_mask=torch.ones_like(ids), position_ids=positions).logits


@torch.no_grad()
def chunked_logits(model: Any, lengths: list[int]) -> Tensor:
    """Logits of one text prefilled in chunks of these lengths, on a cache."""
    ids, start, out = token_ids(sum(lengths)), 0, []
    cache = transformers.DynamicCache(config=model.config)
    for length in lengths:
        stop = start + length
        positions, mask = torch.arange(start, stop)[None], torch.ones(1, stop, dtype=torch.long)
        chunk = ids[:, start:stop]
        out.append(model(chunk, attention_mask=mask, position_ids=positions, past_key_values=cache).logits)
        start = stop
    return torch.cat(out, 1)


def state(model: Any) -> dict[str, Any]:
    """Everything a level could leave behind: forwards, functions, buffers (objects and bits), kernel name."""
    rotary = rotary_modules(model)
    return {
        "forwards": {path: m.__dict__.get("forward") for path, m in model.named_modules()},
        "functions": {path: dict(found) for path, found in rotating_modules(model).items()},
        "attributes": {path: {k: v for k, v in vars(m).items() if k[0] != "_"} for path, m in rotary.items()},
        "buffers": {path: {k: id(b) for k, b in m._buffers.items()} for path, m in rotary.items()},
        "bits": {path: {k: b.tolist() for k, b in m._buffers.items()} for path, m in rotary.items()},
        "kernel": model.config._attn_implementation,
    }
