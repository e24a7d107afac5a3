"""Find out about a loaded model before it answers: its RoPE, the self-test, and what enters its kernels.

Levels of RoPE need all of it. `native` touches nothing and needs none of it: what cannot be found out about a model
then stands in the header with its reason.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from anchoreval.arms.arm import Arm
from anchoreval.arms.inspect_hf import BROKEN, inspect_rope, same
from anchoreval.arms.patch_hf import Applied, rotary_modules
from anchoreval.backends.hf.cache import KvStore
from anchoreval.backends.hf.load import StockNetwork
from anchoreval.backends.hf.network import extend
from anchoreval.errors import UnsupportedArm
from anchoreval.schema import Json

_TOKENS = 32


class Proofs:
    """What was found out about a loaded model; each finding is made once."""

    def __init__(self, network: StockNetwork, selftest: Callable[[], dict[str, Json]]) -> None:
        self._network, self._run_selftest = network, selftest
        self._selftest: dict[str, Json] | None = None
        self._inspected: dict[str, Json] | None = None
        self._at_kernel: dict[tuple[object, ...], dict[str, Json]] = {}
        self._restored: set[tuple[object, ...]] = set()

    def tested(self) -> dict[str, Json]:
        """Return the self-test of the rotary patch; if it cannot run it counts as failed, and `why` says so."""
        if self._selftest is None:
            try:
                self._selftest = self._run_selftest()
            except (UnsupportedArm, *BROKEN) as error:
                self._selftest = {"ok": False, "restored": False, "why": _line(error)}
        return self._selftest

    def inspected(self) -> dict[str, Json]:
        """Return what RoPE the model has; if its rotary modules cannot be described, `why` says so."""
        model = self._network.model
        if self._inspected is not None:
            return self._inspected
        try:
            self._inspected = asdict(inspect_rope(model))
        except (UnsupportedArm, *BROKEN) as error:
            rotary = [
                {"path": path, "kind": type(module).__name__, "rope_types": {}}
                for path, module in rotary_modules(model).items()
            ]
            report: dict[str, Json] = {"has_rope": bool(rotary), "rotary": rotary, "rotating": [], "detected": None}
            self._inspected = report | {"damaged": [], "unchecked": {}, "why": _line(error)}
        return self._inspected

    @torch.inference_mode()
    def at_kernel(self, arm: Arm, state: Applied) -> dict[str, Json]:
        """Return dtype and bits of q and k in the attention kernels under the arm in force, from one short pass.

        Raise UnsupportedArm if a level does not get there: no rotation goes through it, q or k lose what it gives them,
        or the model's code does not take its tables. `native`, for which nothing is refused, was looked at on load.
        """
        if arm.rope.native:
            return self._network.entering
        key = (arm.rope, state.attention, arm.outside)
        if key not in self._at_kernel:
            try:
                self._network.one_token()
                if not state.rotations:
                    text = f"rope: no rotation of this model goes through {state.level}; only `native` runs"
                    raise UnsupportedArm(text)
                state.verify()
                self._at_kernel[key] = state.at_kernel
            except BROKEN as error:
                text = f"rope {arm.rope}: {_line(error)}"
                raise UnsupportedArm(f"arm {arm.name!r}: hf cannot compute {text}") from error
            for counts in (state.tables, state.rotations, state.passes):
                counts.clear()
        return self._at_kernel[key]

    @torch.inference_mode()
    def restored(self, arm: Arm, put_on: Callable[[], AbstractContextManager[Any]]) -> None:
        """Refuse an arm that leaves something behind: stock logits before and after it are compared bit for bit.

        This is done once per arm, on a short prompt and a token after it, which are also run under the arm.
        """
        key = (arm.rope, arm.kernel, arm.outside)
        if key in self._restored:
            return
        before = self._logits()
        try:
            with put_on():
                self._logits()
            after = self._logits()
        except BROKEN as error:
            raise UnsupportedArm(f"arm {arm.name!r}: a short prompt under it: {_line(error)}") from error
        if not same(before, after):
            why = "the stock logits do not come back when it is taken off the model: it leaves something behind"
            raise UnsupportedArm(f"arm {arm.name!r}: {why}")
        self._restored.add(key)

    def _logits(self) -> Tensor:
        """Return the logits [1, tokens + 1, vocabulary] of a prompt and, from its cache, of one more token."""
        cache = KvStore(self._network.layers, 1, _TOKENS + 1).row(0, 0, 0)
        ids = [(7 * place + 3) % self._network.vocabulary for place in range(_TOKENS + 1)]
        prompt = extend(self._network, cache, ids[:_TOKENS], range(_TOKENS), 0, keep=_TOKENS)
        behind = extend(self._network, cache, ids[_TOKENS:], [_TOKENS], _TOKENS)
        return torch.cat([prompt, behind])


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split())[:300]
    return text if isinstance(error, UnsupportedArm) else f"{type(error).__name__}: {text}"
