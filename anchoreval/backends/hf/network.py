"""The interface of a loaded model, and one pass of it over tokens that follow those in a cache, with their mask.

Shapes: B rows, Q new tokens, C (L) columns of the cache, H heads, D head size, V vocabulary, k logits.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Protocol, Self

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention.bias import causal_lower_right
from transformers.cache_utils import Cache

from anchoreval.arms.patterns import Block
from anchoreval.backends.hf.growth import Growth

_SDPA = functional.scaled_dot_product_attention


class Network(Protocol):
    """The interface of a loaded model.

    `alone`: rows are never computed beside others; `joint`: rows in several stores can be one pass; `whole_prompts`: a
    prompt is one pass; `growth` handles rotations that depend on the length of a pass, None for other models.
    """

    layers: int
    device: torch.device
    whole_prompts: bool
    alone: bool

    @property
    def joint(self) -> bool: ...

    growth: Growth | None

    def logits(self, ids_BQ: Tensor, cache: Cache, at: tuple[Tensor, Tensor], keep: int) -> Tensor:
        """Return the logits `BkV` of the last `keep` tokens; `at` is (position ids `BQ`, mask `BC`)."""
        ...

    def masked_logits(
        self, ids_1N: Tensor, cache: Cache, at: tuple[Tensor, Tensor], seen: tuple[Sequence[Block], str]
    ) -> Tensor:
        """Return the logits `11V` after a whole prompt in one pass of FlexAttention; `seen` is (blocks, pattern)."""
        ...

    def restart(self) -> None:
        """Forget what rotary modules remember of longer prompts."""
        ...


class InSdpa(Tensor):
    """A mask that is nowhere in memory: torch's SDPA, given one, computes `attend` instead."""

    @classmethod
    def shaped(cls, *shape: int, device: torch.device) -> Self:
        """Return a mask of a shape; it takes no memory."""
        return torch.zeros((), dtype=torch.bool, device=device).expand(shape).as_subclass(cls)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        named = kwargs or {}
        if func is _SDPA:
            given = dict(zip(("query", "key", "value", "attn_mask"), args, strict=False)) | named
            return given.pop("attn_mask").attend(**given)
        if func.__name__ == "__get__":  # shape, dtype, device
            return super().__torch_function__(func, types, args, named)  # type: ignore[no-untyped-call]
        plain = [arg.booleans() if isinstance(arg, InSdpa) else arg for arg in (*args, *named.values())]
        return func(*plain[: len(args)], **dict(zip(named, plain[len(args) :], strict=True)))

    @abstractmethod
    def attend(self, query: Tensor, key: Tensor, value: Tensor, **rest: Any) -> Tensor:
        """Return the attention output [B, H, Q, D]."""

    @abstractmethod
    def booleans(self) -> Tensor:
        """Return the mask as a tensor, for all else that reads it."""


class LowerRight(InSdpa):
    """The causal mask [1, 1, Q, L] of Q queries that are the last of L tokens.

    On CUDA the flash kernel counts from the lower right (torch's bias.py). Elsewhere `step` queries are computed at a
    time, with the keys that they can see: the mask of a step, in floats, is made once for all layers.
    """

    step: int
    floats: Tensor | None = None

    @classmethod
    def of(cls, queries: int, keys: int, device: torch.device, step: int) -> LowerRight:
        """Return the mask; it takes no memory before it is read."""
        mask = cls.shaped(1, 1, queries, keys, device=device)
        mask.step = step
        return mask

    def booleans(self) -> Tensor:
        """Return the mask as a tensor."""
        queries, keys = self.shape[2:]
        return torch.ones(queries, keys, dtype=torch.bool, device=self.device).tril_(keys - queries)[None, None]

    def attend(self, query: Tensor, key: Tensor, value: Tensor, **rest: Any) -> Tensor:
        """Return the attention output [B, H, Q, D] of queries that are the last of the keys' tokens."""
        queries, keys = query.shape[2], key.shape[2]
        if query.device.type == "cuda":
            return functional.scaled_dot_product_attention(query, key, value, causal_lower_right(queries, keys), **rest)
        rows = min(queries, self.step)
        if self.floats is None:
            self.floats = torch.full((rows, keys), -torch.inf, dtype=query.dtype).triu_(keys - rows + 1)
        if rows == queries:
            return functional.scaled_dot_product_attention(query, key, value, self.floats[None, None], **rest)
        out = query.new_empty(query.shape[0], queries, query.shape[1], value.shape[3]).transpose(1, 2)
        for start in range(0, queries, rows):
            stop = min(start + rows, queries)
            seen = keys - queries + stop
            mask = self.floats[start - stop :, keys - seen :][None, None]
            block = query[:, :, start:stop], key[:, :, :seen], value[:, :, :seen]
            out[:, :, start:stop] = functional.scaled_dot_product_attention(*block, mask, **rest)
        return out


def on_device(integers: Sequence[Any], device: torch.device) -> Tensor:
    """Return integers on the device; they go to a GPU from pinned memory, and nothing waits until they are there."""
    given = torch.tensor(integers, dtype=torch.long)
    return given.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else given.to(device)


def extend(
    network: Network, cache: Cache, ids: Sequence[int], positions: Sequence[int], at: int, keep: int = 1
) -> Tensor:
    """Return the logits `kV` of the last `keep` of `ids`, which follow the `at` tokens in the cache of one row."""
    return extend_rows(network, cache, on_device([ids], network.device), positions, at, keep)[0]


def extend_rows(
    network: Network, cache: Cache, ids_BQ: Tensor, positions: Sequence[int], at: int, keep: int = 1
) -> Tensor:
    """Return the logits `BkV` of the last `keep` columns of `ids_BQ`, which follow `at` tokens in every row's cache."""
    rows, tokens = ids_BQ.shape
    position_BQ = on_device([positions], network.device).expand(rows, tokens)
    mask_BC = torch.ones(rows, at + tokens, dtype=torch.bool, device=network.device)
    return network.logits(ids_BQ, cache, (position_BQ, mask_BC), keep)
