"""vLLM's rotary classes at a level: out-of-tree subclasses that vLLM makes in place of its own.

Under `native` such an object becomes an object of vLLM's own class before it is initialised, so that nothing of ours
is left. At a level it keeps a table of its own, and vLLM's table is gone: a model or a fused kernel that reads vLLM's
table directly fails instead of computing another level. Classes that are not SERVED refuse every level by name. vLLM
does not let plugins replace the class of `longrope`: engine_settings refuses it, and on a CPU the attention layers do
(masks.py), which are the first of our classes that such a model meets. A server on a GPU that is started with nothing
but `--additional-config` meets none of them; ask says.Says what it computes.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from vllm.config import VllmConfig, get_current_vllm_config
from vllm.logger import init_logger
from vllm.model_executor.custom_op import CustomOp, op_registry_oot
from vllm.model_executor.layers import rotary_embedding

from anchoreval.arms.precision import NAMES, wider
from anchoreval.arms.rope import RopeLevel
from anchoreval.errors import UnsupportedArm
from anchoreval.vllm_plugin import arithmetic, asked

logger = init_logger(f"vllm.{__name__}")

#: vLLM's classes that can compute levels: rope types default, llama3, yarn, linear, dynamic (with a factor).
SERVED = (
    "RotaryEmbedding",
    "Llama3RotaryEmbedding",
    "YaRNScalingRotaryEmbedding",
    "LinearScalingRotaryEmbedding",
    "DynamicNTKScalingRotaryEmbedding",
)


def register() -> None:
    """Have vLLM make these classes in place of its own, in this process from now on."""
    for base in _replaceable():
        if base.__name__ in op_registry_oot:
            logger.warning("anchoreval: another plugin replaces %s; RoPE levels do not reach it", base.__name__)
            continue
        ours = _at_level(base) if base.__name__ in SERVED else _refusing(base)
        CustomOp.register_oot(ours, name=base.__name__)
        ours.name = base.name  # so that `+rotary_embedding` in custom_ops still means this class


def forget() -> None:
    """Empty vLLM's store of rotary modules. Call it before each engine of a process.

    The keys of that store do not name the level, so the next engine would get the modules of this one.
    """
    rotary_embedding._ROPE_DICT.clear()


def _replaceable() -> list[Any]:
    """Return the rotary classes of vLLM that are custom operators; their order does not matter."""
    classes = [value for value in vars(rotary_embedding).values() if inspect.isclass(value)]
    return [kind for kind in classes if issubclass(kind, CustomOp)]


def _at_level(base: Any) -> Any:
    """Return a subclass of `base` that computes the level asked of the engine."""

    class AtLevel(base):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            config = get_current_vllm_config()
            wanted = asked.of(config)
            if wanted.level.native:
                self.__class__ = base
                base.__init__(self, *args, **kwargs)
                return
            super().__init__(*args, **kwargs)
            _refuse_wide(wanted.level, self.dtype)
            self.level: RopeLevel = wanted.level
            frequencies = arithmetic.frequencies(self)
            rows = _rows(config, wanted, frequencies.rows, base.__name__)
            del self.cos_sin_cache
            self.register_buffer("level_table", arithmetic.table(frequencies, self.level, rows), persistent=False)

        def at_level(self, positions: Tensor, query: Tensor, key: Tensor | None = None) -> Any:
            return arithmetic.rotated(self, self.level_table, self.level, positions, query, key)

        forward_native = forward_cuda = forward_cpu = forward_hip = forward_xpu = at_level

    AtLevel.__name__ = AtLevel.__qualname__ = f"AtLevel{base.__name__}"
    return AtLevel


def _refusing(base: Any) -> Any:
    """Return a subclass of `base` that is `base` under `native` and cannot be made at a level."""

    class Refusing(base):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            level = asked.of(get_current_vllm_config()).level
            if not level.native:
                raise UnsupportedArm(f"rope: {level} is not computed in vLLM's {base.__name__}; only `native` runs")
            self.__class__ = base
            base.__init__(self, *args, **kwargs)

    Refusing.__name__ = Refusing.__qualname__ = f"Refusing{base.__name__}"
    return Refusing


def _refuse_wide(level: RopeLevel, model: torch.dtype) -> None:
    if wider(level.product, model):
        held = NAMES[model]
        raise UnsupportedArm(
            f"rope: {level} keeps q and k in {level.product}, and vLLM's cache and kernels hold {held}; "
            f"give the model dtype=float32 or the site product=model"
        )


def _rows(config: VllmConfig, wanted: asked.Asked, own: int, name: str) -> int:
    """Return the rows that every position of the engine needs; `dynamic` frequencies hold only for the model's own."""
    needed = max(int(config.model_config.max_model_len), wanted.positions)
    if needed > own and name == "DynamicNTKScalingRotaryEmbedding":
        raise UnsupportedArm(f"rope: dynamic scaling is one table up to position {own}; set max_model_len={own}")
    return max(needed, own)
