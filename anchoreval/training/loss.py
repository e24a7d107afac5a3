"""The next-token loss, some rows at a time: the logits of 64K rows over a vocabulary of 128K are 34 GB in float32.

It is an instance `forward` of a stock model, which Trainer, autocast, DDP and FSDP2 call as they call the class's.
Before training it is compared with the stock loss, so a model whose logits are more than its head's product is refused.

Shape letters: N tokens, R rows with a target, D width, V vocabulary.
"""

from __future__ import annotations

import contextlib
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from anchoreval.errors import ModelError
from anchoreval.training.variants import NO_TARGET

_LOGITS = 1 << 26  # of one chunk, in float32 256 MiB
_CHECKED_TOKENS = 64
_TOLERANCE = 1e-3  # relative; a factor on the logits that is left out costs far more


def rows_of(vocabulary: int) -> int:
    """Return how many rows of logits are made at once."""
    return max(64, _LOGITS // vocabulary)


def chunked_forward(
    self: Any,
    input_ids: Tensor,
    position_ids: Tensor | None = None,
    labels: Tensor | None = None,
    num_items_in_batch: Tensor | int | None = None,
    **documents: Any,
) -> Any:
    """Return the loss alone: the sum over targets, divided by `num_items_in_batch` (None: by their number here)."""
    from transformers.modeling_outputs import CausalLMOutput

    assert labels is not None, "training batches have labels"
    documents.pop("use_cache", None)
    base = self.base_model(input_ids=input_ids, position_ids=position_ids, use_cache=False, **documents)
    hidden_ND, targets_N = base.last_hidden_state.flatten(0, 1), functional.pad(labels, (0, 1), value=NO_TARGET)
    targets_N = targets_N[:, 1:].flatten()
    rows_R = (targets_N != NO_TARGET).nonzero()[:, 0]
    hidden_RD, targets_R = hidden_ND[rows_R], targets_N[rows_R]
    rows = rows_of(self.config.get_text_config().vocab_size)
    total = hidden_RD.new_zeros((), dtype=torch.promote_types(torch.float32, hidden_RD.dtype))
    for hidden, targets in zip(torch.split(hidden_RD, rows), torch.split(targets_R, rows), strict=True):
        total = total + checkpoint(_sum, self, hidden, targets, use_reentrant=False)
    count = len(rows_R) if num_items_in_batch is None else num_items_in_batch
    if isinstance(count, Tensor):
        count = count.to(total.device)
    return CausalLMOutput(loss=total / count)


def _sum(model: Any, hidden_RD: Tensor, targets_R: Tensor) -> Tensor:
    """Return the summed cross-entropy of some rows in float32 or wider, as transformers' loss has it."""
    logits_RV = model.get_output_embeddings()(hidden_RD) * scale_of(model.config.get_text_config())
    wide = torch.promote_types(torch.float32, logits_RV.dtype)
    return functional.cross_entropy(logits_RV.to(wide), targets_R, reduction="sum")


def scale_of(config: Any) -> float:
    """Return what logits are multiplied by behind the head: Cohere has `logit_scale`, Granite divides by its own."""
    return float(getattr(config, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1.0)


@contextlib.contextmanager
def with_forward(model: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Give a model a forward of its own inside the block, which Trainer calls as it calls the class's."""
    if "forward" in model.__dict__:
        raise ModelError(f"{type(model).__name__} has a forward of its own already: device hooks, or another trainer")
    model.__dict__["forward"] = types.MethodType(forward, model)
    try:
        yield
    finally:
        del model.__dict__["forward"]


def chunked_loss(model: nn.Module) -> contextlib.AbstractContextManager[None]:
    """Give a model the chunked loss inside the block."""
    return with_forward(model, chunked_forward)


@torch.no_grad()
def require_stock_loss(model: Any) -> None:
    """Raise ModelError unless logits and loss of the chunks are the stock ones on a fixed row of tokens.

    The loss of weights that know nothing is the same whatever becomes of their logits, so logits are compared too.
    """
    vocabulary = model.config.get_text_config().vocab_size
    device = next(model.parameters()).device
    ids = (torch.arange(_CHECKED_TOKENS, device=device) * 7 + 3)[None] % vocabulary
    at = torch.arange(_CHECKED_TOKENS, device=device)[None]
    stock = model(input_ids=ids, position_ids=at, labels=ids, use_cache=False)
    with chunked_loss(model):
        loss = model(input_ids=ids, position_ids=at, labels=ids).loss
    hidden = model.base_model(input_ids=ids, position_ids=at, use_cache=False).last_hidden_state
    logits = model.get_output_embeddings()(hidden) * scale_of(model.config.get_text_config())
    for name, own, theirs in (("logits", logits, stock.logits), ("loss", loss, stock.loss)):
        apart, size = float((own - theirs).abs().max()), float(theirs.abs().max())
        if not apart <= _TOLERANCE * size:
            text = f"the {name} of {type(model).__name__} are not those of its head ({apart:.2g} of {size:.2g} apart)"
            raise ModelError(f"{text}: something follows the head that the chunked loss does not know (a soft cap?)")
