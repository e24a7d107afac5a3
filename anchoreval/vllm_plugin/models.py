"""Stock decoders that take position plans: vLLM's own classes, entered through its M-RoPE transport.

For models with M-RoPE, vLLM carries rows of positions per request, slices them for each chunk and continues them while
it generates. `mrope_section` stands at the top of the configuration (settings.py), not among the RoPE parameters, so
the layers are built with the stock rotary class and get the first row, one position per token, as usual. KV slots come
from other counters of vLLM, which no plan reaches. Shapes: N tokens of a step.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from vllm.forward_context import get_forward_context, is_forward_context_available
from vllm.model_executor.models.llama import LlamaForCausalLM
from vllm.model_executor.models.mistral import MistralForCausalLM
from vllm.model_executor.models.qwen2 import Qwen2ForCausalLM
from vllm.model_executor.models.qwen3 import Qwen3ForCausalLM

from anchoreval.vllm_plugin.plan import rows_of

CODES = "anchoreval_codes"


class Planned:
    """Makes a decoder of vLLM take rows [3, N] for positions. Stands before the decoder's class."""

    supports_mrope = True

    def get_mrope_input_positions(self, input_tokens: list[int], *_: Any, **__: Any) -> tuple[Tensor, int]:
        """Return contiguous rows [3, tokens], for requests without a plan, and 0, the offset of the continuation."""
        return rows_of((), len(input_tokens)), 0

    def forward(self, input_ids: Any, positions: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Return the stock decoder's output for the first row; put the second row where the masks read it."""
        if positions.ndim == 2:
            if is_forward_context_available():
                get_forward_context().additional_kwargs[CODES] = positions[1]
            positions = positions[0]
        return super().forward(input_ids, positions, *args, **kwargs)  # type: ignore[misc]


class AnchorLlamaForCausalLM(Planned, LlamaForCausalLM):  # type: ignore[misc]
    """Llama with plans."""


class AnchorMistralForCausalLM(Planned, MistralForCausalLM):  # type: ignore[misc]
    """Mistral with plans."""


class AnchorQwen2ForCausalLM(Planned, Qwen2ForCausalLM):  # type: ignore[misc]
    """Qwen2 with plans."""


class AnchorQwen3ForCausalLM(Planned, Qwen3ForCausalLM):  # type: ignore[misc]
    """Qwen3 with plans."""
