"""Read what `additional_config["anchoreval"]` asks of an engine, once per process, when the model is built.

    {"rope": LEVEL, "plans": true, "documents": "anchor" or "intra-doc", "positions": N}

Every key may be absent. `rope` is any spelling of arms/rope.py; `plans` accepts a position plan with each request;
`documents` is the attention pattern for the plans' documents; `positions` is how many rows the rotary tables need, if a
plan reaches further than the model's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from anchoreval.arms.rope import LEVELS, RopeLevel, parse_level
from anchoreval.errors import AnchorEvalError, UnknownName, UnsupportedArm

KEY = "anchoreval"
KEYS = ("rope", "plans", "documents", "positions")
PATTERNS = ("anchor", "intra-doc")
PLAN_WORKER = "anchoreval.vllm_plugin.worker.PlanWorker"


@dataclass(frozen=True, slots=True)
class Asked:
    """The level, whether requests may carry plans, the pattern of their documents, and the table rows needed."""

    level: RopeLevel = LEVELS["native"]
    plans: bool = False
    documents: str | None = None
    positions: int = 0

    def as_config(self) -> dict[str, Any]:
        """Return the value of `additional_config["anchoreval"]` that `read` turns into this object."""
        keys = {"plans": self.plans, "documents": self.documents, "positions": self.positions}
        return {"rope": str(self.level), **{key: value for key, value in keys.items() if value}}


def read(additional_config: Any) -> Asked:
    """Return what `additional_config` asks, the default without "anchoreval"; raise AnchorEvalError if malformed."""
    table = additional_config.get(KEY, {}) if isinstance(additional_config, Mapping) else {}
    if not isinstance(table, Mapping):
        raise AnchorEvalError(f'additional_config["{KEY}"] is a table such as {{"rope": "fp32"}}, not {table!r}')
    for key in table:
        if key not in KEYS:
            raise UnknownName(f'key of additional_config["{KEY}"]', str(key), KEYS)
    plans, documents = table.get("plans", False), table.get("documents")
    if not isinstance(plans, bool):
        raise AnchorEvalError(f'additional_config["{KEY}"]["plans"] is true or false, not {plans!r}')
    return Asked(parse_level(str(table.get("rope", "native"))), plans, _pattern(documents, plans), _rows(table))


def of(vllm_config: Any) -> Asked:
    """Return what is asked of an engine with this configuration; raise AnchorEvalError if it cannot serve that."""
    asked = read(vllm_config.additional_config)
    worker = vllm_config.parallel_config.worker_cls
    if asked.plans and worker != PLAN_WORKER:
        raise UnsupportedArm(f"plans: position plans need worker_cls={PLAN_WORKER} (--worker-cls), not {worker}")
    if not asked.level.native:
        _refuse_longrope(vllm_config.model_config.hf_config, asked.level)
    return asked


def _refuse_longrope(hf_config: Any, level: RopeLevel) -> None:
    """Raise UnsupportedArm for `longrope`: vLLM does not let plugins replace that class, so its model is refused."""
    from vllm.transformers_utils.config import iter_rope_parameters

    if any(rope.get("rope_type") == "longrope" for rope in iter_rope_parameters(hf_config)):
        raise UnsupportedArm(f"rope: {level} is not computed for RoPE of type longrope in vLLM; only `native` runs")


def _pattern(documents: Any, plans: bool) -> str | None:
    if documents is None:
        return None
    if documents not in PATTERNS:
        raise UnknownName(f'value of additional_config["{KEY}"]["documents"]', str(documents), PATTERNS)
    if not plans:
        raise AnchorEvalError(f'additional_config["{KEY}"]: documents come with plans, add "plans": true')
    return str(documents)


def _rows(given: Mapping[str, Any]) -> int:
    rows = given.get("positions", 0)
    if not isinstance(rows, int) or isinstance(rows, bool) or rows < 0:
        raise AnchorEvalError(f'additional_config["{KEY}"]["positions"] is a number of positions, not {rows!r}')
    return rows
