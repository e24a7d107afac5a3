"""Find what RoPE a loaded model really computes, by running its own code beside every level, bit for bit."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from anchoreval.arms.patch_hf import applied, model_dtype, rotary_modules, rotating_modules
from anchoreval.arms.precision import (
    NAMES,
    TORCH,
    DamagedBuffer,
    Rotation,
    Tables,
    frequency_buffers,
    private_copy,
    real_pair,
    rope_types,
    sound_copy,
    unchecked,
)
from anchoreval.arms.rope import LEVELS, RopeLevel, parse_level
from anchoreval.errors import UnsupportedArm

#: Positions of the probe: enough for every rounding to show, below every length at which a RoPE type changes state.
PROBE_POSITIONS = 64
#: What modelling code raises for tables, arguments or state of another shape than it was written for.
BROKEN = (RuntimeError, TypeError, ValueError, LookupError, AttributeError, NotImplementedError, AssertionError)


@dataclass(frozen=True, slots=True)
class RotaryModule:
    """One module that makes tables: its path, its class, and its RoPE type per layer type ("all" if there is one)."""

    path: str
    kind: str
    rope_types: dict[str, str]


@dataclass(frozen=True, slots=True)
class RopeReport:
    """What was found. `detected` is the level, as text, that equals the stock code bit for bit, if any.

    `unchecked` names the modules whose right frequencies are unknown, and why.
    """

    has_rope: bool
    model_dtype: str
    rotary: tuple[RotaryModule, ...]
    rotating: tuple[str, ...]
    detected: str | None
    damaged: tuple[DamagedBuffer, ...]
    unchecked: dict[str, str]
    uses_kernels: bool


def inspect_rope(model: nn.Module) -> RopeReport:
    """Return the report of a loaded model and leave the model as it was; `has_rope` is False without RoPE."""
    rotary, rotating = rotary_modules(model), rotating_modules(model)
    damaged = [buffer for path, module in rotary.items() for buffer in sound_copy(module, path)[1]]
    return RopeReport(
        has_rope=bool(rotary),
        model_dtype=NAMES.get(model_dtype(model), str(model_dtype(model))),
        rotary=tuple(
            RotaryModule(
                path, type(module).__name__, {kind or "all": rope for kind, rope in rope_types(module).items()}
            )
            for path, module in rotary.items()
        ),
        rotating=tuple(rotating),
        detected=_detect(model),
        damaged=tuple(damaged),
        unchecked={path: why for path, module in rotary.items() if (why := unchecked(module)) is not None},
        uses_kernels=bool(getattr(model, "use_kernels", False)),
    )


def selftest(model: nn.Module, tokens: int = 32) -> dict[str, Any]:
    """Return whether the patch is inert wherever it must be, as JSON values; `ok` sums it up.

    Compares logits bit for bit: before any block; under `native`; under the detected level applied explicitly; after.
    `explicit_equals_stock` is None, and `ok` False, for a model whose RoPE equals no level, or to which no level can be
    applied (`why` says so: falcon with alibi makes no rotation).
    """
    report = inspect_rope(model)
    before = _logits(model, tokens)
    with applied(model, LEVELS["native"]):
        native = _logits(model, tokens)
    explicit, why, rotations = None, None, None
    if report.detected is not None:
        try:
            with applied(model, parse_level(report.detected), "stock") as state:
                explicit = _logits(model, tokens)
                rotations = sum(state.rotations.values())
        except UnsupportedArm as error:
            explicit, why = None, str(error)
    after = _logits(model, tokens)
    checks = {
        "native_equals_stock": same(before, native),
        "explicit_equals_stock": None if explicit is None else same(before, explicit),
        "restored": same(before, after),
    }
    distance = None  # the largest difference among the finite ones
    if explicit is not None:
        apart = (explicit - before).abs()
        apart = apart[apart.isfinite()]
        distance = float(apart.max()) if apart.numel() else None
    passed = all(same for name, same in checks.items() if report.has_rope or name != "explicit_equals_stock")
    result = {"ok": passed, "detected": report.detected, "tokens": tokens, **checks, "max_difference": distance}
    return result | {"rotations": rotations} | ({"why": why} if why else {})


def same(logits: Tensor, others: Tensor) -> bool:
    """Return whether two passes give the same numbers; damaged weights give the same NaN."""
    return torch.allclose(logits, others, rtol=0, atol=0, equal_nan=True)


@torch.no_grad()
def _logits(model: Any, tokens: int) -> Tensor:
    """Return the logits [1, tokens, vocabulary] of a fixed row of token ids, with an explicit mask and no cache."""
    device = next(model.parameters()).device
    ids = (torch.arange(tokens, device=device) * 7 + 3)[None] % model.config.get_text_config().vocab_size
    mask, positions = torch.ones_like(ids), torch.arange(tokens, device=device)[None]
    logits: Tensor = model(ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
    return logits


def _detect(model: nn.Module) -> str | None:
    """Return the first level, as text, whose rotated q and k equal the stock ones for every probe; None without one."""
    probes = list(_probes(model))
    if not probes or model_dtype(model) not in NAMES:
        return None
    # the levels that a model of this dtype may compute: named ones, then frequencies rounded by a cast
    levels = [LEVELS[name] for name in ("bf16", "fp32", "bf16-table", "fp16", "fp16-table", "bf16-angle")]
    dtype, halves = NAMES[model_dtype(model)], ("fp32", "bf16", "fp16")
    for inv_freq, angle, table, rotate in itertools.product(halves, ("fp32", "bf16"), halves, halves):
        levels.append(RopeLevel(inv_freq, angle, table, rotate, "model" if dtype == "fp32" else dtype))
    try:
        stock = [probe(None) for probe in probes]
        for level in levels:
            if all(torch.equal(probe(level), want) for probe, want in zip(probes, stock, strict=True)):
                return str(level)
    except (UnsupportedArm, *BROKEN):  # complex tables, or a rotation with other arguments
        return None
    return None


Probe = Callable[[RopeLevel | None], Tensor]


def _probes(model: nn.Module) -> Iterator[Probe]:
    """Yield one probe per distinct kind of rotary module, layer type and rotation function."""
    functions = {id(f): f for named in rotating_modules(model).values() for f in named.values()}
    seen: set[tuple[Any, ...]] = set()
    for path, module in rotary_modules(model).items():
        kinds = rope_types(module)
        key = (type(module), *kinds.items(), *(tuple(b.tolist()) for b in frequency_buffers(module).values()))
        if key in seen:
            continue
        seen.add(key)
        for layer_type, stock in itertools.product(kinds, functions.values()):
            yield _probe(module, path, layer_type, stock, model_dtype(model))


def _probe(
    module: nn.Module, path: str, layer_type: str | None, stock: Callable[..., Any], dtype: torch.dtype
) -> Probe:
    """Return a function from a level (None: the stock code) to fixed random q and k as that level rotates them."""
    buffer = next(b for name, b in frequency_buffers(module).items() if name.startswith(layer_type or ""))
    generator = torch.Generator().manual_seed(0)
    shape = (2, 1, 2, PROBE_POSITIONS, 2 * buffer.numel())
    qk = torch.randn(shape, generator=generator).to(buffer.device, dtype)
    positions = torch.arange(PROBE_POSITIONS, device=buffer.device)[None]
    named = () if layer_type is None else (layer_type,)

    def run(level: RopeLevel | None) -> Tensor:
        forward: Callable[..., Any] = private_copy(module)
        rotate = stock
        if level is not None:
            forward = Tables(sound_copy(module, path)[0], level, lambda _: None)
            rotate = Rotation(stock, level)
        cos, sin = real_pair(forward(qk[0], positions, *named))
        if list(inspect.signature(stock).parameters)[1] == "cos":  # it takes one tensor at a time
            turned: Any = rotate(qk[0], cos, sin), rotate(qk[1], cos, sin)
        else:
            turned = rotate(qk[0], qk[1], cos, sin)
        return torch.stack([t.to(TORCH["fp64"]) for t in turned])

    return run
