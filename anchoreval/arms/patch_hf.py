"""RoPE levels and the fused kernel on a stock transformers model, for the duration of a `with` block.

Nothing is patched at import, no modelling code is copied and no global of transformers is replaced. Inside the block

  * each rotary module of the model has a `forward` of its own (an instance attribute: precision.Tables);
  * each attention module has a `forward` of its own: the stock code object with a private dictionary of globals, in
    which `apply_rotary_pos_emb` is precision.Rotation. So two models, and two threads, never see each other's level.
    The dictionary also holds a table of attention kernels that reports the q and k that enter them
    (entering.Reporting);
  * latent attention joins the rotated and the unrotated part of k in `expand_kv`, which copies both into a tensor of
    the model's dtype: a method of its own joins them in the wider dtype;
  * with `kernel="fused"`, the model's configuration names the kernel, which is registered with transformers. The two
    names that registration adds to transformers' tables stay: other models may be using them.

Leaving the block removes all of it, also after an exception. A model that shares its configuration object with another
shares the kernel too. Some models slice the rotated part of q and k off before the rotation (Phi, StableLM, Persimmon,
latent attention), or compute a norm after it (HunYuan, NanoChat); then not all of what enters the product has the
product's bits: `at_kernel` says what entered. Facts about transformers are of 5.23.
"""

from __future__ import annotations

import contextlib
import inspect
import re
import threading
import types
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from anchoreval.arms.entering import Entered, global_names, reporting_table, summary, with_globals
from anchoreval.arms.kernels import FUSED, fused, row_mask, switched
from anchoreval.arms.patterns import SINK_WINDOW, numbers_of
from anchoreval.arms.precision import (
    NAMES,
    DamagedBuffer,
    Rotation,
    Tables,
    frequency_buffers,
    rope_types,
    sound_copy,
    unchecked,
    wider,
)
from anchoreval.arms.rope import DIGITS, RopeLevel
from anchoreval.errors import UnsupportedArm

Kernel = Literal["stock", "fused"]

_APPLY = re.compile(r"^_?apply_(?!.*vision).*(rotary|rope)")
_INSTALLING = threading.Lock()


@dataclass
class Applied:
    """What holds inside the block: the level as applied, and counts of tables, rotations and passes."""

    level: RopeLevel
    kernel: Kernel
    attention: str
    model_dtype: str
    rotary: dict[str, str] = field(default_factory=dict)
    repaired: list[DamagedBuffer] = field(default_factory=list)
    unchecked: dict[str, str] = field(default_factory=dict)
    rotating: tuple[str, ...] = ()
    entered: dict[str, Entered] = field(default_factory=dict)
    tables: Counter[str] = field(default_factory=Counter)
    rotations: Counter[str] = field(default_factory=Counter)
    passes: Counter[str] = field(default_factory=Counter)
    patched: dict[str, tuple[nn.Module, Callable[..., Any]]] = field(default_factory=dict, repr=False)
    _handed: dict[str, torch.dtype] = field(default_factory=dict, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def as_json(self) -> dict[str, Any]:
        """Return JSON values: level, sites, kernel, rotary modules with their RoPE types, repaired buffers."""
        return {
            "level": str(self.level),
            "sites": self.level.sites,
            "kernel": self.kernel,
            "attention": self.attention,
            "model_dtype": self.model_dtype,
            "rotary": dict(self.rotary),
            "repaired": [asdict(buffer) for buffer in self.repaired],
            **({"unchecked": dict(self.unchecked)} if self.unchecked else {}),
            **({"at_kernel": self.at_kernel} if self.entered else {}),
            "forwards": self.forwards,
            "rotations": sum(self.rotations.values()),
            "layers_without_rope": self.unrotated,
        }

    @property
    def forwards(self) -> int:
        """Passes so far, including broken-off ones: how often the busiest rotary module made tables."""
        return max(self.tables.values(), default=0)

    @property
    def unrotated(self) -> list[str]:
        """Attention modules that have not rotated in any pass so far, as NoPE layers do (SmolLM3, Cohere 2)."""
        return [name for name in self.rotating if not self.rotations[name]] if self.forwards else []

    @property
    def at_kernel(self) -> dict[str, Any]:
        """Dtype and bits of the q and k that entered attention kernels, over all modules seen, as JSON values."""
        values = summary(self.entered)
        product = self.level.sites.get("product", "model")
        widest = max((DIGITS.get(values[name]["bits"], 0) for name in ("q", "k") if name in values), default=0)
        if product != "model" and widest > DIGITS[product]:
            values["note"] = f"{product} before what follows the rotation (a norm), or in the rotated part only"
        return values

    def verify(self) -> None:
        """Raise UnsupportedArm unless every pass rotated through the level, in each layer that rotates.

        Call it between passes. `native` and an unused block have nothing to verify. After a pass that an error broke
        off (out of memory, say), the layers' counts rightly differ and are no longer compared.
        """
        if self.level.native or not (self.tables or self.rotations):
            return
        for name, (module, forward) in self.patched.items():
            if module.__dict__.get("forward") is not forward:
                raise UnsupportedArm(f"rope: the forward of {name} was replaced under {self.level}")
        if not any(self.rotations.values()):
            raise UnsupportedArm(f"rope: {self.level} made tables, but no rotation went through it")
        broken_off = self.passes["begun"] != self.passes["ended"]
        for name in self.rotating:
            if self.forwards == 0 or (self.rotations[name] % self.forwards and not broken_off):
                times = f"{self.forwards} passes, but {self.rotations[name]} rotations in {name}"
                raise UnsupportedArm(f"rope: {self.level} was not served throughout: {times}")

    def count_pass(self, step: str, *_: Any) -> None:
        """Count a pass. This is a hook on the model: `step` is "begun" or "ended"."""
        with self._lock:
            self.passes[step] += 1

    def count_table(self, name: str, layer_type: str) -> None:
        with self._lock:
            self.tables[f"{name}:{layer_type}"] += 1

    def count_rotation(self, name: str, dtype: torch.dtype) -> None:
        """Count a rotation of module `name`, which handed q and k on in `dtype`."""
        with self._lock:
            self.rotations[name] += 1
            self._handed[name] = dtype

    def enter(self, name: str, kernel: str, _: Any, query: Tensor, key: Tensor, rest: Mapping[str, Any]) -> None:
        """Check the q and k that enter a kernel; raise UnsupportedArm if they lost the dtype that the level gave them.

        Their bits are looked at once per module. Layers that do not rotate do not concern the level.
        """
        handed = self._handed.pop(name, None)
        if handed is None:
            return
        if name not in self.entered:
            self.entered[name] = Entered.of(query, key)
        allowed = {NAMES.get(handed, str(handed)), *([self.model_dtype] if self.level.product == "model" else [])}
        for what, tensor in (("q", query), ("k", key)):
            if NAMES.get(tensor.dtype, str(tensor.dtype)) in allowed:
                continue
            text = f"{what} enters the kernel of {name} in {NAMES.get(tensor.dtype, tensor.dtype)}"
            wanted = NAMES.get(handed, handed)
            raise UnsupportedArm(f"rope: {self.level} hands q and k on in {wanted}, and {text}")


@contextlib.contextmanager
def applied(model: nn.Module, level: RopeLevel, kernel: Kernel | None = None) -> Iterator[Applied]:
    """Make `model` compute RoPE at `level` inside the block, and exactly as before after it.

    `kernel`: "stock" is the attention that the model was loaded with, "fused" is kernels.fused; None is fused if the
    level needs it (q and k wider than the model) and stock otherwise. `native` with the stock kernel touches nothing.
    Leaving the block without an error verifies that every rotation was served. Raise UnsupportedArm, with the field,
    for what cannot be computed, and if the model is already under a level.
    """
    dtype = model_dtype(model)
    needs_fused = not level.native and wider(level.product, dtype)
    if kernel == "stock" and needs_fused:
        text = f"{level} on a {NAMES[dtype]} model needs --kernel auto or fused"
        raise UnsupportedArm(f"kernel: {text}, for q and k stay wide")
    if not level.native:
        _refuse_unpatchable(model, level)
    chosen: Kernel = kernel or ("fused" if needs_fused else "stock")
    stock = str(getattr(getattr(model, "config", None), "_attn_implementation", "none"))
    state = Applied(level, chosen, FUSED if chosen == "fused" else stock, NAMES.get(dtype, str(dtype)))
    with contextlib.ExitStack() as stack:
        with _INSTALLING:
            if not level.native:
                _install_rope(model, state, stack)
            if state.kernel == "fused":
                stack.enter_context(switched(model, FUSED, fused, row_mask))
        yield state
        state.verify()


@contextlib.contextmanager
def only_sinks_and_window(model: Any, pattern: str) -> Iterator[None]:
    """Make `model` see sinks and window alone inside the block; any other pattern leaves the model as it is.

    The model's kernel stays; its mask builder gets one more condition. A token's place is its number among the tokens
    of its row, so padding on the left counts for nothing. Raise UnsupportedArm for kernels whose masks are not made of
    rules.
    """
    if not (numbers := numbers_of(pattern, SINK_WINDOW)):
        yield
        return
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    kernel = model.config._attn_implementation
    if kernel not in ("sdpa", FUSED):
        raise UnsupportedArm(f"attention {pattern!r} on kernel {kernel!r}: use --kernel sdpa or fused")
    # the tables of transformers belong to all models: a name for each rule and kernel, without "sdpa" in it
    name = "_".join(["anchoreval", *pattern.split(":"), "fused" if kernel == FUSED else "stock"])
    with switched(
        model, name, AttentionInterface()[kernel], partial(_sinks_and_window, AttentionMaskInterface()[kernel], numbers)
    ):
        yield


def _sinks_and_window(stock: Callable[..., Any], numbers: tuple[int, ...], **asked: Any) -> Any:
    """Build the stock mask with the pattern in its rule. transformers calls this function."""
    sinks, window = numbers
    rule, padding_BC = asked["mask_function"], asked.get("attention_mask")
    place_BC = None if padding_BC is None else padding_BC.long().cumsum(-1) - 1

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        q, k = (query, key) if place_BC is None else (place_BC[batch, query], place_BC[batch, key])
        both: Tensor = rule(batch, head, query, key) & ((k < sinks) | (q - k < window))
        return both

    return stock(**asked | {"mask_function": sees, "allow_is_causal_skip": False})


def rotary_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Return path to module, for every module that turns position ids into tables by inverse frequencies."""
    rotary: dict[str, nn.Module] = {}
    for path, module in model.named_modules():
        if frequency_buffers(module):
            parameters = inspect.signature(inspect.unwrap(type(module).forward)).parameters
            if list(parameters)[1:3] == ["x", "position_ids"]:
                rotary[path] = module
    return rotary


def rotating_modules(model: nn.Module) -> dict[str, dict[str, Callable[..., Any]]]:
    """Return path to {name: stock function}, for every module whose forward calls a global `apply_*rotary*`."""
    rotating: dict[str, dict[str, Callable[..., Any]]] = {}
    for path, module in model.named_modules():
        scope = getattr(inspect.unwrap(type(module).forward), "__globals__", {})
        functions = {name: scope.get(name) for name in global_names(module) if _APPLY.match(name)}
        if reachable := {name: f for name, f in functions.items() if callable(f)}:
            rotating[path] = reachable
    return rotating


def model_dtype(model: nn.Module) -> torch.dtype:
    """Return the dtype of the first floating parameter, torch.float32 for a model without any."""
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)


def _refuse_unpatchable(model: nn.Module, level: RopeLevel) -> None:
    rotary, rotating, name = rotary_modules(model), rotating_modules(model), type(model).__name__
    if not rotary:
        raise UnsupportedArm(f"rope: no RoPE found in {name}; only `native` runs, not {level}")
    if not rotating:
        raise UnsupportedArm(f"rope: {name} rotates in a way that cannot be reached; only `native` runs")
    if getattr(model, "use_kernels", False):
        raise UnsupportedArm(f"rope: {level} cannot be applied to a model loaded with use_kernels=True")
    for path in (*rotary, *rotating):
        if "forward" in model.get_submodule(path).__dict__:
            raise UnsupportedArm(f"rope: {path} is already patched, by another level or by device hooks")


def _install_rope(model: nn.Module, state: Applied, stack: contextlib.ExitStack) -> None:
    _refuse_unpatchable(model, state.level)  # again, under the lock
    for path, module in rotary_modules(model).items():
        sound, damage = sound_copy(module, path)
        state.repaired.extend(damage)
        if why := unchecked(module):
            state.unchecked[path] = why
        state.rotary[path] = "+".join(sorted(set(rope_types(module).values())))
        state.patched[path] = module, Tables(sound, state.level, partial(state.count_table, path))
    rotating = rotating_modules(model)
    state.rotating = tuple(rotating)
    for path, functions in rotating.items():
        module, count = model.get_submodule(path), partial(state.count_rotation, path)
        replaced: dict[str, Any] = {name: Rotation(stock, state.level, count) for name, stock in functions.items()}
        forward = with_globals(module, replaced | reporting_table(module, partial(state.enter, path)))
        state.patched[path] = module, forward
        if wider(state.level.product, model_dtype(model)) and _joins_latent(module):
            module.__dict__["expand_kv"] = types.MethodType(_expand_kv, module)
            stack.callback(module.__dict__.pop, "expand_kv", None)
    stack.callback(model.register_forward_pre_hook(partial(state.count_pass, "begun")).remove)
    stack.callback(model.register_forward_hook(partial(state.count_pass, "ended")).remove)
    for module, forward in state.patched.values():
        module.__dict__["forward"] = forward
        stack.callback(module.__dict__.pop, "forward", None)


def _joins_latent(module: nn.Module) -> bool:
    """Return whether the module is latent attention whose `expand_kv` joins both parts of k (DeepSeek-V3's kin)."""
    parts = ("kv_b_proj", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
    return hasattr(type(module), "expand_kv") and all(hasattr(module, part) for part in parts)


def _expand_kv(self: Any, kv_nope: Tensor, k_rot: Tensor) -> tuple[Tensor, Tensor]:
    """Return keys and values [B, H, L, D] of latents [B, 1, L, rank] and the rotated shared key [B, 1, L, d].

    It computes what `expand_kv` of transformers 5.16 to 5.24 (models/deepseek_v3/modeling_deepseek_v3.py) does. That
    copies `k_rot` into a tensor of the latents' dtype; joined here, k has the wider dtype of the two.
    """
    rows, _, length, _ = kv_nope.shape
    both = self.kv_b_proj(kv_nope).view(rows, length, -1, self.qk_nope_head_dim + self.v_head_dim).transpose(1, 2)
    k_nope, values = torch.split(both, [self.qk_nope_head_dim, self.v_head_dim], dim=-1)
    return torch.cat((k_nope, k_rot.expand(-1, k_nope.shape[1], -1, -1)), dim=-1), values
