"""A logits processor that changes no logits: the place where vLLM lets a plugin refuse one request.

`validate_params` runs in the front end, before the engine sees a request, and an error there is an error of that call
(HTTP 400). An error in a worker ends the engine with all its requests. The hook receives neither the engine's
configuration nor the prompt, so

  * the class's name holds the rows of the rotary table: `FittingPlan_8192` is made when it is looked up;
  * the plan's length goes into `routed_experts_prompt_start`, a field of the request that means nothing in dense models
    and that vLLM compares with the length of the prompt: vLLM's own check refuses a plan longer than its prompt, with a
    message that names that field.
"""

from __future__ import annotations

import functools
from typing import Any, ClassVar

from torch import Tensor
from vllm.v1.sample.logits_processor import LogitsProcessor

from anchoreval.errors import AnchorEvalError
from anchoreval.vllm_plugin.plan import PLAN, runs_of, tokens_of


class FittingPlan(LogitsProcessor):  # type: ignore[misc]
    """`logits_processors=["anchoreval.vllm_plugin.admission:FittingPlan_8192"]`, as engine_settings returns it."""

    rows: ClassVar[int] = 0

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """Raise ValueError for a malformed plan or one beyond the table; note the length of a sound plan."""
        try:
            runs = runs_of(sampling_params.extra_args)
        except AnchorEvalError as error:
            raise ValueError(str(error)) from error
        if not runs:
            return
        following = runs[-1][0] + runs[-1][1] + (sampling_params.max_tokens or 1) - 1  # the last token needs no row
        highest = max(following, *(position + tokens for position, tokens, _ in runs)) - 1
        if highest >= cls.rows:
            raise ValueError(
                f"{PLAN}: the plan reaches position {highest}, and the rotary table ends at {cls.rows - 1}"
            )
        sampling_params.routed_experts_prompt_start = tokens_of(runs)

    def __init__(self, *_: Any) -> None:
        """Keep nothing."""

    def apply(self, logits: Tensor) -> Tensor:
        """Return the logits unchanged."""
        return logits

    def is_argmax_invariant(self) -> bool:
        """Return True: the processor never changes the most likely token, so greedy decoding may skip it."""
        return True

    def update_state(self, batch_update: Any) -> None:
        """Do nothing: no state follows the batch."""


@functools.cache
def _below(rows: int) -> type[FittingPlan]:
    return type(f"FittingPlan_{rows}", (FittingPlan,), {"rows": rows, "__module__": __name__})


def __getattr__(name: str) -> type[FittingPlan]:
    """Return the processor for a table of that many rows: `FittingPlan_8192`."""
    stem, _, rows = name.partition("_")
    if stem != "FittingPlan" or not rows.isdigit():
        raise AttributeError(name)
    return _below(int(rows))
