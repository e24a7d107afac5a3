"""Find what an engine computes by asking the running workers: `LLM.collective_rpc("anchoreval_says")`.

The level is not read off the configuration. Every rotary module runs on sample vectors, on the path that vLLM would
take, and the resulting bits are compared with those of each level's arithmetic. Kernels that contract a multiplication
and an addition to one rounding (vLLM's own on a CPU in fp32) count as the level too: such a product is rounded once
less.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from vllm.config import CompilationMode
from vllm.model_executor.layers import rotary_embedding
from vllm.model_executor.layers.rotary_embedding.base import RotaryEmbeddingBase

from anchoreval.arms.precision import NAMES, rounded, wider
from anchoreval.arms.rope import LEVELS, RopeLevel
from anchoreval.errors import UnsupportedArm
from anchoreval.vllm_plugin import arithmetic, asked

_SAMPLES, _HEADS = 512, 4  # positions and heads: 65,536 values of q at head size 32, so that levels are told apart
#: `fp32` comes before `fp32-qk`: in an fp32 model they are the same computation.
_ORDER = sorted((name for name in LEVELS if name != "native"), key=lambda name: (name != "fp32", "qk" in name))


class Says:
    """A worker extension: `worker_extension_cls="anchoreval.vllm_plugin.says.Says"`, with any worker."""

    def anchoreval_says(self) -> dict[str, Any]:
        """Return JSON values: rotary modules, the level detected, the model's dtype, the attention backends."""
        config, model = self.vllm_config, self.model_runner.get_model()  # type: ignore[attr-defined]
        wanted = asked.read(config.additional_config)
        modules = [said(module, config, wanted.level) for module in rotary_modules(model)]
        levels = sorted({str(module["detected"]) for module in modules})
        layers = config.compilation_config.static_forward_context.values()
        attention = [layer for layer in layers if hasattr(layer, "get_attn_backend")]
        return {
            "asked": wanted.as_config(),
            "detected": modules[0]["detected"] if len(levels) == 1 else None,
            "rotary": modules,
            "model": type(model).__name__,
            "model_dtype": NAMES.get(config.model_config.dtype, str(config.model_config.dtype)),
            "attention": sorted({f"{layer.get_attn_backend().get_name()} ({_kind(layer)})" for layer in attention}),
        }


def _kind(layer: Any) -> str:
    """Return the name of the class that computes an attention layer."""
    return type(getattr(layer, "impl", layer)).__name__


def rotary_modules(model: nn.Module) -> list[nn.Module]:
    """Return the distinct rotary modules of a vLLM model, including those that cannot compute a level."""
    longrope = rotary_embedding.Phi3LongRoPEScaledRotaryEmbedding
    kinds = (RotaryEmbeddingBase, rotary_embedding.DualChunkRotaryEmbedding, longrope)
    return [module for module in model.modules() if isinstance(module, kinds)]


def table_of(rotary: nn.Module) -> Tensor | None:
    """Return the table that `rotary` reads, [rows, rotated dimensions]; None if it has none of that form."""
    tables = (getattr(rotary, name, None) for name in ("level_table", "cos_sin_cache"))
    return next((table for table in tables if table is not None), None)


def said(rotary: nn.Module, config: Any, wanted: RopeLevel) -> dict[str, Any]:
    """Return one rotary module as JSON values; if no level fits, `detected` is None and `reason` says why."""
    table = table_of(rotary)
    facts: dict[str, Any] = {
        "class": type(rotary).__name__,
        "table_dtype": None if table is None else NAMES.get(table.dtype, str(table.dtype)),
        "rows": None if table is None else table.shape[0],
        "dispatch": getattr(getattr(rotary, "_forward_method", None), "__name__", "forward"),
    }
    if _compiled(rotary, config):
        reason = "vLLM compiles this rotation with its neighbours, and the compiler chooses where it rounds"
        return {**facts, "detected": None, "equal_levels": [], "reason": reason}
    try:
        equal = levels_of(rotary, config.model_config.dtype, config, wanted)
    except UnsupportedArm as error:
        return {**facts, "detected": None, "equal_levels": [], "reason": str(error)}
    why = {} if equal else {"reason": "its rotation has the bits of no level"}
    return {**facts, "detected": equal[0] if equal else None, "equal_levels": equal, **why}


def _compiled(rotary: nn.Module, config: Any) -> bool:
    """Return whether the model runs this module inside a compiled graph, so that calling it here shows nothing.

    A level is one operator to the compiler, and so are vLLM's kernels; it only looks into vLLM's native rotation.
    """
    if config.compilation_config.mode == CompilationMode.NONE or hasattr(rotary, "level_table"):
        return False
    return getattr(rotary, "_forward_method", None) == getattr(rotary, "forward_native", None)


def levels_of(rotary: Any, dtype: torch.dtype, config: Any, wanted: RopeLevel) -> list[str]:
    """Return the levels whose arithmetic gives exactly the bits of `rotary`: first `wanted`, then the named levels."""
    table = table_of(rotary)
    if table is None or not hasattr(rotary, "_compute_cos_sin_cache"):
        raise UnsupportedArm(f"rope: {type(rotary).__name__} has no table of its own form; only `native` runs")
    frequencies = arithmetic.frequencies(rotary)
    positions_N, query, key = _samples(rotary, table, dtype)
    with torch.no_grad():
        got = rotary(positions_N, query.clone(), key.clone())
    names = [str(wanted), *_ORDER] if not wanted.native else _ORDER
    candidates = {name: wanted if name == str(wanted) else LEVELS[name] for name in names}
    return [
        name
        for name, level in candidates.items()
        if not wider(level.product, dtype) and _same(rotary, frequencies, level, (positions_N, query, key), got)
    ]


def _same(rotary: Any, found: arithmetic.Frequencies, level: RopeLevel, inputs: Any, got: Any) -> bool:
    """Return whether `got` has the bits of the level, each product rounded or, in fp32, one of the two contracted."""
    table_RD = arithmetic.table(found, level, int(inputs[0].max()) + 1)
    expected: list[tuple[Any, ...]] = [arithmetic.rotated(rotary, table_RD, level, *inputs)]
    if level.rotate == "fp32":
        cos_ND, sin_ND = table_RD[inputs[0]].float().chunk(2, -1)
        for second in (False, True):
            turned = (arithmetic.contracted(rotary, x, cos_ND, sin_ND, second) for x in inputs[1:])
            expected.append(tuple(rounded(x, level.product, x.dtype) for x in turned))
    return any(all(map(torch.equal, pair, got)) for pair in expected)


def _samples(rotary: Any, table: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Return positions [N] over the whole table and random q, k [N, heads x head size], the same in every engine."""
    rng = torch.Generator().manual_seed(0)
    positions_N = torch.randint(0, table.shape[0], (_SAMPLES,), generator=rng)
    shape = (_SAMPLES, _HEADS * rotary.head_size)
    query, key = (torch.randn(shape, generator=rng).to(dtype).to(table.device) for _ in range(2))
    return positions_N.to(table.device), query, key
