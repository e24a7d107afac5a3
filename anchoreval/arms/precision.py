"""RoPE at a chosen precision around code that does not know of it: tables and rotations of any layout.

Nothing here knows how a model lays out its tables (cat, interleave, half) or its heads: the model's own functions run
under a mode that turns their explicit fp32 requests into requests for the dtype of the site.

The inverse frequencies that tables are made from are compared with those that the module's own initialiser gives, and
damage is mended. `model.to(torch.bfloat16)` and `.half()` cast the inv_freq buffers too (`.half().float()` even leaves
them typed fp32), while loading in bf16 does not: transformers 4.57 to 5.23, modeling_utils.py `PreTrainedModel.to`.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from anchoreval.arms.rope import DIGITS, RopeLevel
from anchoreval.errors import UnsupportedArm

TORCH = {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
NAMES = {dtype: name for name, dtype in TORCH.items()}


#: Relative. Another device's pow() may differ by a few units of 2**-24; rounding to fp16 costs 2**-12, to bf16 2**-9.
TOLERANCE = 2.0**-20


@dataclass(frozen=True, slots=True)
class DamagedBuffer:
    """A frequency buffer that differs from what its initialiser gives, and the largest relative error."""

    name: str
    dtype: str
    max_relative_error: float


class _Fp32Means(TorchFunctionMode):
    """A mode inside which `.float()` and every request for torch.float32 give `dtype`. Modes are per thread."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[Any], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is torch.Tensor.float:
            return args[0].to(self.dtype)
        named = {key: self.dtype if value is torch.float32 else value for key, value in (kwargs or {}).items()}
        return func(*(self.dtype if arg is torch.float32 else arg for arg in args), **named)

    @contextlib.contextmanager
    def off(self) -> Iterator[None]:
        """Let fp32 be fp32 again inside the block."""
        dtype, self.dtype = self.dtype, torch.float32
        try:
            yield
        finally:
            self.dtype = dtype


def _fp32_means(dtype: torch.dtype) -> contextlib.AbstractContextManager[Any]:
    return contextlib.nullcontext() if dtype is torch.float32 else _Fp32Means(dtype)


def wider(product: str, model: torch.dtype) -> bool:
    """Return whether q and k at `product` have more significant digits than the model's dtype holds."""
    return product != "model" and model in NAMES and DIGITS[product] > DIGITS[NAMES[model]]


class Tables:
    """Stands in for the `forward` of one rotary module: cos and sin at the level's precision.

    `rotary` is a private copy of the model's module (with damaged frequencies repaired), so that the length-dependent
    types (dynamic, longrope) keep their state here and the model's own buffers are never written.
    """

    def __init__(self, rotary: nn.Module, level: RopeLevel, count: Callable[[str], None]) -> None:
        self.rotary, self.level, self.count = rotary, level, count
        self.stock_body = inspect.unwrap(type(rotary).forward)
        self.makes_frequencies = "rope_init_fn" in self.stock_body.__code__.co_names
        kinds = rope_types(rotary).values()
        self.tracks_length = any("dynamic" in kind or kind == "longrope" for kind in kinds)

    def __call__(self, x: Tensor, position_ids: Tensor, layer_type: str | None = None) -> tuple[Tensor, Tensor]:
        """Return (cos, sin) in the table's dtype, shaped as by the model's own forward; `x` gives the device."""
        named = () if layer_type is None else (layer_type,)
        if self.tracks_length:  # the stock wrapper picks the frequencies for this length
            self.rotary(x[..., :0], position_ids, *named)
        angle, table = TORCH[self.level.angle], TORCH[self.level.table]
        like = torch.empty(0, dtype=table, device=x.device)
        means = _fp32_means(angle)
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False), means:
            pair = self.stock_body(self._rounded(means), like, position_ids, *named)
        self.count(layer_type or "")
        cos, sin = real_pair(pair)
        return cos.to(table), sin.to(table)

    def _rounded(self, means: Any) -> nn.Module:
        """Return the rotary module with its frequencies at the level's precision; a throw-away view if they change.

        Code that computes frequencies anew in each pass (PhiMoE) calls `rope_init_fn`. The view's own `rope_init_fn`
        computes them in fp32, as stock code does, and rounds them like the buffers.
        """
        if self.level.inv_freq == "fp32" and not self.makes_frequencies:
            return self.rotary
        dtype = TORCH[self.level.inv_freq]
        view = self.rotary.__class__.__new__(self.rotary.__class__)
        view.__dict__.update(self.rotary.__dict__)
        buffers = {name: b if b is None else b.to(dtype) for name, b in self.rotary._buffers.items()}
        view.__dict__["_buffers"] = buffers
        if self.makes_frequencies:
            stock: Any = self.rotary.rope_init_fn

            def rope_init_fn(*args: Any, **named: Any) -> tuple[Tensor, Any]:
                with means.off() if isinstance(means, _Fp32Means) else contextlib.nullcontext():
                    inv_freq, scaling = stock(*args, **named)
                    return inv_freq.to(dtype), scaling

            view.__dict__["rope_init_fn"] = rope_init_fn
        return view


def real_pair(pair: Any) -> tuple[Tensor, Tensor]:
    """Return `pair` as (cos, sin); raise UnsupportedArm for complex tables and for results of another shape."""
    if not (isinstance(pair, tuple) and len(pair) == 2 and all(t.is_floating_point() for t in pair)):
        raise UnsupportedArm("rope: this model's rotary module gives no (cos, sin) pair; only `native` runs")
    return pair


@dataclass(eq=False)
class Rotation:
    """Stands in for a model's `apply_rotary_pos_emb`: the stock function at the level's precision."""

    stock: Callable[..., Any]
    level: RopeLevel
    #: Called in each rotation, with the dtype in which q and k go on.
    count: Callable[[torch.dtype], None] = lambda _: None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return rotated q and k (or the one tensor that the stock function rotates) in the product's dtype."""
        every = (*args, *kwargs.values())
        tensors = [arg for arg in every if isinstance(arg, Tensor) and arg.is_floating_point()]
        if tensors[-1].dtype is not TORCH[self.level.table]:
            raise UnsupportedArm(f"rope: a rotation got {tensors[-1].dtype} tables, not this level's")
        rotate = TORCH[self.level.rotate]
        with _fp32_means(rotate):
            cast = {id(tensor): tensor.to(rotate) for tensor in tensors}
            named = {name: cast.get(id(value), value) for name, value in kwargs.items()}
            out = self.stock(*(cast.get(id(arg), arg) for arg in args), **named)
        came_in = tensors[0].dtype
        is_pair = isinstance(out, tuple)
        results = tuple(rounded(turned, self.level.product, came_in) for turned in (out if is_pair else (out,)))
        self.count(results[0].dtype)
        return results if is_pair else results[0]


def rounded(rotated: Tensor, product: str, came_in: torch.dtype) -> Tensor:
    """Return `rotated` at the precision of the `product` site, in the dtype in which it goes on (see rope.py)."""
    if product == "model":
        return rotated.to(came_in)
    carried = torch.promote_types(TORCH[product], came_in) if wider(product, came_in) else came_in
    return rotated.to(TORCH[product]).to(carried)


def frequency_buffers(rotary: nn.Module) -> dict[str, Tensor]:
    """Return the buffers of this module that hold inverse frequencies, by name; empty for other modules."""
    return {name: b for name, b in rotary._buffers.items() if b is not None and name.endswith("inv_freq")}


def sound_copy(rotary: nn.Module, path: str) -> tuple[nn.Module, list[DamagedBuffer]]:
    """Return a private copy of `rotary` with sound frequencies, and what was damaged in the original.

    Frequencies that cannot be checked (see `unchecked`) are copied as they are; raise UnsupportedArm if they are
    narrower than fp32.
    """
    if (why := unchecked(rotary)) is not None:
        narrow = next((b.dtype for b in frequency_buffers(rotary).values() if b.itemsize < 4), None)
        if narrow is not None:
            raise UnsupportedArm(f"rope: the frequencies of {path} are {narrow}, and it cannot be made anew: {why}")
        return private_copy(rotary), []
    found = [(_damage(rotary, fresh, path), fresh) for fresh in _initialised(rotary)]
    worst = [max((buffer.max_relative_error for buffer in damage), default=0.0) for damage, _ in found]
    damage, fresh = found[worst.index(min(worst))]
    return (fresh, damage) if damage else (private_copy(rotary), [])


def private_copy(rotary: nn.Module) -> nn.Module:
    """Return a copy with its own buffers and state; the configuration is shared."""
    config = getattr(rotary, "config", None)
    clone: nn.Module = copy.deepcopy(rotary, {} if config is None else {id(config): config})
    return clone


def unchecked(rotary: nn.Module) -> str | None:
    """Return why this module's frequencies cannot be compared with its initialiser's; None if they can.

    Modules that a checkpoint's own code makes from numbers (InternLM 2) keep no configuration to make them anew from.
    """
    try:
        type(rotary)(rotary.config)
    except (AttributeError, TypeError, KeyError) as error:
        return " ".join(str(error).split())
    return None


def _damage(rotary: nn.Module, fresh: nn.Module, path: str) -> list[DamagedBuffer]:
    """Return the buffers of `rotary` that differ from those of `fresh`, or are narrower."""
    expected, damaged = frequency_buffers(fresh), []
    for name, buffer in frequency_buffers(rotary).items():
        error, want = float("inf"), expected[name].double()
        if buffer.shape == want.shape:
            scale = torch.where(want == 0, torch.ones_like(want), want.abs())
            error = float(((buffer.double() - want).abs() / scale).max())
        if error > TOLERANCE or buffer.itemsize < expected[name].itemsize:
            damaged.append(DamagedBuffer(f"{path}.{name}", str(buffer.dtype).removeprefix("torch."), error))
    return damaged


def _initialised(rotary: nn.Module) -> list[nn.Module]:
    """Return the module made anew from its configuration: in its first state, and (length-dependent types) grown."""
    device = next(iter(frequency_buffers(rotary).values())).device
    fresh, grown = (type(rotary)(rotary.config).to(device) for _ in range(2))
    # a length (positions) brings length-dependent frequencies to their grown state
    for layer_type, kind in rope_types(rotary).items():
        prefix = "" if layer_type is None else f"{layer_type}_"
        if "dynamic" in kind:
            cached: Any = getattr(rotary, f"{prefix}max_seq_len_cached", rotary.max_seq_len_cached)
            length = int(cached)
        elif kind == "longrope":
            config: Any = rotary.config
            parameters = config.rope_parameters if layer_type is None else config.rope_parameters[layer_type]
            length = int(parameters["original_max_position_embeddings"]) + 1
        else:
            continue
        position_ids = torch.tensor([[length - 1]], device=device)
        grown(torch.empty(1, 0, device=device), position_ids, *(() if layer_type is None else (layer_type,)))
    return [fresh, grown]


def rope_types(rotary: nn.Module) -> Mapping[str | None, str]:
    """Return layer type to RoPE type; the only layer type is None if a module serves all layers alike."""
    kind = getattr(rotary, "rope_type", "default")
    return dict(kind) if isinstance(kind, dict) else {None: str(kind)}
