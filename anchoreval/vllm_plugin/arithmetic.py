"""RoPE at a chosen precision from vLLM's own frequencies: the arithmetic of the hf backend, level by level.

What belongs to the model (its inverse frequencies under llama3, yarn, linear or dynamic scaling, the magnitude that
yarn multiplies tables by) comes from vLLM's own class; what belongs to the level (the dtypes of arms/rope.py) is done
here. Shapes: N tokens, R table rows, D the rotated dimensions of a head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.layers.rotary_embedding import RotaryEmbedding

from anchoreval.arms.precision import TORCH, rounded
from anchoreval.arms.rope import RopeLevel
from anchoreval.errors import UnsupportedArm

_COMPARED_ROWS = 4096


@dataclass(frozen=True, slots=True)
class Frequencies:
    """A rotary module's inverse frequencies [D/2] in fp32, its magnitude, and the rows of its own table."""

    inv_freq: Tensor
    magnitude: float
    rows: int


def frequencies(rotary: Any) -> Frequencies:
    """Return the frequencies from which `rotary`, of vLLM or of ours, makes its table.

    Raise UnsupportedArm if its table is not cos and sin of position x frequency, times one magnitude.
    """
    seen: list[Tensor] = []

    class Recording(type(rotary)):  # type: ignore[misc]
        def _compute_inv_freq(self, *args: Any) -> Tensor:
            seen.append(super()._compute_inv_freq(*args))
            return seen[-1]

    view = object.__new__(Recording)
    view.__dict__.update(rotary.__dict__)
    own_RD = view._compute_cos_sin_cache()
    factors = getattr(rotary, "scaling_factors", [1.0])  # linear: one per adapter
    name = type(rotary).__name__
    if len(seen) != 1 or len(factors) != 1 or not torch.is_tensor(own_RD):
        raise UnsupportedArm(f"rope: {name} makes its table in a way that cannot be reached; only `native` runs")
    freqs = Frequencies(seen[0].float() / factors[0], float(getattr(rotary, "mscale", 1.0)), own_RD.shape[0])
    _verify(freqs, own_RD[:_COMPARED_ROWS], name)
    return freqs


def _verify(found: Frequencies, own_RD: Tensor, name: str) -> None:
    """Raise UnsupportedArm if the frequencies do not give vLLM's own fp32 table.

    An angle is a product of two fp32 values rounded at most three times (2**-24 of it each), cos and sin move
    by no more than the angle, and their own error and the magnitude's product stay below 2**-21.
    """
    table_RD = table(found, RopeLevel(), own_RD.shape[0])
    largest = own_RD.shape[0] * float(found.inv_freq.max())
    tolerance = found.magnitude * (largest * 4 * 2**-24 + 2**-21)
    if table_RD.shape != own_RD.shape or float((table_RD - own_RD.to(table_RD)).abs().max()) > tolerance:
        raise UnsupportedArm(f"rope: the table of {name} is not position x frequency; only `native` runs")


def table(of: Frequencies, level: RopeLevel, rows: int) -> Tensor:
    """Return cos and sin side by side [R, D] for each of `rows` positions, in the dtype of the level's table."""
    angle = TORCH[level.angle]
    inv_freq = of.inv_freq.to(TORCH[level.inv_freq]).to(angle)
    position_R = torch.arange(rows, dtype=torch.float64, device=inv_freq.device).to(angle)
    angle_RF = position_R[:, None] * inv_freq[None, :]
    both_RD = torch.cat((angle_RF.cos() * of.magnitude, angle_RF.sin() * of.magnitude), dim=-1)
    return both_RD.to(TORCH[level.table])


def rotated(
    rotary: Any, table_RD: Tensor, level: RopeLevel, positions_N: Tensor, query: Tensor, key: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Return query and key rotated as by vLLM's own code, but computed and rounded as the level says.

    A position without a row raises. If only a part of the head rotates, the product rounds all of it.
    """
    form = (rotary.head_size, rotary.rotary_dim, rotary.is_neox_style, level.rotate, level.product)
    turned_key = None if key is None else _turned(positions_N, key, table_RD, *form)
    return _turned(positions_N, query, table_RD, *form), turned_key


@torch.library.custom_op("anchoreval::turned", mutates_args=())
def _turned(
    positions_N: Tensor,
    x: Tensor,
    table_RD: Tensor,
    head_size: int,
    rotary_dim: int,
    neox: bool,
    rotate: str,
    product: str,
) -> Tensor:
    """Return `x` [N, heads x head size] rotated, as an operator that compilers cannot look into.

    Inductor drops a rounding to bf16 inside a fused kernel: compiled with its neighbours, an fp32 model at
    `bf16-table` was 0.096 nats away from transformers at that level; as an operator it is within 2e-4.
    """
    wide = x.to(TORCH[rotate])
    turned, _ = RotaryEmbedding.forward_static(positions_N, wide, None, head_size, rotary_dim, table_RD, neox)
    return rounded(turned, product, x.dtype)


@_turned.register_fake
def _(positions_N: Tensor, x: Tensor, *_: Any) -> Tensor:
    return x.new_empty(x.shape)


def contracted(rotary: Any, x: Tensor, cos_ND: Tensor, sin_ND: Tensor, second: bool) -> Tensor:
    """Return `x` rotated in fp32, in the dtype of `x`, as by kernels that contract a*b + c to one rounding.

    Compilers contract either product of q * cos + rotate_half(q) * sin, the `second` or the first. A product of two
    fp32 values is exact in fp64, so fp64 gives what one rounding gives.
    """
    whole = x.view(x.shape[0], -1, rotary.head_size)
    turning, rest = whole[..., : rotary.rotary_dim].double(), whole[..., rotary.rotary_dim :]
    neox = rotary.is_neox_style
    left, right = turning.chunk(2, -1) if neox else (turning[..., ::2], turning[..., 1::2])
    cos, sin = cos_ND.unsqueeze(-2).double(), sin_ND.unsqueeze(-2).double()

    def added(first: Tensor, last: Tensor) -> Tensor:
        return (first.float() + last).float() if second else (first + last.float()).float()

    halves = added(left * cos, -right * sin), added(right * cos, left * sin)
    turned = torch.cat(halves, -1) if neox else torch.stack(halves, -1).flatten(-2)
    return torch.cat((turned.to(x.dtype), rest), -1).view(x.shape)
