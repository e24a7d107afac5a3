"""Measurements behind `anchoreval doctor` on a loaded model: rotary state, angles, the first token's share, arms.

Shapes: P positions, F frequencies, H heads, Q query rows of a block, C keys.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from anchoreval.arms.arm import parse_arm
from anchoreval.arms.configuration import layer_kinds as kinds_of_layers
from anchoreval.arms.configuration import stated
from anchoreval.arms.inspect_hf import BROKEN, inspect_rope
from anchoreval.arms.patch_hf import rotary_modules
from anchoreval.arms.precision import frequency_buffers, sound_copy, unchecked
from anchoreval.arms.rope import LEVELS
from anchoreval.backends.hf.backend import HfBackend
from anchoreval.backends.hf.cache import KvStore
from anchoreval.backends.hf.load import StockNetwork
from anchoreval.errors import AnchorEvalError
from anchoreval.prompt import Anchor, require_no_anchor
from anchoreval.schema import Json

TORCH = {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
#: Radians. FINE is the most by which rounding to bf16 moves a cosine: half of the spacing 2**-8 below 1. COARSE is half
#: of the step between neighbouring positions at the fastest rotation: an angle off by more is nearer to another
#: position.
FINE, COARSE = 2.0**-9, 0.5
CEILING = 1 << 20  # positions that are checked
_BLOCK = 1 << 14
SINK_ROWS = 32  # query rows of a block
ASKED = (*LEVELS, "fp32+shift:16", "fp32+anchor-shift:16", "fp32+reset", "anchor/fp32", "intra-doc/fp32")


def detected_levels(model: nn.Module) -> dict[str, str | None]:
    """Return model dtype -> the level that the installed modelling code computes, or None if it equals no level."""
    levels = {}
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16), ("float16", torch.float16)):
        empty = {id(p): nn.Parameter(torch.empty(0, dtype=dtype), requires_grad=False) for p in model.parameters()}
        levels[name] = inspect_rope(copy.deepcopy(model, empty)).detected
    return levels


def after_cast(model: nn.Module) -> float | None:
    """Return the largest relative error of inv_freq after `model.to(torch.bfloat16)`, or None without a comparison."""
    errors = []
    for path, module in rotary_modules(model).items():
        if unchecked(module) is None:
            cast = sound_copy(module, path)[0].to(torch.bfloat16)
            errors += [buffer.max_relative_error for buffer in sound_copy(cast, path)[1]] or [0.0]
    return max(errors, default=None)


def resolved(model: nn.Module, ceiling: int) -> dict[str, dict[str, int]]:
    """Return level -> the last positions up to which every angle is within `fine` and within `coarse` of fp64.

    All rotations of all rotary modules are compared with fp64 products of the model's own fp32 frequencies.
    `ceiling - 1` means that no position below the ceiling failed.
    """
    buffers = [
        b for path, m in rotary_modules(model).items() for b in frequency_buffers(sound_copy(m, path)[0]).values()
    ]
    if not buffers:
        return {}
    inv_freq_F = torch.tensor(sorted({value for buffer in buffers for value in buffer.float().flatten().tolist()}))
    by_sites: dict[tuple[str, str], dict[str, int]] = {}
    for level in LEVELS.values():
        sites = level.inv_freq, level.angle
        if not level.native and sites not in by_sites:
            by_sites[sites] = last_resolved(inv_freq_F, *sites, ceiling)
    return {name: by_sites[level.inv_freq, level.angle] for name, level in LEVELS.items() if not level.native}


def last_resolved(inv_freq_F: Tensor, inv_freq: str, angle: str, ceiling: int) -> dict[str, int]:
    """Return the last position before the first error over FINE and over COARSE, for positions below `ceiling`."""
    last: dict[str, int] = {}
    rounded_F = inv_freq_F.to(TORCH[inv_freq]).to(TORCH[angle])
    for start in range(0, ceiling, _BLOCK):
        position_P = torch.arange(start, min(start + _BLOCK, ceiling))
        angle_PF = position_P.to(TORCH[angle])[:, None] * rounded_F
        error_P = (angle_PF.double() - position_P.double()[:, None] * inv_freq_F.double()).abs().amax(1)
        for name, most in (("fine", FINE), ("coarse", COARSE)):
            if name not in last and bool((error_P > most).any()):
                last[name] = start + int((error_P > most).nonzero()[0]) - 1
        if len(last) == 2:
            break
    return {name: last.get(name, ceiling - 1) for name in ("fine", "coarse")}


def sinks(network: StockNetwork, ids: list[int]) -> dict[str, Json]:
    """Return the result of `sink_shares` as `by_layer`, or None and `why` if the model returns no attention weights."""
    try:
        return {"by_layer": sink_shares(network, ids)}
    except BROKEN as error:
        return {"by_layer": None, "why": " ".join(f"{type(error).__name__}: {error}".split())[:200]}


@torch.inference_mode()
def sink_shares(network: StockNetwork, ids: list[int]) -> list[float]:
    """Return for each attention layer the share of attention from the second half of `ids` to the first token.

    A share is the mean over heads and queries. Queries are computed in blocks with the `eager` kernel, which is the one
    that returns weights.
    """
    model, length = network.model, len(ids)
    if getattr(model.config, "alibi", False):
        raise ValueError("its eager kernel, which hands weights out, adds ALiBi twice")
    stock, step = model.config._attn_implementation, length if network.whole_prompts else SINK_ROWS
    cache, total, rows = KvStore(network.layers, 1, length).row(0, 0, 0), list[float](), 0
    model.set_attn_implementation("eager")
    try:
        for at in range(0, length, step):
            stop = min(at + step, length)
            weights = _weights(network, ids[at:stop], cache, (at, stop))
            late = max(0, length // 2 - at)
            rows += max(0, stop - at - late)
            total = total or [0.0] * len(weights)  # not the cache's layers: layers that share keys are missing there
            for layer, weight_HQC in enumerate(weights):
                total[layer] += float(weight_HQC[:, late:, 0].double().sum() / weight_HQC.shape[0])
    finally:
        model.set_attn_implementation(stock)
    return [share / rows for share in total]


def _weights(network: StockNetwork, ids: list[int], cache: Any, at: tuple[int, int]) -> list[Tensor]:
    """Return the attention weights [H, Q, C] of every layer for the tokens at positions `at` (start, stop)."""
    device = network.device
    output = network.model(
        input_ids=torch.tensor([ids], device=device),
        past_key_values=cache,
        position_ids=torch.arange(*at, device=device)[None],
        attention_mask=torch.ones(1, at[1], dtype=torch.long, device=device),
        logits_to_keep=1,
        output_attentions=True,
    )
    if not output.attentions or any(weights is None for weights in output.attentions):
        raise ValueError("the model hands out no attention weights")
    return [weight_1HQC[0] for weight_1HQC in output.attentions]


def allowed_arms(backend: HfBackend, anchor: Anchor = "auto") -> dict[str, dict[str, Json]]:
    """Return for each arm whether it is `allowed`, the `kernel` it needs, and else the reason (`why`).

    Each arm is installed and one short pass is run under it: first with the kernel that the model was loaded with, as
    `run` does without a flag, then with `fused`. Under the anchor `none`, arms that act on the anchor are not allowed.
    """
    arms = {}
    for name in ASKED:
        refusals = []
        for kernel in (str(backend.describe()["kernel"]), "fused"):
            try:
                if anchor == "none":
                    require_no_anchor(parse_arm(name))
                with backend.under(replace(parse_arm(name), kernel=kernel)) as applied:
                    _one_pass(backend.model)
                arms[name] = {"allowed": True, "kernel": applied["kernel"], "why": None}
                break
            except (AnchorEvalError, RuntimeError, ValueError) as error:
                refusals.append(" ".join(str(error).split()))
        else:
            arms[name] = {"allowed": False, "kernel": None, "why": refusals[0].partition(": ")[2] or refusals[0]}
    return arms


@torch.inference_mode()
def _one_pass(model: Any) -> None:
    ids = torch.arange(3, 11, device=next(model.parameters()).device)[None]
    output = model(ids, attention_mask=torch.ones_like(ids), position_ids=torch.arange(8, device=ids.device)[None])
    if not math.isfinite(float(output.logits.float().abs().max())):
        raise AnchorEvalError("the logits are not finite")


def layer_kinds(config: Any) -> dict[str, Json]:
    """Return the layers by kind of attention, the window in tokens (None without one) and the layers without RoPE."""
    counted: Mapping[str, int] = Counter(kinds_of_layers(config))
    rope_by_layer = stated(config, "no_rope_layers") or []
    return {
        "kinds": dict(counted),
        "sliding_window": stated(config, "sliding_window") if "sliding_attention" in counted else None,
        "without_rope": [layer for layer, rotates in enumerate(rope_by_layer) if not rotates],
    }
