"""Fixtures of the attention tests: recorders of what reaches the rotation and the kernel."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from torch import Tensor

Call = dict[str, Any]


@pytest.fixture
def kernel_calls(monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """Every call of the fused kernel: layer, q, k, v, mask, softcap, sinks, window and output."""
    from anchoreval.arms import patch_hf

    calls: list[Call] = []
    stock = patch_hf.fused

    def recorder(module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, **named: Any) -> tuple[Tensor, None]:
        out, _ = stock(module, q, k, v, mask, **named)
        calls.append({"module": module, "q": q, "k": k, "v": v, "mask": mask, "out": out, **named})
        return out, None

    monkeypatch.setattr(patch_hf, "fused", recorder)
    return calls


@pytest.fixture
def unrotated(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], list[tuple[Tensor, Tensor]]]:
    """`unrotated(model)` is the list to which every (q, k) that enters a rotation of its family is added."""

    def spy_on(model: Any) -> list[tuple[Tensor, Tensor]]:
        from anchoreval.arms import patch_hf

        seen: list[tuple[Tensor, Tensor]] = []
        path, functions = next(iter(patch_hf.rotating_modules(model).items()))
        module = sys.modules[type(model.get_submodule(path)).__module__]
        for name, stock in functions.items():

            def spy(q: Tensor, k: Tensor, *rest: Any, _stock: Any = stock, **named: Any) -> Any:
                seen.append((q, k))
                return _stock(q, k, *rest, **named)

            monkeypatch.setattr(module, name, spy)
        return seen

    return spy_on
