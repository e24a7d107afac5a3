"""Where answers are computed: one protocol, opened by name, imported only when opened."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from anchoreval.arms.arm import Arm
from anchoreval.errors import MissingExtra, UnknownName
from anchoreval.schema import Json, Output, Request

BACKENDS: Mapping[str, str] = {
    "fake": "anchoreval.backends.fake:FakeBackend",
    "hf": "anchoreval.backends.hf.backend:HfBackend",
    "openai": "anchoreval.backends.openai.backend:OpenAiBackend",
    "vllm": "anchoreval.backends.vllm.backend:VllmBackend",
}
#: Backends that start anew for another RoPE level and the like: their arms come one engine after the other.
RESTARTING = frozenset({"vllm"})
#: Module that may be absent -> what installs it.
_INSTALLS = {
    **dict.fromkeys(("torch", "transformers", "safetensors", "huggingface_hub"), "anchoreval"),
    "vllm": "'anchoreval[vllm]'",
    "httpx2": "'anchoreval[openai]'",
}


class Described(Protocol):
    """What can say what it computes, before any request."""

    @property
    def fingerprint(self) -> str:
        """Identity of weights, end tokens and engine, without what only changes the speed or the last bits."""
        ...

    def describe(self) -> dict[str, Json]:
        """What the run's header says of the engine and the model.

        Under `environment` stands what changes last bits only: versions, processor, threads, GPU, parallel size.
        """
        ...

    def under(self, arm: Arm) -> AbstractContextManager[dict[str, Json]]:
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
    Errors: `UnknownName` (an option that the backend does not have among them), `MissingExtra`, `ModelError`.
    """
    opener, known = _opener(name), options_of(name)
    for option in options:
        if known is not None and option not in known:
            raise UnknownName(f"option of backend {name}", option, known)
    backend: Backend = opener(model, **options)
    return backend


def options_of(name: str) -> list[str] | None:
    """What the backend called `name` may be opened with, None where it takes anything."""
    taken = inspect.signature(_opener(name)).parameters
    anything = any(one.kind is one.VAR_KEYWORD for one in taken.values())
    return None if anything else list(taken)[1:]


def _opener(name: str) -> Callable[..., Backend]:
    if name not in BACKENDS:
        raise UnknownName("backend", name, BACKENDS)
    module, _, attribute = BACKENDS[name].partition(":")
    try:
        opener: Callable[..., Backend] = getattr(importlib.import_module(module), attribute).open
    except ModuleNotFoundError as error:
        if error.name not in _INSTALLS:
            raise
        raise MissingExtra(f"backend {name!r} needs {error.name}: pip install {_INSTALLS[error.name]}") from error
    return opener


def waves(name: str, arms: Sequence[Arm]) -> list[tuple[Arm, ...]]:
    """The arms in the groups that one start of the backend `name` serves; a group comes where its first arm stood."""
    if name not in RESTARTING:
        return [tuple(arms)]
    groups: dict[tuple[object, ...], list[Arm]] = {}
    for arm in arms:
        groups.setdefault((arm.rope, arm.placebo, arm.arrangement.stock, arm.attention), []).append(arm)
    return [tuple(group) for group in groups.values()]
