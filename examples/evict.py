"""An arm from outside, in 20 lines: what a cache that keeps the first and the last keys alone does to answers.

Run it with its folder on PYTHONPATH, here with 64 keys at each end and with 16:
PYTHONPATH=examples anchoreval run --model anchor-tiny --tasks ruler/niah_single_1 --lengths 512 --limit 20
--haystack generated --arms fp32,fp32+x:evict:window,fp32+x:evict:window:16 --placebo
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def window(model: Any, keys: str = "64") -> Iterator[None]:
    """Each token of `model` sees, of all that it would see, the first `keys` and the last `keys` alone."""

    def narrow(module: Any, args: Any, named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        mask, queries = named["attention_mask"], named["hidden_states"].shape[1]
        if mask is None:  # all that came before
            columns = named["past_key_values"].get_seq_length(module.layer_idx) + queries
            mask = torch.ones(1, 1, queries, columns, dtype=torch.bool, device=named["hidden_states"].device)
            mask = mask.tril(columns - queries)
        seen_B1QC = mask if mask.dtype == torch.bool else mask == 0
        place_B1QC = seen_B1QC.cumsum(-1)
        kept_B1QC = (place_B1QC <= int(keys)) | (place_B1QC > place_B1QC[..., -1:] - int(keys))
        return args, named | {"attention_mask": seen_B1QC & kept_B1QC}

    layers = [module for module in model.modules() if hasattr(module, "layer_idx") and hasattr(module, "q_proj")]
    hooks = [layer.register_forward_pre_hook(narrow, with_kwargs=True) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
