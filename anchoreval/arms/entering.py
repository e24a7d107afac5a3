"""Find what enters a model's attention kernels: the dtype and bits of q and k, and the other arguments of a kernel.

Stock modelling code looks up its kernel in transformers' table of kernels, the global `ALL_ATTENTION_FUNCTIONS` of the
`forward` of each attention module. Here such a forward runs as a copy with a private dictionary of globals. In it, that
table hands out kernels that first report their arguments. The kernels and their results stay the same.
"""

from __future__ import annotations

import contextlib
import inspect
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from anchoreval.arms.precision import NAMES, TORCH
from anchoreval.arms.rope import DIGITS

TABLE = "ALL_ATTENTION_FUNCTIONS"
#: Arguments of kernels, besides q, k, v and the mask, that are part of the model's attention, in words.
PARTS = {
    "softcap": "soft cap of the attention scores",
    "s_aux": "attention sinks",
    "position_bias": "position bias",
    "indices": "choice of keys by an indexer",
    "block_indices": "choice of keys by an indexer",
}
#: The parts that a kernel accepts and silently ignores: transformers' sdpa_attention_forward has only a position bias,
#: and swallows other names.
LEFT_OUT = {"sdpa": ("softcap", "s_aux", "indices", "block_indices")}

_LOOKED_AT = 64  # tokens whose bits are looked at

#: Takes (name of the kernel, module, query, key, the other named arguments).
Report = Callable[[str, Any, Tensor, Tensor, Mapping[str, Any]], None]


@dataclass(eq=False)
class Reporting:
    """Stands in for transformers' table of attention kernels: each kernel that it hands out reports, then computes."""

    _table: Any
    _report: Report

    def get_interface(self, name: str, default: Callable[..., Any]) -> Callable[..., Any]:
        """Return the kernel called `name`, or `default`; it reports first."""
        return self._reporting(name, self._table.get_interface(name, default))

    def get(self, name: str, default: Any = None) -> Any:
        """Return the same kernel for lookups as in a dictionary."""
        kernel = self._table.get(name, default)
        return self._reporting(name, kernel) if callable(kernel) else kernel

    def __getitem__(self, name: str) -> Callable[..., Any]:
        return self._reporting(name, self._table[name])

    def __contains__(self, name: object) -> bool:
        return name in self._table

    def __getattr__(self, name: str) -> Any:
        return getattr(self._table, name)

    def _reporting(self, name: str, kernel: Callable[..., Any]) -> Callable[..., Any]:
        def call(module: Any, query: Tensor, key: Tensor, *rest: Any, **named: Any) -> Any:
            self._report(name, module, query, key, named)
            return kernel(module, query, key, *rest, **named)

        return call


def global_names(module: nn.Module) -> tuple[str, ...]:
    """Return the global names that the stock `forward` of this module uses."""
    code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
    return code.co_names if code is not None else ()


def reporting_table(module: nn.Module, report: Report) -> dict[str, Reporting]:
    """Return the global to replace in this module's forward; empty if the forward does not use transformers' table."""
    forward: Any = inspect.unwrap(type(module).forward)
    if TABLE not in global_names(module) or TABLE not in forward.__globals__:
        return {}
    return {TABLE: Reporting(forward.__globals__[TABLE], report)}


def with_globals(module: nn.Module, replaced: Mapping[str, Any]) -> Callable[..., Any]:
    """Return a copy of a module's stock `forward` in which some globals are replaced."""
    stock = inspect.unwrap(type(module).forward)
    scope = {**stock.__globals__, **replaced}
    forward = types.FunctionType(stock.__code__, scope, stock.__name__, stock.__defaults__, stock.__closure__)
    forward.__kwdefaults__ = stock.__kwdefaults__
    return types.MethodType(forward, module)


@contextlib.contextmanager
def reported(model: nn.Module, report: Callable[..., None]) -> Iterator[None]:
    """Let each attention module that nothing has patched make its Report inside the block, behind its path."""
    with contextlib.ExitStack() as stack:
        for path, module in model.named_modules():
            if "forward" in module.__dict__:
                continue
            if table := reporting_table(module, partial(report, path)):
                module.__dict__["forward"] = with_globals(module, table)
                stack.callback(module.__dict__.pop, "forward", None)
        yield


@dataclass(frozen=True, slots=True)
class Entered:
    """How q and k entered the kernel of one attention module: dtypes, and the narrowest format for all values."""

    q_dtype: torch.dtype
    k_dtype: torch.dtype
    q_bits: str
    k_bits: str

    @classmethod
    def of(cls, query: Tensor, key: Tensor) -> Entered:
        """Return the dtypes and bits of a pair [B, H, L, D] that enters a kernel; bits are of the first row's start."""
        return cls(query.dtype, key.dtype, bits(query[:1, :, :_LOOKED_AT]), bits(key[:1, :, :_LOOKED_AT]))


def bits(values: Tensor) -> str:
    """Return the narrowest of bf16, fp16, fp32 and fp64 that represents all of `values`, or else their dtype's name."""
    for name in ("bf16", "fp16", "fp32"):
        if torch.equal(values.to(TORCH[name]).to(values.dtype), values):
            return name
    return NAMES.get(values.dtype, str(values.dtype))


def summary(entered: Mapping[str, Entered]) -> dict[str, Any]:
    """Return all modules together as JSON values: how many, and dtypes and widest bits of q and of k."""
    seen = list(entered.values())
    if not seen:
        return {"modules": 0}

    values: dict[str, Any] = {"modules": len(seen)}
    for what in ("q", "k"):
        dtypes = {getattr(entry, f"{what}_dtype") for entry in seen}
        names = sorted(NAMES.get(dtype, str(dtype)) for dtype in dtypes)
        widths = {getattr(entry, f"{what}_bits") for entry in seen}
        values[what] = {"dtype": "+".join(names), "bits": max(widths, key=lambda name: DIGITS.get(name, 0))}
    return values


def looked_at(model: nn.Module, run: Callable[[], Any]) -> tuple[dict[str, list[str]], dict[str, Entered]]:
    """Return what the attention of one pass, made by `run`, looked like.

    First, for each kernel, the parts of the model's attention that it leaves out, in words; second, for each module's
    path, how q and k entered.
    """
    dropped: dict[str, list[str]] = {}
    entered: dict[str, Entered] = {}

    def report(path: str, name: str, _: Any, query: Tensor, key: Tensor, named: Mapping[str, Any]) -> None:
        entered.setdefault(path, Entered.of(query, key))
        for part in LEFT_OUT.get(name, ()):
            if named.get(part) is not None and PARTS[part] not in dropped.setdefault(name, []):
                dropped[name].append(PARTS[part])

    with reported(model, report):
        run()
    return {name: parts for name, parts in dropped.items() if parts}, entered
