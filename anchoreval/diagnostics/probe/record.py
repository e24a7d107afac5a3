"""How far two computations of the same attention are apart, by layer and head: scores, weights, single keys.

`record` runs a stock transformers model once under a RoPE level, with all positions shifted, and passes on the rotated
q and k of every layer; `compare` compares those of two runs. The scores are recomputed here in fp64, so only the
rounding of q and k is measured and nothing after it. No length x length array ever exists: scores are computed for some
query rows at a time, and for a long text only for the rows that `query_rows` chooses.

Shape letters: H query heads, K key heads, R chosen query rows, r rows of one block, L keys, D head dim. There is one
text at a time, so there is no batch. Source of D and D_logit: arXiv 2411.13476, equations 4 and 5; scores carry the
model's own scaling (1 / sqrt(D) in most models), which the equations leave out.
"""

from __future__ import annotations

import contextlib
import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from anchoreval.arms.kernels import FUSED, MaskFunction, RowMask, fused, row_mask
from anchoreval.arms.patch_hf import applied, rotating_modules
from anchoreval.arms.rope import RopeLevel
from anchoreval.diagnostics.probe.sheet import Difference
from anchoreval.errors import ModelError, UnsupportedArm

#: The name under which transformers knows the kernel that passes on q and k.
CAPTURE = "anchoreval_probe"
#: Most fp64 scores of one block: 4 MiB, about the size of a cache, on a CPU; 128 MiB elsewhere.
BLOCK_SCORES = {"cpu": 1 << 19}
BLOCK_SCORES_ELSEWHERE = 1 << 24


@dataclass(frozen=True)
class Heads:
    """Rotated q [H, R, D] and k [K, L, D] of one layer, and how their products become weights.

    `rows` [R] are the positions of the queries in the text, ascending; `rule` says which keys they see (None: all keys
    up to their own position). `sinks` [H] are logits that take weight and belong to no key.
    """

    q: Tensor
    k: Tensor
    rows: Tensor
    scale: float
    softcap: float | None = None
    sinks: Tensor | None = None
    rule: MaskFunction | None = None

    def to(self, device: torch.device) -> Heads:
        """Return a copy on another device."""
        sinks = None if self.sinks is None else self.sinks.to(device)
        q, k, rows = (t.to(device) for t in (self.q, self.k, self.rows))
        return Heads(q, k, rows, self.scale, self.softcap, sinks, self.rule)


def query_rows(length: int, most: int) -> Tensor:
    """Return all positions [R] of a text, or `most` of a long one: one drawn from each of equal strata, and the last.

    They are drawn because a regular step would meet bf16 positions at the same rounding every time; the draw follows
    from the length. The last row sees every key, so every key is measured at least once.
    """
    if length <= most:
        return torch.arange(length)
    draw = random.Random(f"rows-{length}-{most}")
    edges = [index * length // most for index in range(most + 1)]
    chosen = [draw.randrange(low, high) for low, high in itertools.pairwise(edges)]
    return torch.tensor([*chosen[:-1], length - 1])


def compare(one: Heads, other: Heads) -> Difference:
    """Return how `other` differs from `one`: two computations of one layer over the same text and rows."""
    device = one.q.device
    other = other.to(device)
    if one.q.shape != other.q.shape or one.k.shape != other.k.shape or not torch.equal(one.rows, other.rows):
        raise ValueError("two computations of different layers, texts or rows")
    sums = _Sums(one)
    keys = (one.k.double(), other.k.double())
    for start, stop in _blocks(one):
        pair = tuple(_scores(heads, k, start, stop) for heads, k in zip((one, other), keys, strict=True))
        sums.add(pair[0], pair[1], _seen(one, start, stop))
    return sums.difference()


def _blocks(heads: Heads) -> Iterator[tuple[int, int]]:
    """Return (start, stop) of blocks of rows whose scores stay within the device's budget."""
    most = BLOCK_SCORES.get(heads.q.device.type, BLOCK_SCORES_ELSEWHERE)
    step = max(1, most // (heads.q.shape[0] * heads.k.shape[1]))
    count = heads.q.shape[1]
    return ((start, min(start + step, count)) for start in range(0, count, step))


def _scores(heads: Heads, k_KLD: Tensor, start: int, stop: int) -> Tensor:
    """Return scores [H, r, L'] in fp64 against the keys up to the block's last row."""
    reach = int(heads.rows[stop - 1]) + 1
    q_HrD = heads.q[:, start:stop].double() * heads.scale
    grouped = q_HrD.reshape(k_KLD.shape[0], -1, q_HrD.shape[-1])
    scores = (grouped @ k_KLD[:, :reach].transpose(1, 2)).reshape(q_HrD.shape[0], stop - start, reach)
    if heads.softcap is not None:
        scores = scores.div_(heads.softcap).tanh_().mul_(heads.softcap)
    return scores


def _seen(heads: Heads, start: int, stop: int) -> Tensor:
    """Return booleans [r, L']: which keys each query of the block sees."""
    query = heads.rows[start:stop, None]
    key = torch.arange(int(heads.rows[stop - 1]) + 1, device=query.device)[None]
    if heads.rule is None:
        return key <= query
    zero = torch.zeros(1, 1, 1, 1, dtype=torch.long, device=query.device)
    return heads.rule(zero, zero, query[None, None], key[None, None])[0, 0] & (key <= query)


class _Sums:
    """Sums over the rows so far, which are divided at the end."""

    def __init__(self, heads: Heads) -> None:
        H, L = heads.q.shape[0], heads.k.shape[1]
        zero = heads.q.new_zeros((), dtype=torch.float64)
        self.sinks = None if heads.sinks is None else heads.sinks.to(zero)[:, None, None]
        self.logit_HL, self.weight_HL, self.mass_HL = (zero.new_zeros(H, L) for _ in range(3))
        self.visible_L, self.pairs_4H, self.pair_rows = zero.new_zeros(L), zero.new_zeros(4, H), zero.clone()
        self.mass_first_H, self.rows = zero.new_zeros(H), heads.q.shape[1]

    def add(self, one: Tensor, other: Tensor, seen: Tensor) -> None:
        """Add a block: scores [H, r, L'] of both computations, and which of them count [r, L'].

        The scores are overwritten.
        """
        reach, hidden = seen.shape[1], ~seen
        logit = (one - other).abs_().masked_fill_(hidden, 0.0)
        weight_of_one = self._weights(one, hidden)
        weight = (weight_of_one - self._weights(other, hidden)).abs_()
        self.logit_HL[:, :reach] += logit.sum(1)
        self.weight_HL[:, :reach] += weight.sum(1)
        self.mass_HL[:, :reach] += weight_of_one.sum(1)
        self.visible_L[:reach] += seen.sum(0)
        others = seen.sum(1) - 1
        counts = seen[:, 0] & (others > 0)
        share_r = counts / others.clamp(min=1)
        self.pair_rows += counts.sum()
        for index, values in enumerate((logit, weight)):
            first, rest = values[:, :, 0], values.sum(-1) - values[:, :, 0]
            self.pairs_4H[2 * index] += (first * counts).sum(-1)
            self.pairs_4H[2 * index + 1] += (rest * share_r).sum(-1)
        self.mass_first_H += (weight_of_one[:, :, 0] * counts).sum(-1)

    def _weights(self, scores: Tensor, hidden: Tensor) -> Tensor:
        scores = scores.masked_fill_(hidden, float("-inf"))
        if self.sinks is None:
            return scores.softmax(-1)
        column = self.sinks.expand(-1, scores.shape[1], 1)
        return torch.cat([scores, column], -1).softmax(-1)[..., :-1]

    def difference(self) -> Difference:
        n_L = 1 / self.visible_L.clamp(min=1)
        logit_HL, weight_HL = self.logit_HL * n_L, self.weight_HL * n_L
        logit_first, logit_other, weight_first, weight_other = self.pairs_4H / self.pair_rows.clamp(min=1)
        total = self.weight_HL.sum(-1)
        top_H, mass_HL = self._top(), self.mass_HL * n_L
        logit_top, weight_top, mass_top = (t.gather(1, top_H[:, None])[:, 0] for t in (logit_HL, weight_HL, mass_HL))
        return Difference(
            D=weight_HL.sum(-1),
            D_logit=logit_HL[:, 0],
            logit_first=logit_first,
            logit_other=logit_other,
            logit_top=logit_top,
            weight_first=weight_first,
            weight_other=weight_other,
            weight_top=weight_top,
            share_first=torch.where(total > 0, self.weight_HL[:, 0] / total.clamp(min=1e-300), total),
            mass_first=self.mass_first_H / self.pair_rows.clamp(min=1),
            mass_top=mass_top,
            key_logit=logit_HL.sum(0),
            key_weight=weight_HL.sum(0),
        )

    def _top(self) -> Tensor:
        """Return for each head [H] the key with the most weight, of all but the first that half of the rows see.

        If a window lets half of the rows see no other key, all other keys count. A single key is the top key itself.
        """
        if len(self.visible_L) == 1:
            return torch.zeros_like(self.mass_first_H, dtype=torch.long)
        often = self.visible_L[1:] * 2 >= self.rows
        mean_HL = self.mass_HL[:, 1:] / self.visible_L[1:].clamp(min=1)
        return mean_HL.masked_fill(~often & often.any(), -1.0).argmax(-1) + 1


@dataclass
class Recording:
    """One run of a model over one text: q and k of each attention layer, kept on the CPU.

    With `keep_inputs` it also has the hidden states [1, L, hidden] that entered each layer.
    """

    layers: dict[int, Heads] = field(default_factory=dict)
    inputs: dict[int, Tensor] = field(default_factory=dict)
    applied: dict[str, Any] = field(default_factory=dict)

    def keep(self, layer: int, heads: Heads) -> None:
        """Keep a layer; this method can be the `take` of `record`."""
        self.layers[layer] = heads.to(torch.device("cpu"))


Take = Callable[[int, Heads], None]


@torch.no_grad()
def record(
    model: nn.Module,
    level: RopeLevel,
    ids: Sequence[int],
    *,
    shift: int,
    rows: Tensor,
    take: Take | None = None,
    shared: Recording | None = None,
    keep_inputs: bool = False,
) -> Recording:
    """Run `ids` under `level` at positions shift, shift + 1, ...; `take(layer, heads)` is called with each layer.

    Without `take` the layers are kept: all keys of all layers, on the CPU. With `shared`, every layer gets the hidden
    states that `shared` kept, so that its q and k differ by this layer's RoPE alone. The attention itself and the
    matrices outside of it are then left out, because nothing downstream is used. Raise UnsupportedArm for a level that
    cannot be computed or a model whose layers cannot be captured.
    """
    recording = Recording()
    device = next(model.parameters()).device
    ids_1L = torch.tensor([list(ids)], device=device)
    positions = torch.arange(ids_1L.shape[1], device=device)[None] + shift
    layers = {id(model.get_submodule(path)): at for at, path in enumerate(rotating_modules(model))}
    capture = _Capture(layers, rows.to(device), take or recording.keep, attend=shared is None)
    with applied(model, level, "fused") as state, _captured(model, capture), contextlib.ExitStack() as hooks:
        for path, at in zip(rotating_modules(model), layers.values(), strict=True):
            module = model.get_submodule(path)
            if shared is not None:
                hooks.callback(_give(module, shared.inputs[at]).remove)
            elif keep_inputs:
                hooks.callback(_keep(module, recording.inputs, at).remove)
        if shared is not None:
            hooks.enter_context(_idle(model, [model.get_submodule(path) for path in rotating_modules(model)]))
        mask = torch.ones_like(ids_1L)
        model(ids_1L, attention_mask=mask, position_ids=positions, use_cache=False, logits_to_keep=1)
    if capture.taken != set(layers.values()):
        raise UnsupportedArm("probe: some attention layers of this model do not pass through its kernel")
    recording.applied = {**state.as_json(), "attention": CAPTURE}
    return recording


def _hidden_states(args: tuple[Any, ...], named: dict[str, Any]) -> Tensor:
    """Return the hidden states among a module's arguments: the first positional one, or the one of that name."""
    hidden = args[0] if args else named.get("hidden_states")
    if not isinstance(hidden, Tensor):
        raise UnsupportedArm("probe: an attention layer of this model is not called with hidden_states")
    return hidden


def _keep(module: nn.Module, inputs: dict[int, Tensor], at: int) -> Any:
    def hook(_: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        inputs[at] = _hidden_states(args, named).cpu()

    return module.register_forward_pre_hook(hook, with_kwargs=True)


def _give(module: nn.Module, hidden: Tensor) -> Any:
    def hook(_: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, Any]:
        given = hidden.to(_hidden_states(args, named).device)
        return ((given, *args[1:]), named) if args else (args, {**named, "hidden_states": given})

    return module.register_forward_pre_hook(hook, with_kwargs=True)


@contextlib.contextmanager
def _idle(model: nn.Module, attentions: Sequence[nn.Module]) -> Iterator[None]:
    """Make every linear layer outside of `attentions` return zeros and compute nothing inside the block."""
    busy = {id(module) for attention in attentions for module in attention.modules()}
    linear = [module for module in model.modules() if type(module) is nn.Linear and id(module) not in busy]
    stock = {id(module): vars(module)["forward"] for module in linear if "forward" in vars(module)}

    def zeros(hidden: Tensor, features: int) -> Tensor:
        return hidden.new_zeros(*hidden.shape[:-1], features)

    for module in linear:
        vars(module)["forward"] = partial(zeros, features=module.out_features)
    try:
        yield
    finally:
        for module in linear:
            del vars(module)["forward"]
            if id(module) in stock:
                vars(module)["forward"] = stock[id(module)]


@dataclass
class _Capture:
    """Where the kernel passes q and k on: layer by module, rows to keep, and whether attention is computed."""

    layers: dict[int, int]
    rows: Tensor
    take: Take
    attend: bool
    taken: set[int] = field(default_factory=set)


_CAPTURING: ContextVar[_Capture] = ContextVar("_CAPTURING")


def _kernel(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **rest: Any,
) -> tuple[Tensor, None]:
    """Pass on q [1, H, L, D] and k [1, K, L, D], then call the fused kernel, or return zeros in its place.

    The last layer returns zeros too, because nothing measured comes after it.
    """
    capture = _CAPTURING.get()
    if not isinstance(attention_mask, RowMask):
        raise UnsupportedArm(f"probe: an attention mask of type {type(attention_mask).__name__}")
    if not bool(torch.isfinite(key).all() and torch.isfinite(query).all()):
        raise ModelError("probe: q or k is not finite under this dtype and level")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    rule, sinks = attention_mask.rule, None if s_aux is None else s_aux.detach()
    at = capture.layers[id(module)]
    capture.take(at, Heads(query[0, :, capture.rows], key[0], capture.rows, scale, softcap, sinks, rule))
    capture.taken.add(at)
    if not capture.attend or len(capture.taken) == len(capture.layers):
        return value.new_zeros(1, query.shape[2], query.shape[1], value.shape[-1]), None
    named = {**rest, "scaling": scaling, "softcap": softcap, "s_aux": s_aux}
    return fused(module, query, key, value, attention_mask, **named)


@contextlib.contextmanager
def _captured(model: nn.Module, capture: _Capture) -> Iterator[None]:
    """Make every configuration that names the fused kernel name the capturing one inside the block."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register(CAPTURE, _kernel)
    AttentionMaskInterface.register(CAPTURE, row_mask)
    owners: Iterator[Any] = (getattr(module, "config", None) for module in model.modules())
    configs = {id(c): c for c in owners if getattr(c, "_attn_implementation", None) == FUSED}
    token = _CAPTURING.set(capture)
    try:
        for config in configs.values():
            config._attn_implementation = CAPTURE
        yield
    finally:
        for config in configs.values():
            config._attn_implementation = FUSED
        _CAPTURING.reset(token)
