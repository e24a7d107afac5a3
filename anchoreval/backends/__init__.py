"""Where answers are computed: one protocol, opened by name, imported only when opened."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from anchoreval.attention.rope import RopeLevel
from anchoreval.errors import MissingExtra, UnknownName
from anchoreval.schema import Json, Output, Request

BACKENDS: Mapping[str, str] = {
    "fake": "anchoreval.backends.fake:FakeBackend",
    "hf": "anchoreval.backends.hf:HfBackend",
}
_REQUIRED = frozenset({"torch", "transformers", "safetensors", "huggingface_hub"})


class ArmLike(Protocol):
    """What a backend reads of an arm: the value of each axis, and its name for messages."""

    @property
    def name(self) -> str:
        """The arm as asked, for messages."""
        ...

    @property
    def rope(self) -> RopeLevel:
        """The dtype at each site of the rotary embedding."""
        ...

    @property
    def positions(self) -> str:
        """`contiguous`, `shift:M`, ..."""
        ...

    @property
    def attention(self) -> str:
        """`full`, `intra-doc`, `anchor`."""
        ...

    @property
    def dtype(self) -> str:
        """The model's number format, or `auto`."""
        ...

    @property
    def kernel(self) -> str:
        """The attention implementation, or `auto`."""
        ...

    @property
    def placebo(self) -> bool:
        """Whether the arm is computed in other chunks and batches than it would be, to measure noise."""
        ...


class Described(Protocol):
    """What can say what it computes, before any request."""

    @property
    def fingerprint(self) -> str:
        """Identity of weights and engine, without the settings that only change the speed."""
        ...

    def describe(self) -> dict[str, Json]:
        """What the run's header says of the engine and the model."""
        ...

    def under(self, arm: ArmLike) -> AbstractContextManager[dict[str, Json]]:
        """The arm as applied, for the length of the block; `UnsupportedArm` names the field."""
        ...


class Backend(Described, Protocol):
    """A loaded model that answers requests under an arm."""

    def answer(self, requests: Sequence[Request]) -> Iterator[Output]:
        """One output per request, each as soon as its batch is done, in any order."""
        ...

    def close(self) -> None:
        """Releases the model; further calls are errors."""
        ...


def open_backend(name: str, model: str, **options: Json) -> Backend:
    """The backend called `name` with `model` loaded.

    `options` are the keyword arguments of that backend's `open` (`dtype`, `device`, `batch_tokens`, ...).
    Errors: `UnknownName`, `MissingExtra`, `ModelError`.
    """
    if name not in BACKENDS:
        raise UnknownName("backend", name, BACKENDS)
    module, _, attribute = BACKENDS[name].partition(":")
    try:
        opener = getattr(importlib.import_module(module), attribute).open
    except ModuleNotFoundError as error:
        if error.name not in _REQUIRED:
            raise
        raise MissingExtra(f"backend {name!r} needs {error.name}: pip install anchoreval") from error
    backend: Backend = opener(model, **options)
    return backend
