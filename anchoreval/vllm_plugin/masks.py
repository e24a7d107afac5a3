"""vLLM's CPU attention under a mask of documents: exact, quadratic in the length, for tests of correctness.

The backend replaces CPU_ATTN, the only one that vLLM takes on a CPU. Unless documents were asked for, its layers are
vLLM's own. With documents, the layer keeps keys and values in a plain layout (vLLM's kernels pack theirs) and, beside
each KV slot, the code of the token's document, so that chunks and cached prefixes are masked like whole prompts.
arms.patterns.sees defines what sees what. Shapes: N tokens of a step, B blocks of S slots, H key heads, L tokens of a
request so far, D head size.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from vllm.config import get_current_vllm_config, get_current_vllm_config_or_none
from vllm.forward_context import get_forward_context
from vllm.v1.attention.backend import AttentionType
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend, CPUAttentionBackendImpl

from anchoreval.errors import UnsupportedArm
from anchoreval.vllm_plugin import asked
from anchoreval.vllm_plugin.models import CODES
from anchoreval.vllm_plugin.plan import is_query


class DocumentsBackend(CPUAttentionBackend):  # type: ignore[misc]
    """CPU_ATTN, with layers that mask documents if the engine was asked for that."""

    @staticmethod
    def get_impl_cls() -> Any:
        """Return the layer class for the engine that is being built."""
        config = get_current_vllm_config_or_none()
        masked = config is not None and asked.of(config).documents is not None
        return DocumentsImpl if masked else CPUAttentionBackendImpl


class DocumentsImpl(CPUAttentionBackendImpl):  # type: ignore[misc]
    """One layer's attention under the pattern asked for."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.anchored = asked.of(get_current_vllm_config()).documents == "anchor"
        self.codes_of_slots: Tensor | None = None
        special = {
            "a sliding window": self.sliding_window > 0,
            "ALiBi": self.alibi_slopes is not None,
            "soft-capped logits": bool(self.logits_soft_cap),
            "attention sinks": self.sinks is not None,
            "an fp8 cache": self.is_fp8_kv_cache,
            "shared KV layers": self.kv_sharing_target_layer_name is not None,
            "attention other than a decoder's": self.attn_type != AttentionType.DECODER,
        }
        for name, present in special.items():
            if present:
                raise UnsupportedArm(f"attention: documents are not masked in layers with {name} in vLLM")

    def do_kv_cache_update(
        self, layer: Any, key: Tensor, value: Tensor, kv_cache: Tensor, slot_mapping: Tensor
    ) -> None:
        """Write keys, values [N, H, D] and the codes of their documents to the slots of the step."""
        keys_BHSD, values_BHSD = _halves(kv_cache)
        size = keys_BHSD.shape[2]
        written = slot_mapping >= 0
        slots = slot_mapping[written]
        tokens = slot_mapping.shape[0]
        keys_BHSD[slots // size, :, slots % size] = key[:tokens][written].to(kv_cache.dtype)
        values_BHSD[slots // size, :, slots % size] = value[:tokens][written].to(kv_cache.dtype)
        if self.codes_of_slots is None:
            self.codes_of_slots = torch.zeros(keys_BHSD.shape[0] * size, dtype=torch.long)
        codes_N = get_forward_context().additional_kwargs[CODES]
        self.codes_of_slots[slots] = codes_N[:tokens][written]

    def forward(
        self,
        layer: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        kv_cache: Tensor,
        attn_metadata: Any,
        output: Tensor,
        output_scale: Tensor | None = None,
        output_block_scale: Tensor | None = None,
    ) -> Tensor:
        """Fill `output` [N, heads, D] request by request; leave it alone in the warm-up, as vLLM's backend does."""
        if attn_metadata is None:
            return output
        starts = attn_metadata.query_start_loc.tolist()
        lengths = attn_metadata.seq_lens.tolist()
        for request, length in enumerate(lengths[: len(starts) - 1]):
            span = slice(starts[request], starts[request + 1])
            if span.stop > span.start:
                attended = self._attended(query[span], kv_cache, attn_metadata.block_table[request], length)
                output[span] = attended.reshape(output[span].shape)
        return output

    def _attended(self, query: Tensor, kv_cache: Tensor, blocks: Tensor, length: int) -> Tensor:
        """Return the attention output of a request's last tokens [n, heads, D] over the slots of all its tokens."""
        assert self.codes_of_slots is not None
        keys_BHSD, values_BHSD = _halves(kv_cache)
        size = keys_BHSD.shape[2]
        index_L = torch.arange(length)
        block_L, offset_L = blocks[index_L // size].long(), index_L % size
        codes_L = self.codes_of_slots[block_L * size + offset_L]
        keys_HLD = keys_BHSD[block_L, :, offset_L].transpose(0, 1)
        values_HLD = values_BHSD[block_L, :, offset_L].transpose(0, 1)
        mask = seen(codes_L, query.shape[0], self.anchored)
        attended = F.scaled_dot_product_attention(
            query.transpose(0, 1)[None],
            keys_HLD[None],
            values_HLD[None],
            attn_mask=mask,
            scale=self.scale,
            enable_gqa=True,
        )
        return attended[0].transpose(0, 1)


def seen(codes_L: Tensor, tokens: int, anchored: bool) -> Tensor:
    """Return which of the L tokens each of the last `tokens` sees [tokens, L]; `anchored`: documents see token 0."""
    index_L = torch.arange(codes_L.shape[0])
    query, query_codes = index_L[-tokens:, None], codes_L[-tokens:, None]
    allowed = is_query(query_codes) | (query_codes == codes_L[None, :])
    if anchored:
        allowed = allowed | (index_L[None, :] == 0)
    return allowed & (index_L[None, :] <= query)


def _halves(kv_cache: Tensor) -> tuple[Tensor, Tensor]:
    """Return keys and values [B, H, S, D] of a cache [B, H, S, 2 x D]."""
    blocks, heads, size, _ = kv_cache.shape
    keys, values = kv_cache.view(blocks, heads, size * 2, -1).chunk(2, dim=2)
    return keys, values
