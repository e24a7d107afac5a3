"""The platform's own V1 worker, with a model runner that takes a position plan from each request."""

from __future__ import annotations

from typing import Any

from vllm.platforms import current_platform

from anchoreval.errors import AnchorEvalError, UnsupportedArm
from anchoreval.vllm_plugin.plan import PLAN, rows_of, runs_of
from anchoreval.vllm_plugin.says import Says, rotary_modules, table_of

if current_platform.is_cpu():
    from vllm.v1.worker.cpu_worker import CPUWorker as _PlatformWorker
elif current_platform.is_cuda_alike():
    from vllm.v1.worker.gpu_worker import Worker as _PlatformWorker
else:
    raise UnsupportedArm(f"positions: plans are not offered on {current_platform.device_name}, only on CPU and CUDA")


class PlanRunner:
    """Gives a model runner position plans. Stands before the platform's V1 runner."""

    def _init_mrope_positions(self, req_state: Any) -> None:
        """Set the rows of the request's plan, and what continues them; contiguous rows if it has no plan."""
        super()._init_mrope_positions(req_state)  # type: ignore[misc]
        sampling = req_state.sampling_params
        runs = runs_of(sampling.extra_args if sampling else None)
        if not runs:
            return
        tokens = req_state.num_prompt_tokens
        rows = rows_of(runs, tokens)
        following = int(rows[0, -1]) + 1
        longest = self.max_model_len - tokens  # type: ignore[attr-defined]
        generated = min(sampling.max_tokens or longest, longest)
        self._refuse_beyond(max(int(rows[0].max()) + 1, following + generated - 1))
        req_state.mrope_positions, req_state.mrope_position_delta = rows, following - tokens

    def _refuse_beyond(self, positions: int) -> None:
        """Raise AnchorEvalError if `positions` are more than the rows of the shortest table.

        The last token generated is never fed back, so it needs no row.
        """
        tables = (table_of(module) for module in rotary_modules(self.get_model()))  # type: ignore[attr-defined]
        rows = min((table.shape[0] for table in tables if table is not None), default=0)
        if positions > rows:
            raise AnchorEvalError(
                f"{PLAN}: the plan reaches position {positions - 1}, and the rotary table ends at {rows - 1}; give "
                f'additional_config["anchoreval"]["positions"] (engine_settings: positions={positions})'
            )


class PlanWorker(_PlatformWorker, Says):  # type: ignore[misc]
    """`worker_cls="anchoreval.vllm_plugin.worker.PlanWorker"`; it includes says.Says."""

    def init_device(self) -> None:
        """Set the device up as the platform's worker does, and have its runner take plans."""
        super().init_device()
        if self.use_v2_model_runner:
            raise UnsupportedArm("positions: plans need vLLM's V1 model runner; set VLLM_USE_V2_MODEL_RUNNER=0")
        stock = type(self.model_runner)
        self.model_runner.__class__ = type(f"Plan{stock.__name__}", (PlanRunner, stock), {})
