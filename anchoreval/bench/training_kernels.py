"""Forward and backward of attention under training masks, and of a whole layer, as functions to be timed.

Inputs are random and lie as a model's do, [1, N, H, D]. Full attention sees N tokens as one document. `intra-doc` sees
the documents of a window alone; `anchor` is the same kernel over the same documents, each behind its own copy of the
anchor token (training/variants.py). A full row is never a mask: only `dense mask` has an array of N x N.

Shape letters: N tokens, H query heads, K key heads, D head dim.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import attention as torch_attention
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import pad, scaled_dot_product_attention

from anchoreval.arms.flex import attend, block_mask
from anchoreval.arms.patch_hf import applied
from anchoreval.arms.patterns import Block
from anchoreval.arms.rope import parse_level
from anchoreval.training.attention import document_attention, documents
from anchoreval.training.store import Shape

Work = Callable[[], object]
#: Returns [1, H, N, D], or [1, N, H, D].
Kernel = Callable[[Tensor, Tensor, Tensor], Tensor]
HEAD = 128
#: The most tokens of a row with a mask of N x N.
DENSE = 8192
#: FlashAttention implementations that torch can activate where their package is installed.
_ACTIVATED = ("FA3", "FA4")


@dataclass(frozen=True, slots=True)
class Form:
    """The shape of a model, of which one layer's slice is timed: heads and MLP width are divided by `slices`."""

    name: str
    layers: int
    hidden: int
    inner: int
    heads: int
    key_heads: int
    vocabulary: int

    def weights(self) -> int:
        """Return the parameters of a layer's products."""
        kept = HEAD * self.key_heads
        return self.hidden * (2 * HEAD * self.heads + 2 * kept + 3 * self.inner)

    def shape(self) -> Shape:
        """Return what decides the operations of the whole model."""
        return Shape(self.layers, HEAD * self.heads, self.layers * self.weights() + self.hidden * self.vocabulary)


FORMS = {
    form.name: form
    for form in (
        Form("llama-2-7b", 32, 4096, 11008, 32, 32, 32000),
        Form("llama-3-8b", 32, 4096, 14336, 32, 8, 128256),
    )
}


@dataclass(frozen=True, slots=True)
class Place:
    """Where and in which slices rows are computed."""

    device: torch.device
    slices: int

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32 if self.device.type == "cpu" else torch.bfloat16

    def random(self, *shape: int) -> Tensor:
        """Return random numbers, the same for the same shape."""
        draw = torch.Generator(self.device).manual_seed(0)
        return torch.randn(shape, device=self.device, dtype=self.dtype, generator=draw)

    def inputs(self, form: Form, tokens: int) -> tuple[Tensor, ...]:
        """Return q [1, N, H, D], k and v [1, N, K, D] of the slice, which all rows share."""
        heads = (form.heads, form.key_heads, form.key_heads)
        return tuple(self.random(1, tokens, each // self.slices, HEAD) for each in heads)


def bounds_of(lengths: Sequence[int], device: torch.device) -> dict[str, Any]:
    """Return the boundaries of documents as transformers names them."""
    bounds = pad(torch.tensor(lengths, dtype=torch.int32).cumsum(0, dtype=torch.int32), (1, 0)).to(device)
    longest = max(lengths)
    return {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds, "max_length_q": longest, "max_length_k": longest}


def both_ways(inputs: Sequence[Tensor], tokens: int, kernel: Kernel) -> Work:
    """Return forward and backward of `kernel` over the first tokens: q [1, H, N, D], k and v [1, K, N, D]."""
    parts = [tensor[:, :tokens].transpose(1, 2).detach().requires_grad_() for tensor in inputs]

    def work() -> None:
        out = kernel(*parts)
        out.backward(torch.ones_like(out))  # type: ignore[no-untyped-call]
        for tensor in parts:
            tensor.grad = None

    return work


def by_documents(lengths: Sequence[int], device: torch.device) -> Kernel:
    """Return the training kernel over documents of these lengths."""
    module, named = nn.Identity(), bounds_of(lengths, device)
    return lambda q, k, v: document_attention(module, q, k, v, None, **named)[0]


def by_sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return torch's attention: causal, or under a mask [N, N]."""
    return scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=q.shape[1] != k.shape[1]
    )


def full_kernels(inputs: Sequence[Tensor], length: int) -> dict[str, Work]:
    """Return every full kernel that may be present, by name; an absent one raises when it runs."""
    device = inputs[0].device
    name, one = documents_kernel(device), both_ways(inputs, length, by_documents([length], device))
    causal = both_ways(inputs, length, by_sdpa)
    works = {"sdpa flash": _under(SDPBackend.FLASH_ATTENTION, causal), name: one}
    if device.type != "cpu":
        works["sdpa cudnn"] = _under(SDPBackend.CUDNN_ATTENTION, causal)
        works |= {f"{name} {each}": activated(each, one) for each in _ACTIVATED}
    return works


def documents_kernel(device: torch.device) -> str:
    """Return what the training kernel is on the device."""
    return "split" if device.type == "cpu" else "varlen"


def _under(backend: SDPBackend, work: Work) -> Work:
    def inside() -> None:
        with sdpa_kernel(backend):
            work()

    return inside


def activated(name: str, work: Work) -> Work:
    """Return `work` under one of torch's FlashAttention implementations; torch's own for an empty name."""
    if not name:
        return work

    def inside() -> None:
        torch_attention.activate_flash_attention_impl(name)
        try:
            work()
        finally:
            torch_attention.restore_flash_attention_impl()

    return inside


def flex(inputs: Sequence[Tensor], lengths: Sequence[int], pattern: str) -> tuple[Work, Work]:
    """Return FlexAttention over documents, for `anchor` behind one shared token, and the building of its mask."""
    blocks = [Block("anchor", 0, 1)] if pattern == "anchor" else []
    for tokens in lengths:
        start = blocks[-1].stop if blocks else 0
        blocks.append(Block("document", start, start + tokens))
    build = partial(block_mask, blocks, pattern, blocks[-1].stop, device=inputs[0].device)
    mask = build()
    return both_ways(inputs, blocks[-1].stop, lambda q, k, v: attend(q, k, v, mask)), build


def dense(inputs: Sequence[Tensor], lengths: Sequence[int]) -> Work:
    """Return torch's attention under a mask of N x N booleans."""
    document = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths)).to(inputs[0].device)
    mask = (document[:, None] == document[None]).tril_()
    return both_ways(inputs, len(document), partial(by_sdpa, mask=mask))


class Layer:
    """One layer's slice of a stock Llama, with the norm behind it; forward and backward at a RoPE level."""

    def __init__(self, place: Place, form: Form, positions: int) -> None:
        from transformers import LlamaConfig, LlamaModel

        config = LlamaConfig(
            vocab_size=8,
            hidden_size=form.hidden,
            intermediate_size=form.inner // place.slices,
            num_hidden_layers=1,
            num_attention_heads=form.heads // place.slices,
            num_key_value_heads=form.key_heads // place.slices,
            head_dim=HEAD,
            max_position_embeddings=positions,
            attn_implementation="sdpa",
            use_cache=False,
        )
        with torch.device(place.device):
            self._model = LlamaModel(config).to(place.dtype).train()
        self._place, self._hidden = place, form.hidden
        self._level = "bf16" if place.dtype == torch.bfloat16 else "fp32"

    def work(self, lengths: Sequence[int], full: str | None, checkpointed: bool) -> Work:
        """Return the layer over documents; `full` is the kernel of one document, None for the mask between them."""
        device, tokens = self._place.device, sum(lengths)
        embedded = self._place.random(1, tokens, self._hidden).requires_grad_()
        named: dict[str, Any] = {"position_ids": torch.arange(tokens, device=device)[None], "use_cache": False}
        stock = full is not None and full.startswith("sdpa")
        if not stock:
            named |= bounds_of(lengths, device)
        name = (full or "").partition(" ")[2] if not stock else ""

        def once() -> None:
            out: Tensor = self._model(inputs_embeds=embedded, **named).last_hidden_state
            out.backward(torch.ones_like(out))  # type: ignore[no-untyped-call]
            embedded.grad = None
            self._model.zero_grad(set_to_none=True)

        def inside() -> None:
            if checkpointed:
                self._model.gradient_checkpointing_enable({"use_reentrant": False})
            else:
                self._model.gradient_checkpointing_disable()
            if stock:
                cudnn = full == "sdpa cudnn"
                backend = SDPBackend.CUDNN_ATTENTION if cudnn else SDPBackend.FLASH_ATTENTION
                with applied(self._model, parse_level(self._level), "stock"), sdpa_kernel(backend):
                    once()
            else:
                with documents(self._model, "full" if full else "intra-doc", self._level):
                    activated(name, once)()

        return inside
