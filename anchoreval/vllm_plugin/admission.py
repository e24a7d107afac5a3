"""A logits processor that changes no logits: the place where vLLM lets a plugin refuse one request.

`validate_params` runs in the front end, before the engine sees a request, and an error there is an error of that
call (HTTP 400). An error in a worker ends the engine with all its requests. vLLM shows the hook no prompt; but it
compares a field of the request, `routed_experts_prompt_start`, which means nothing in dense models, with the
length of the prompt. So the plan's length is put there: a plan longer than its prompt is refused by vLLM's own
check, whose message names that field.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from vllm.v1.sample.logits_processor import LogitsProcessor

from anchoreval.errors import AnchorEvalError
from anchoreval.vllm_plugin.plan import runs_of, tokens_of


class FittingPlan(LogitsProcessor):  # type: ignore[misc]
    """`logits_processors=["anchoreval.vllm_plugin.admission:FittingPlan"]`, given by settings.engine_settings."""

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """Raises ValueError for a malformed plan, and notes the length of a sound one."""
        try:
            runs = runs_of(sampling_params.extra_args)
        except AnchorEvalError as error:
            raise ValueError(str(error)) from error
        if runs:
            sampling_params.routed_experts_prompt_start = tokens_of(runs)

    def __init__(self, *_: Any) -> None:
        """Nothing is kept."""

    def apply(self, logits: Tensor) -> Tensor:
        """The logits as they came."""
        return logits

    def is_argmax_invariant(self) -> bool:
        """True: greedy decoding passes this processor by."""
        return True

    def update_state(self, batch_update: Any) -> None:
        """Nothing follows the batch."""
