"""The interface of a loaded model, and one pass of it over tokens that follow those in a cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from anchoreval.arms.blocks import Block
from anchoreval.backends.hf.growth import Growth


class Network(Protocol):
    """The interface of a loaded model.

    `alone`: rows are never computed beside others; `whole_prompts`: a prompt is one pass; `growth` handles rotations
    that depend on the length of a pass, None for other models.
    """

    layers: int
    device: torch.device
    whole_prompts: bool
    alone: bool
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


def extend(
    network: Network, cache: Cache, ids: Sequence[int], positions: Sequence[int], at: int, keep: int = 1
) -> Tensor:
    """Return the logits `kV` of the last `keep` of `ids`, which follow the `at` tokens in the cache of one row."""
    ids_1Q = torch.tensor([ids], device=network.device)
    return network.logits(ids_1Q, cache, _behind(network, 1, positions, at), keep)[0]


def extend_rows(
    network: Network, cache: Cache, ids_BQ: Tensor, positions: Sequence[int], at: int, keep: int = 1
) -> Tensor:
    """Return the logits `BkV` of the last `keep` columns of `ids_BQ`, which follow `at` tokens in every row's cache."""
    return network.logits(ids_BQ, cache, _behind(network, len(ids_BQ), positions, at), keep)


def _behind(network: Network, rows: int, positions: Sequence[int], at: int) -> tuple[Tensor, Tensor]:
    """Return position ids `BQ` and the mask `BC` of new tokens after `at` in the cache, the same in every row."""
    position_BQ = torch.tensor([positions], device=network.device).expand(rows, len(positions))
    return position_BQ, torch.ones(rows, at + len(positions), dtype=torch.bool, device=network.device)
