"""`sink-window:S:W` on stock transformers models: the mask of every layer without the keys between sinks and window.

The model's kernel stays as it is; its mask builder gets one more condition. A token's place is its number among the
tokens of its row, so padding on the left counts for nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from torch import Tensor

from anchoreval.arms.kernels import FUSED, switched
from anchoreval.arms.patterns import SINK_WINDOW, numbers_of
from anchoreval.errors import UnsupportedArm


@contextlib.contextmanager
def only_sinks_and_window(model: Any, pattern: str) -> Iterator[None]:
    """Make `model` see sinks and window alone inside the block; any other pattern leaves the model as it is.

    Raise UnsupportedArm for kernels whose masks are not made of rules.
    """
    if not (numbers := numbers_of(pattern, SINK_WINDOW)):
        yield
        return
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    kernel = model.config._attn_implementation
    if kernel not in ("sdpa", FUSED):
        raise UnsupportedArm(f"attention {pattern!r} on kernel {kernel!r}: use --kernel sdpa or fused")
    # the tables of transformers belong to all models: a name for each rule and kernel, without "sdpa" in it
    name = "_".join(["anchoreval", *pattern.split(":"), "fused" if kernel == FUSED else "stock"])
    with switched(model, name, AttentionInterface()[kernel], partial(_mask, AttentionMaskInterface()[kernel], numbers)):
        yield


def _mask(stock: Callable[..., Any], numbers: tuple[int, ...], **asked: Any) -> Any:
    """Build the stock mask with the pattern in its rule. transformers calls this function."""
    sinks, window = numbers
    rule, padding_BC = asked["mask_function"], asked.get("attention_mask")
    place_BC = None if padding_BC is None else padding_BC.long().cumsum(-1) - 1

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        q, k = (query, key) if place_BC is None else (place_BC[batch, query], place_BC[batch, key])
        both: Tensor = rule(batch, head, query, key) & ((k < sinks) | (q - k < window))
        return both

    return stock(**asked | {"mask_function": sees, "allow_is_causal_skip": False})
