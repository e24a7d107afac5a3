"""What enters a model's attention kernels: the dtype and bits of q and k, and what else a kernel is handed.

Stock modelling code asks transformers' table of kernels, the global `ALL_ATTENTION_FUNCTIONS` of the `forward` of each
attention module, for its kernel. Here such a forward runs as a copy with a private dictionary of globals, in which
that table hands out kernels that first report what they are called with. The kernels and their results stay the same.
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
#: What kernels are handed beside q, k, v and the mask that is part of the model's attention, in words.
PARTS = {
    "softcap": "soft cap of the attention scores",
    "s_aux": "attention sinks",
    "position_bias": "position bias",
    "indices": "choice of keys by an indexer",
    "block_indices": "choice of keys by an indexer",
}
#: The parts that a kernel takes and leaves out without a word: transformers' sdpa_attention_forward has only a
#: position bias, and swallows other names.
LEFT_OUT = {"sdpa": ("softcap", "s_aux", "indices", "block_indices")}

_LOOKED_AT = 64  # tokens

#: (name of the kernel, module, query, key, the other named arguments).
Report = Callable[[str, Any, Tensor, Tensor, Mapping[str, Any]], None]


class Reporting:
    """Stands in for transformers' table of attention kernels: what it hands out reports, then computes."""

    def __init__(self, table: Any, report: Report) -> None:
        self._table, self._report = table, report

    def get_interface(self, name: str, default: Callable[..., Any]) -> Callable[..., Any]:
        """The kernel called `name`, or `default`, which reports first."""
        return self._reporting(name, self._table.get_interface(name, default))

    def get(self, name: str, default: Any = None) -> Any:
        """The same where it is asked for as in a dictionary."""
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
    """The global names that the stock `forward` of this module uses."""
    code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
    return code.co_names if code is not None else ()


def reporting_table(module: nn.Module, report: Report) -> dict[str, Reporting]:
    """The global to replace in this module's forward; empty where it does not ask transformers' table."""
    forward: Any = inspect.unwrap(type(module).forward)
    if TABLE not in global_names(module) or TABLE not in forward.__globals__:
        return {}
    return {TABLE: Reporting(forward.__globals__[TABLE], report)}


def with_globals(module: nn.Module, replaced: Mapping[str, Any]) -> Callable[..., Any]:
    """The stock `forward` of a module with some of its globals replaced, for this copy alone."""
    stock = inspect.unwrap(type(module).forward)
    scope = {**stock.__globals__, **replaced}
    own = types.FunctionType(stock.__code__, scope, stock.__name__, stock.__defaults__, stock.__closure__)
    own.__kwdefaults__ = stock.__kwdefaults__
    return types.MethodType(own, module)


@contextlib.contextmanager
def reported(model: nn.Module, report: Callable[[str, str, Tensor, Tensor, Mapping[str, Any]], None]) -> Iterator[None]:
    """Inside the block each attention module that nothing has patched reports (its path, kernel, q, k, the rest)."""
    with contextlib.ExitStack() as stack:
        for path, module in model.named_modules():
            if "forward" in module.__dict__:
                continue
            if table := reporting_table(module, partial(_located, path, report)):
                module.__dict__["forward"] = with_globals(module, table)
                stack.callback(module.__dict__.pop, "forward", None)
        yield


def _located(path: str, report: Any, name: str, _: Any, query: Tensor, key: Tensor, named: Mapping[str, Any]) -> None:
    report(path, name, query, key, named)


@dataclass(frozen=True, slots=True)
class Entered:
    """How q and k entered the kernel of one attention module: dtypes, and the least format that holds every value."""

    q_dtype: torch.dtype
    k_dtype: torch.dtype
    q_bits: str
    k_bits: str

    @classmethod
    def of(cls, query: Tensor, key: Tensor) -> Entered:
        """What a pair [B, H, L, D] that enters a kernel is; bits are those of the first row's first tokens."""
        return cls(query.dtype, key.dtype, bits(query[:1, :, :_LOOKED_AT]), bits(key[:1, :, :_LOOKED_AT]))


def bits(values: Tensor) -> str:
    """The narrowest of bf16, fp16, fp32 and fp64 that represents all of `values`, the name of their dtype if none."""
    for name in ("bf16", "fp16", "fp32"):
        if torch.equal(values.to(TORCH[name]).to(values.dtype), values):
            return name
    return NAMES.get(values.dtype, str(values.dtype))


def summary(entered: Mapping[str, Entered]) -> dict[str, Any]:
    """The modules together, as JSON values: dtypes and the widest bits of q and of k, and how many modules."""
    seen = list(entered.values())
    if not seen:
        return {"modules": 0}

    def told(dtypes: set[torch.dtype], widths: set[str]) -> dict[str, str]:
        names = sorted(NAMES.get(dtype, str(dtype)) for dtype in dtypes)
        return {"dtype": "+".join(names), "bits": max(widths, key=lambda name: DIGITS.get(name, 0))}

    return {
        "modules": len(seen),
        "q": told({one.q_dtype for one in seen}, {one.q_bits for one in seen}),
        "k": told({one.k_dtype for one in seen}, {one.k_bits for one in seen}),
    }


def looked_at(model: nn.Module, run: Callable[[], Any]) -> tuple[dict[str, list[str]], dict[str, Entered]]:
    """What is seen of the attention in one pass made by `run`.

    Kernel to the parts of the model's attention that it leaves out, in words; path to what entered.
    """
    dropped: dict[str, list[str]] = {}
    entered: dict[str, Entered] = {}

    def report(path: str, name: str, query: Tensor, key: Tensor, named: Mapping[str, Any]) -> None:
        entered.setdefault(path, Entered.of(query, key))
        for part in LEFT_OUT.get(name, ()):
            if named.get(part) is not None and PARTS[part] not in dropped.setdefault(name, []):
                dropped[name].append(PARTS[part])

    with reported(model, report):
        run()
    return {name: parts for name, parts in dropped.items() if parts}, entered
