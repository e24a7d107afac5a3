"""Attention inside packed documents on stock transformers models: one registered function, and what it refuses.

The boundaries are the official `cu_seq_lens_q` of transformers, never inferred from position ids; where they are
missing (another collator, generate, evaluation, a model class that does not hand them on) the function raises, so the
mask cannot be lost in silence. On CUDA it is `torch.nn.attention.varlen`, elsewhere one causal SDPA per document:
`torch.split` has one backward, a concatenation, where slices have a full-size gradient each.

Shape letters: B batch (1), H query heads, K key heads, N tokens of all documents, D head dim.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from anchoreval.arms.entering import PARTS
from anchoreval.arms.kernels import switched
from anchoreval.arms.patch_hf import Applied, applied, model_dtype, rotary_modules, rotating_modules
from anchoreval.arms.precision import NAMES, rope_types, wider
from anchoreval.arms.rope import LEVELS, RopeLevel, parse_level
from anchoreval.errors import UnsupportedArm
from anchoreval.training.variants import (
    Row,
    Start,
    Variant,
    documents_of,
    lay,
    variant_of,
    without_front,
)

#: The name under which transformers knows the function.
DOCUMENTS = "anchoreval_documents"
#: The key of a batch that says which variant it was laid out for.
LAID_FOR = "laid_for"
_LENGTH_DEPENDENT = ("dynamic", "longrope")


def collate(
    rows: Sequence[Any], variant: str, anchor_id: int, document_start: Start = "anchor", seed: int = 0
) -> dict[str, Any]:
    """Return one batch of windows as a stock model takes it: what `documents` needs and `labels`.

    Each row is one window: see `variants.documents_of`. `seed` draws the chunks of the interleaved variants.
    """
    kind = variant_of(variant)
    windows = [[without_front(piece, anchor_id) for piece in documents_of(row)] for row in rows]
    laid = [lay(pieces, kind, anchor_id, document_start, (seed, at)) for at, pieces in enumerate(windows)]
    return batch_of(laid, kind)


def batch_of(rows: Sequence[Row], variant: Variant) -> dict[str, Any]:
    """Return laid-out windows as one batch [1, N]."""
    lengths = torch.tensor([length for row in rows for length in row.lengths if length], dtype=torch.int32)
    bounds = functional.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))
    longest = int(lengths.max()) if lengths.numel() else 0

    def joined(name: str) -> Tensor:
        return torch.cat([torch.from_numpy(getattr(row, name)) for row in rows])[None]

    return {
        "input_ids": joined("ids"),
        "position_ids": joined("positions"),
        "labels": joined("labels"),
        "cu_seq_lens_q": bounds,
        "cu_seq_lens_k": bounds,
        "max_length_q": longest,
        "max_length_k": longest,
        LAID_FOR: variant.name,
    }


@contextlib.contextmanager
def documents(model: nn.Module, variant: str, rope: str) -> Iterator[Applied]:
    """Train `model` under a variant and a RoPE level inside the block; batches are those of `collate`.

    `rope` is a level of `arms.rope` and has no default: what stock code computes changes with autocast and FSDP2 (the
    same `bf16=True` is level fp32 in one process, bf16 under FSDP2). Leaving the block verifies that every rotation
    was served at the level. Raise UnsupportedArm, naming the field, for what cannot be trained so.
    """
    kind, level = variant_of(variant), level_of(rope)
    refuse_model(model, level)
    if any(parameter.is_cuda for parameter in model.parameters()):
        varlen()  # too old a torch is named here, not in the first step

    def attention(*args: Any, **named: Any) -> tuple[Tensor, None]:
        if (laid := named.pop(LAID_FOR, kind.name)) != kind.name:
            raise UnsupportedArm(f"variant: a batch laid out for {laid} under {kind.name}")
        return document_attention(*args, **named)

    with switched(model, DOCUMENTS, attention, no_mask), applied(model, level, "stock") as under:
        yield under


def level_of(rope: str) -> RopeLevel:
    """Return the RoPE level of a name; UnsupportedArm for `native`, which is no level."""
    level = parse_level(rope)
    if level.native:
        known = ", ".join(name for name in LEVELS if name != "native")
        why = "native is fp32 under autocast and bf16 under FSDP2, so training names its level"
        raise UnsupportedArm(f"rope: {why}: {known}")
    return level


def refuse_model(model: Any, level: RopeLevel) -> None:
    """Raise UnsupportedArm for what would make variants differ by more than the variant."""
    dtype = model_dtype(model)
    if wider(level.product, dtype):
        text = f"{level} keeps q and k wider than the model's {NAMES[dtype]}"
        raise UnsupportedArm(f"rope: {text}, which no kernel of training takes")
    rotations = (function for found in rotating_modules(model).values() for function in found.values())
    if any("liger" in str(getattr(function, "__module__", "")) for function in rotations):
        raise UnsupportedArm("rope: Liger's kernel rotates here, at a level of its own: use_liger_kernel=False")
    for path, module in rotary_modules(model).items():
        for kind in rope_types(module).values():
            if any(name in kind for name in _LENGTH_DEPENDENT):
                text = f"{path} has the RoPE type {kind}, whose tables follow the longest position"
                raise UnsupportedArm(f"rope: {text}: variants would differ by it; set rope_type to default")
    config = model.config.get_text_config()
    for name, value in sorted(vars(config).items()):
        if ("dropout" in name or name.endswith("pdrop")) and "classifier" not in name and value:
            raise UnsupportedArm(f"{name}: {value} in config.json; copies of an anchor must be equal: set 0")
    if getattr(config, "output_router_logits", False):
        text = "the auxiliary loss of its experts counts each copy of the anchor: set it to false"
        raise UnsupportedArm(f"output_router_logits: {text}")


def require_boundaries(model: Any, variant: str, rope: str) -> None:
    """Raise UnsupportedArm unless the model hands the boundaries on to every attention, and serves the level."""
    text = model.config.get_text_config()
    ids = [[(at * 7 + 3) % text.vocab_size for at in range(length)] for length in (5, 3)]
    anchor = next(token for token in range(text.vocab_size) if all(token not in document for document in ids))
    batch = collate([ids], variant, anchor)
    del batch["labels"]
    with torch.no_grad(), documents(model, variant, rope):
        model(**batch, use_cache=False)


def document_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    sliding_window: int | None = None,
    **rest: Any,
) -> tuple[Tensor, None]:
    """Return attention [1, N, H, D], causal inside each document, and no weights.

    query [1, H, N, D], key and value [1, K, N, D]. A sliding window counts the tokens of [anchor; document].
    """
    name = type(module).__name__
    if cu_seq_lens_q is None or max_length_q is None:
        text = f"{name} got no cu_seq_lens_q and max_length_q"
        why = "batches come from anchoreval.training.collate, without generate and cache, and the class hands them on"
        raise UnsupportedArm(f"variant: {text}: {why}")
    if rest.get("is_causal"):
        raise UnsupportedArm(f"variant: {name} is told is_causal, as by context parallelism, which drops documents")
    if part := next((part for part in PARTS if rest.get(part) is not None), None):
        raise UnsupportedArm(f"variant: {name} has a {PARTS[part]} ({part}), which is not computed in documents")
    if dropout or attention_mask is not None:
        raise UnsupportedArm(f"variant: {name} asks for {'dropout' if dropout else 'a mask'} beside the documents")
    tokens = query.shape[2]
    if query.shape[0] != 1 or key.shape[2] != tokens:
        raise UnsupportedArm(f"variant: {name} got {query.shape[0]} rows, {tokens} queries and {key.shape[2]} keys")
    if query.is_cuda:
        q_NHD, k_NKD, v_NKD = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
        out_NHD = _on_cuda(q_NHD, k_NKD, v_NKD, cu_seq_lens_q, int(max_length_q), scaling, sliding_window)
        return out_NHD[None], None
    lengths = cu_seq_lens_q.diff().tolist()
    if sum(lengths) != tokens:
        raise UnsupportedArm(f"variant: documents of {sum(lengths)} tokens for {tokens} queries")
    parts = zip(*(torch.split(tensor, lengths, 2) for tensor in (query, key, value)), strict=True)
    out = torch.cat([_causal(q, k, v, scaling, sliding_window) for q, k, v in parts], 2)
    return out.transpose(1, 2).contiguous(), None


def _causal(q_BHND: Tensor, k_BKND: Tensor, v_BKND: Tensor, scale: float | None, window: int | None) -> Tensor:
    """Attention of one document [1, H, n, D]; `window` counts the keys that a query sees, its own included."""
    tokens, grouped = q_BHND.shape[2], q_BHND.shape[1] != k_BKND.shape[1]
    mask = None
    if window is not None and window < tokens:
        at = torch.arange(tokens, device=q_BHND.device)
        apart = at[:, None] - at[None]
        mask = (apart >= 0) & (apart < window)
    return functional.scaled_dot_product_attention(
        q_BHND, k_BKND, v_BKND, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=grouped
    )


def _on_cuda(
    q_NHD: Tensor, k_NKD: Tensor, v_NKD: Tensor, bounds: Tensor, longest: int, scale: float | None, window: int | None
) -> Tensor:
    """Return the same on CUDA [N, H, D], by torch's own kernel for documents."""
    kernel, takes_groups = varlen()
    if q_NHD.dtype not in (torch.bfloat16, torch.float16) or k_NKD.dtype != q_NHD.dtype:
        dtypes = " and ".join(sorted({NAMES.get(t.dtype, str(t.dtype)) for t in (q_NHD, k_NKD)}))
        raise UnsupportedArm(f"dtype: torch's kernel for documents takes 16 bits, q and k are {dtypes}: train in bf16")
    groups = q_NHD.shape[1] // k_NKD.shape[1]
    named: dict[str, Any] = {"scale": scale, "window_size": (-1 if window is None else window - 1, 0)}
    if groups > 1 and takes_groups:
        named["enable_gqa"] = True
    elif groups > 1:
        k_NKD, v_NKD = (tensor.repeat_interleave(groups, 1) for tensor in (k_NKD, v_NKD))
    out: Tensor = kernel(q_NHD, k_NKD, v_NKD.to(q_NHD.dtype), bounds, bounds, longest, longest, **named)
    return out


@cache
def varlen() -> tuple[Callable[..., Any], bool]:
    """Return torch's attention over documents, and whether it takes fewer key heads than query heads.

    Its arguments changed between releases (2.10 had `is_causal`, 2.11 has `window_size`); UnsupportedArm for others.
    """
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        raise UnsupportedArm(f"training on CUDA needs torch 2.11 or newer, this is {torch.__version__}") from None
    return varlen_attn, takes_groups(varlen_attn)


_POSITIONAL = ("query", "key", "value", "cu_seq_q", "cu_seq_k", "max_q", "max_k")


def takes_groups(kernel: Callable[..., Any]) -> bool:
    """Return whether a kernel that is called as `varlen_attn` has `enable_gqa`; UnsupportedArm for other arguments."""
    names = list(inspect.signature(kernel).parameters)
    if tuple(names[:7]) != _POSITIONAL or not {"scale", "window_size"} <= set(names):
        text = f"torch.nn.attention.varlen takes ({', '.join(names)}) in torch {torch.__version__}"
        raise UnsupportedArm(f"{text}: training on CUDA needs torch 2.11 or newer")
    return "enable_gqa" in names


def no_mask(*, q_length: int, kv_length: int, attention_mask: Any = None, q_offset: Any = 0, **_: Any) -> None:
    """Build no mask, where transformers calls a mask builder; raise UnsupportedArm for what would need one."""
    if attention_mask is not None and not bool(attention_mask.all()):
        raise UnsupportedArm("variant: a padding mask; packed documents have no padding")
    if q_length != kv_length or int(q_offset):
        raise UnsupportedArm(f"variant: {q_length} queries on a cache of {kv_length} keys; training has no cache")


__all__ = ["DOCUMENTS", "batch_of", "collate", "documents"]
