"""Rotated q and k of every architecture against complex rotation in float64, in derived error budgets.

The budget. Write u(s) = 2**-digits for the unit roundoff of a site's dtype, r for the length of the pair that
a component belongs to, theta for |position x inv_freq|, S for the scaling of cos and sin. To first order:

  angle      inv_freq is rounded (u_f), then inv_freq and position are cast to the angle's dtype and
             multiplied (3 u_a): |d theta| <= theta (u_f + 3 u_a). Turning by d theta moves a pair by at most
             r |d theta|, and never by more than 2 r.
  cos, sin   at most 1.5 units in the last place of vectorised libraries (3 u_a), and the scaling (u_a), each
             at most S in size, then the table's rounding (u_t): each off by at most S (4 u_a + u_t). On a
             pair |a e1| + |b e2| <= sqrt(2) r max(e).
  rotation   q, cos and sin cast (2 u_r), multiplied (u_r) and added (u_r), where |a cos| + |b sin| <= r S:
             at most 4 u_r r S.
  product    u_p r S for the product's dtype, and the same for the dtype handed on where that is narrower.

Second-order terms: x (1 + 2**-4). fp16 adds half of its smallest step, 2**-25, per rounding of a tiny number.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import tiny_models as tiny
import torch
from torch import Tensor

from anchoreval.arms.patch_hf import applied, rotary_modules
from anchoreval.arms.rope import DIGITS, LEVELS, RopeLevel, parse_level

pytestmark = pytest.mark.half
LENGTH = 24
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
EVERY_SITE_FP64 = parse_level("rope:angle=fp64,table=fp64,rotate=fp64,product=fp64")


def unit(dtype: str) -> float:
    return 2.0 ** -DIGITS[dtype]


def budget(level: RopeLevel, model: str, theta: Tensor, reach: Tensor, scaling: float) -> Tensor:
    """Largest error of each component; theta [L, d] in radians, reach [..., L, d] is r."""
    angle, table, rotate = unit(level.angle), unit(level.table), unit(level.rotate)
    frequency = 0.0 if level.inv_freq == "fp32" else unit(level.inv_freq)
    product = unit(model) if level.product == "model" else unit(level.product)
    if level.product != "model" and DIGITS[level.product] < DIGITS[model]:
        product += unit(model)
    turned = (theta * (frequency + 3 * angle)).clamp(max=2.0)
    relative = turned + math.sqrt(2) * (4 * angle + table) + 4 * rotate + product
    tiny_step = 8 * 2.0**-25 if "fp16" in (*level.sites.values(), model) else 0.0
    return (1 + 2.0**-4) * scaling * reach * relative + tiny_step


class FirstLayer:
    """q and k of layer 0 before and after the rotation, at positions offset .. offset + LENGTH."""

    def __init__(self, name: str, model: Any, calls: list[Any], entering: list[Any], offset: int) -> None:
        self.name, self.model, self.calls, self.offset = name, model, calls, offset
        self.positions = torch.arange(LENGTH) + offset
        self.run(LEVELS["native"])
        self.before = entering[0]
        inv_freq, self.scaling = self.sound_frequencies()
        self.angle = self.positions.double()[:, None] * inv_freq
        self.d = 2 * inv_freq.numel()

    def sound_frequencies(self) -> tuple[Tensor, float]:
        """The fp32 frequencies that define the model, in float64, checked against the papers' formulas."""
        module = next(iter(rotary_modules(self.model).values()))
        kind = tiny.layer_type(self.model, 0)
        held = getattr(module, "inv_freq" if kind is None else f"{kind}_inv_freq").double()
        exact, scaling = tiny.frequencies(self.model, 0, int(self.positions[-1]) + 1)
        # a power whose exponent is off by 2 u (and ln(base ** x) <= 14), three more roundings, one rescaling
        assert ((held - exact).abs() / exact).max() <= 32 * unit("fp32")
        return held, scaling

    @torch.no_grad()
    def run(self, level: RopeLevel) -> tuple[Tensor, Tensor]:
        self.calls.clear()
        with applied(self.model, level, "fused"):
            ids = tiny.token_ids(LENGTH)
            self.model(ids, attention_mask=torch.ones_like(ids), position_ids=self.positions[None])
        return self.calls[0]["q"], self.calls[0]["k"]

    def errors(self, level: RopeLevel, model_dtype: str) -> tuple[float, float]:
        """(largest error as a share of its budget, rms error relative to the rms of the rotated part)."""
        worst, squares, power = 0.0, 0.0, 0.0
        theta = self.spread(self.angle.abs())
        for got, raw in zip(self.run(level), self.before, strict=True):
            interleaved = self.name in tiny.INTERLEAVED
            want = tiny.rotated(raw, self.angle, self.scaling, interleaved)[..., : self.d]
            reach = tiny.moduli(raw, self.d, interleaved)[..., : self.d]
            error = (got[..., : self.d].double() - want).abs()
            worst = max(worst, float((error / budget(level, model_dtype, theta, reach, self.scaling)).max()))
            squares, power = squares + float(error.square().sum()), power + float(want.square().sum())
        return worst, math.sqrt(squares / power)

    def spread(self, angle: Tensor) -> Tensor:
        """Angles per pair [L, d / 2] as angles per component [L, d]."""
        if self.name in tiny.INTERLEAVED:
            return angle.repeat_interleave(2, -1)
        return torch.cat([angle, angle], -1)


@pytest.mark.parametrize("offset", [0, 100_000])
@pytest.mark.parametrize("name", tiny.ARCHITECTURES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_each_level_errs_within_its_budget_and_visibly(
    dtype: str, name: str, offset: int, kernel_calls: list[Any], unrotated: Any
) -> None:
    model = tiny.build(name, DTYPES[dtype])
    layer = FirstLayer(name, model, kernel_calls, unrotated(model), offset)
    rms = {}
    for level_name, level in {**LEVELS, "all-fp64": EVERY_SITE_FP64}.items():
        if not level.native:
            worst, rms[level_name] = layer.errors(level, dtype)
            assert worst <= 1, f"{level_name}: {worst:.2f} of its budget"
    # Rounding is off by 2 u / sqrt(12) rms of the binade's floor: 0.42 u over uniform mantissas. A quarter
    # of u is the floor for every level that rounds q and k once or more.
    assert all(rms[level] > unit("bf16") / 4 for level in ("bf16-table", "bf16", "bf16-angle"))
    assert all(rms[level] > unit("fp16") / 4 for level in ("fp16-table", "fp16"))
    assert rms["bf16"] > rms["bf16-table"] > rms["fp16"] > rms["fp32-qk"] >= rms["fp64"] > rms["all-fp64"]
    assert rms["fp32"] > unit(dtype) / 4
    if offset:  # bf16 positions near 100,000 are 512 apart, and the fastest pair turns one radian per position
        assert rms["bf16-angle"] > 0.1
        assert rms["fp32-qk"] > 10 * rms["fp64"]  # theta u_a: the angle's own rounding has grown past the rest


def test_a_site_alone_in_bf16_is_visible_and_bounded(kernel_calls: list[Any], unrotated: Any) -> None:
    model = tiny.build("llama")
    layer = FirstLayer("llama", model, kernel_calls, unrotated(model), 8000)
    for site in ("inv_freq", "angle", "table", "rotate", "product"):
        worst, rms = layer.errors(parse_level(f"rope:{site}=bf16"), "fp32")
        assert worst <= 1 and rms > unit("bf16") / 4, site


def test_q_and_k_stay_wide_only_where_the_level_says_so(kernel_calls: list[Any], unrotated: Any) -> None:
    for dtype in DTYPES.values():
        model = tiny.build("llama", dtype)
        layer = FirstLayer("llama", model, kernel_calls, unrotated(model), 0)
        for name, level in LEVELS.items():
            q, k = layer.run(level)
            wide = torch.promote_types(dtype, torch.float32) if name in ("fp64", "fp32-qk") else dtype
            if name.startswith("fp16") and dtype is torch.bfloat16:
                wide = torch.float32  # the narrowest that holds every fp16 and every bf16 number
            assert q.dtype is k.dtype is wide, (dtype, name)
