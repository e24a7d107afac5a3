"""Rotations that depend on the length of a pass (dynamic, longrope): what `generate()` does, what a pass leaves behind.

Shapes: N tokens, k positions whose logits are asked for, V vocabulary.

`dynamic_rope_update` (transformers `modeling_rope_utils.py`) picks the frequencies of a pass by its highest position.
`dynamic` beyond max_position_embeddings has other frequencies at every length and keeps those of the longest pass;
`longrope` changes its factors once, at original_max_position_embeddings. Keys in a cache keep the frequencies that
they were rotated with. For one row this means:

  * the answer is what `generate()` says on that prompt alone, in a model that has seen no other: step by step, the
    frequencies growing with each token. If the family's own `prepare_inputs_for_generation` drops the cache (Phi-3,
    PhiMoE, Phi-4 multimodal, when prompt and answer cross the switch), the row is computed again, all tokens in one
    pass. `generate()` of transformers 5.23 does the same; that of 5.16 to 5.19 goes on there with the last token alone,
    without any context, which is not computed here;
  * the log-probability of the reference is that of one stock pass over prompt and reference;
  * a choice is scored as lm-eval does, by one stock pass over prompt and choice without its last token;
  * a text that is scored is one stock pass over all its tokens but the last;
  * rows are computed alone, and what a pass changes in the rotary modules is restored after it: nothing depends on the
    previous prompt, on the reference or on another choice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationMixin
from transformers.cache_utils import Cache

from anchoreval.arms.configuration import rope_type, ropes_of
from anchoreval.errors import ModelError

GROWING_ROPE = frozenset({"dynamic", "longrope"})
_PLAIN = (Tensor, bool, int, float, list, type(None))
_CLONED = 1 << 16  # elements; larger tensors (tables of remote code) are replaced by a pass, not written in place


class Growth:
    """The rotation of one model, as its configuration describes it; `alike` says which passes rotate alike."""

    def __init__(self, model: Any) -> None:
        text = model.config.get_text_config(decoder=True)
        groups = [group for group in ropes_of(model.config) if rope_type(group) in GROWING_ROPE]
        switches = [s for group in groups for s in _switches(group, text)]
        self._model = model
        self._same_up_to = min(switches, default=0)
        self._same_above = max(switches) if set(map(rope_type, groups)) == {"longrope"} and switches else None
        self._rotary = [module for module in model.modules() if _keeps_frequencies(module)]
        prepare = getattr(type(model), "prepare_inputs_for_generation", None)
        #: Whether the family has its own generation code, which may drop the cache.
        self._may_drop = prepare is not None and prepare is not GenerationMixin.prepare_inputs_for_generation

    def alike(self, tokens: int, others: int) -> bool:
        """Return whether a pass over so many tokens and one over so many others rotate with the same frequencies."""
        low, high = sorted((tokens, others))
        return low == high or high <= self._same_up_to or (self._same_above is not None and low > self._same_above)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Restore what rotary modules remember at the end of the block, also in the copies that an arm uses."""
        before = [(module, _state(module)) for module in self._modules()]
        try:
            yield
        finally:
            for module, state in before:
                _restore(module, state)

    def drops_cache(self, ids: Sequence[int], cache: Cache) -> bool:
        """Return whether the family's own generation code would drop the keys and values that it has of `ids`."""
        if not self._may_drop:
            return False
        ids_1N = torch.tensor([ids], device=self._model.device)
        given = self._model.prepare_inputs_for_generation(
            ids_1N, next_sequence_length=1, past_key_values=cache, attention_mask=torch.ones_like(ids_1N)
        )
        return given.get("past_key_values") is None

    def logits(self, ids: Sequence[int], keep: int) -> Tensor:
        """Return the logits `kV` of the last `keep` of `ids` in one stock pass over all of them."""
        ids_1N = torch.tensor([ids], device=self._model.device)
        result = self._model(
            input_ids=ids_1N,
            attention_mask=torch.ones_like(ids_1N),
            position_ids=torch.arange(len(ids), device=ids_1N.device)[None],
            logits_to_keep=keep,
            use_cache=False,
        )
        logits_kV: Tensor = result.logits[0, -keep:]
        return logits_kV

    def each_logits(self, ids: Sequence[int], first: int, rows: int) -> Iterator[Tensor]:
        """Yield logits `RV` behind the tokens from `first` on, `rows` at a time, of one stock pass over all `ids`.

        Layers run once and their result serves every piece of the output projection. ModelError where they cannot be
        told apart from it.
        """
        ids_1N = torch.tensor([ids], device=self._model.device)
        positions_1N = torch.arange(len(ids), device=ids_1N.device)[None]
        given = {"attention_mask": torch.ones_like(ids_1N, dtype=torch.bool), "position_ids": positions_1N}
        with _layers_once(self._model):
            for at in range(first, len(ids), rows):
                kept_R = torch.arange(at, min(at + rows, len(ids)), device=ids_1N.device)
                yield self._model(input_ids=ids_1N, logits_to_keep=kept_R, use_cache=False, **given).logits[0]

    def _modules(self) -> Iterator[nn.Module]:
        for module in self._rotary:
            yield module
            rotary = getattr(module.__dict__.get("forward"), "rotary", None)  # the copy that an arm's tables come from
            if isinstance(rotary, nn.Module):
                yield rotary


def _switches(group: Mapping[str, Any], text: Any) -> list[int]:
    """Return every length at which the frequencies of a growing type may begin to change."""
    stated = [group.get("original_max_position_embeddings"), getattr(text, "original_max_position_embeddings", None)]
    if rope_type(group) != "longrope":
        stated.append(getattr(text, "max_position_embeddings", None))
    return [int(length) for length in stated if isinstance(length, int)]


def _keeps_frequencies(module: nn.Module) -> bool:
    named = "rotary" in type(module).__name__.lower()
    return named or any(name.endswith("inv_freq") for name in module._buffers)


@contextmanager
def _layers_once(model: Any) -> Iterator[None]:
    """Inside the block everything below the output projection runs once, and its result serves every further call."""
    below = model.base_model
    if below is model or "forward" in vars(below):
        raise ModelError(f"{type(model).__name__}: the layers below the output projection cannot be told apart")
    stock = below.forward
    made: list[Any] = []

    def forward(*args: Any, **named: Any) -> Any:
        if not made:
            made.append(stock(*args, **named))
        return made[0]

    below.__dict__["forward"] = forward
    try:
        yield
    finally:
        below.__dict__.pop("forward", None)


_State = tuple[dict[str, Any], dict[str, Any], list[tuple[Tensor, Tensor]]]


def _state(module: nn.Module) -> _State:
    """Return plain attributes (numbers, tensors, lists) and buffers of a module, and copies of its small tensors."""
    values = {name: value for name, value in vars(module).items() if isinstance(value, _PLAIN)}
    lists = {name: list(value) for name, value in values.items() if isinstance(value, list)}
    tensors = [t for t in (*values.values(), *module._buffers.values()) if isinstance(t, Tensor)]
    return values | lists, dict(module._buffers), [(t, t.clone()) for t in tensors if t.numel() <= _CLONED]


def _restore(module: nn.Module, state: _State) -> None:
    """Put back the same tensors with the same content: transformers 5.23 writes some of them in place."""
    values, buffers, contents = state
    for name in [name for name, value in vars(module).items() if isinstance(value, _PLAIN) and name not in values]:
        del module.__dict__[name]
    module.__dict__.update(values)
    module._buffers.clear()
    module._buffers.update(buffers)
    with torch.inference_mode():
        for tensor, content in contents:
            tensor.copy_(content)
