"""The loss of every token of a text under the model as it stands, in one prefill, a few rows of logits at a time.

Shapes: Q new tokens, C cache columns filled, R rows of logits, V vocabulary, L tokens of the window. No tensor
is ever [L x V] or [L x L]: what grows with L is the cache of keys and values, the mask of one chunk, and for models
whose rotation depends on the longest position (dynamic, longrope) the hidden states.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from anchoreval.backends.hf.cache import KvStore
from anchoreval.backends.hf.load import StockNetwork
from anchoreval.errors import ModelError

#: Rows of logits widened to fp32 at once.
ROWS = 64


@torch.inference_mode()
def token_losses(network: StockNetwork, ids: Sequence[int], position_ids: Tensor, chunk_tokens: int) -> Tensor:
    """Losses [L - 1] in nats, float64 on the CPU: of ids[1:], each given all before it; log-softmax in fp32.

    `position_ids` [L] are the positions of `ids`. ModelError where a logit is not finite.
    """
    given_1L = torch.tensor([ids[:-1]], device=network.device)
    targets_L = torch.tensor(ids[1:], device=network.device)
    positions_1L = position_ids[None, :-1].to(network.device)
    walk = _whole if network.whole_prompts else _chunked
    rows = walk(network, given_1L, positions_1L, chunk_tokens)
    losses_L = torch.cat([_losses(logits_RV, targets_L[at : at + len(logits_RV)]) for at, logits_RV in rows])
    if not bool(losses_L.isfinite().all()):
        place = int(losses_L.isfinite().logical_not().nonzero()[0])
        raise ModelError(f"the loss at position {place + 1} is not finite")
    return losses_L


def _losses(logits_RV: Tensor, targets_R: Tensor) -> Tensor:
    """Losses [R], float64 on the CPU."""
    made = []
    for at in range(0, len(targets_R), ROWS):
        wide_RV = logits_RV[at : at + ROWS].float()
        chosen_R = wide_RV.gather(1, targets_R[at : at + ROWS, None])[:, 0]
        made.append((wide_RV.logsumexp(-1) - chosen_R).double().cpu())
    return torch.cat(made)


Walk = Iterator[tuple[int, Tensor]]


def _chunked(network: StockNetwork, ids_1L: Tensor, positions_1L: Tensor, chunk_tokens: int) -> Walk:
    """(first row, logits `RV`) chunk by chunk, each on the cache of those before."""
    length = ids_1L.shape[1]
    cache = KvStore(network.layers, 1, length).row(0, 0, 0)
    for at in range(0, length, chunk_tokens):
        stop = min(at + chunk_tokens, length)
        mask_1C = torch.ones(1, stop, dtype=torch.bool, device=network.device)
        yield at, network.logits(ids_1L[:, at:stop], cache, (positions_1L[:, at:stop], mask_1C), stop - at)[0]


def _whole(network: StockNetwork, ids_1L: Tensor, positions_1L: Tensor, chunk_tokens: int) -> Walk:
    """(first row, logits `RV`) of one pass over all tokens, the output projection a few rows at a time."""
    network.restart()
    mask_1L = torch.ones_like(ids_1L, dtype=torch.bool)
    with _layers_once(network.model):
        for at in range(0, ids_1L.shape[1], chunk_tokens):
            rows_R = torch.arange(at, min(at + chunk_tokens, ids_1L.shape[1]), device=network.device)
            made = network.model(
                input_ids=ids_1L,
                attention_mask=mask_1L,
                position_ids=positions_1L,
                logits_to_keep=rows_R,
                use_cache=False,
            )
            yield at, made.logits[0]


@contextlib.contextmanager
def _layers_once(model: Any) -> Iterator[None]:
    """Inside the block everything below the output projection runs once, and its result serves every further call."""
    below = model.base_model
    if below is model or "forward" in vars(below):
        raise ModelError(f"{type(model).__name__}: the layers below the output projection cannot be told apart")
    stock = below.forward
    made: list[Any] = []

    def forward(*args: Any, **named: Any) -> Any:
        if not made:
            made.append(stock(*args, **named))
        return made[0]

    below.__dict__["forward"] = forward
    try:
        yield
    finally:
        below.__dict__.pop("forward", None)
