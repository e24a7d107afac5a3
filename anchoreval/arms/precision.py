"""RoPE at a chosen precision around code that does not know of it: tables and rotations of any layout.

Nothing here knows how a model lays out its tables (cat, interleave, half) or its heads: the model's own functions run
under a mode that turns their explicit fp32 requests into requests for the dtype of the site.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from anchoreval.arms.rope import DIGITS, RopeLevel
from anchoreval.errors import UnsupportedArm

TORCH = {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
NAMES = {dtype: name for name, dtype in TORCH.items()}


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
        swapped = {key: self._swap(value) for key, value in (kwargs or {}).items()}
        return func(*(self._swap(arg) for arg in args), **swapped)

    def _swap(self, value: Any) -> Any:
        return self.dtype if value is torch.float32 else value

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


class Rotation:
    """Stands in for a model's `apply_rotary_pos_emb`: the stock function at the level's precision."""

    def __init__(
        self,
        stock: Callable[..., Any],
        level: RopeLevel,
        count: Callable[[torch.dtype], None] = lambda _: None,
    ) -> None:
        """Call `count` in each rotation, with the dtype in which q and k go on."""
        self.stock, self.level, self.count = stock, level, count

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return rotated q and k (or the one tensor that the stock function rotates) in the product's dtype."""
        tensors = [arg for arg in (*args, *kwargs.values()) if _is_real(arg)]
        if tensors[-1].dtype is not TORCH[self.level.table]:
            raise UnsupportedArm(f"rope: a rotation got {tensors[-1].dtype} tables, not this level's")
        rotate = TORCH[self.level.rotate]
        with _fp32_means(rotate):
            named = dict(zip(kwargs, _cast(kwargs.values(), rotate), strict=True))
            out = self.stock(*_cast(args, rotate), **named)
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


def _is_real(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _cast(values: Iterable[Any], dtype: torch.dtype) -> list[Any]:
    return [value.to(dtype) if _is_real(value) else value for value in values]


def rope_types(rotary: nn.Module) -> Mapping[str | None, str]:
    """Return layer type to RoPE type; the only layer type is None if a module serves all layers alike."""
    kind = getattr(rotary, "rope_type", "default")
    return dict(kind) if isinstance(kind, dict) else {None: str(kind)}
