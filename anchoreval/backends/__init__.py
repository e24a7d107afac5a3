"""Where answers are computed: one protocol. A backend is opened by name, and imported only then."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from anchoreval.arms.arm import Arm
from anchoreval.errors import AnchorEvalError, MissingExtra, ModelError, UnknownName
from anchoreval.schema import Json, Output, Request


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What the package knows of a backend without importing it.

    `opens` is its class, `module:name`; `about` is what the command line says of it. `takes` names the options of
    `open` that a run or a flag gives besides `dtype` and `kernel`; a lenient backend ignores such flags. One start
    serves all arms for which `restarts_for` returns the same value.
    """

    opens: str
    about: str = ""
    takes: frozenset[str] = frozenset()
    lenient: bool = False
    loads_checkpoint: bool = False  # and so reads generation_config.json and adapters
    needs_tokenizer: bool = False  # the checkpoint is not on this machine: the user names its tokenizer
    one_server: bool = False  # at an address, with a chat template and positions of its own
    always_placebo: bool = False  # what is computed together may move log-probabilities: two arms need a noise floor
    kernels_of_torch: bool = False  # `kernel` is an attention implementation of transformers, run by torch
    restarts_for: Callable[[Arm], Hashable] = lambda _: None


def _engine_of_vllm(arm: Arm) -> Hashable:
    return arm.rope, arm.placebo, arm.stock, arm.attention


_LOADING = frozenset({"device", "trust_remote_code"})
#: A backend is a class of the protocol `Backend` and a row here; fake.py is the smallest. Its class method
#: `open(model, *, dtype, kernel, ...)` takes the folder or name of the checkpoint, these two and what `takes` names,
#: and returns the backend. A row of OPTIONS in options.py explains the options that no flag gives; it is there, and
#: empty, without any. What holds for every backend is tested in tests/backends/test_protocol.py.
BACKENDS: Mapping[str, Capabilities] = {
    "hf": Capabilities(
        "anchoreval.backends.hf.backend:HfBackend",
        "transformers",
        _LOADING | {"chunk_tokens", "batch_tokens", "realisation", "product"},
        loads_checkpoint=True,
        kernels_of_torch=True,
    ),
    "vllm": Capabilities(
        "anchoreval.backends.vllm.backend:VllmBackend",
        "its offline engine",
        _LOADING | {"max_model_len"},
        loads_checkpoint=True,
        always_placebo=True,
        restarts_for=_engine_of_vllm,
    ),
    "openai": Capabilities(
        "anchoreval.backends.openai.backend:OpenAiBackend",
        "a server, with --base-url and --tokenizer",
        frozenset({"base_url", "tokenizer"}),
        needs_tokenizer=True,
        one_server=True,
    ),
    "fake": Capabilities(
        "anchoreval.backends.fake:FakeBackend", "answers without a model, to try a set-up", lenient=True
    ),
}
#: Module that may be absent -> what pip installs to provide it.
_INSTALLS = {
    **dict.fromkeys(("torch", "transformers", "safetensors", "huggingface_hub"), "anchoreval"),
    "vllm": "'anchoreval[vllm]'",
    "httpx2": "'anchoreval[openai]'",
}


class Described(Protocol):
    """An object that can describe what it computes, before any request."""

    @property
    def fingerprint(self) -> str:
        """Identity of weights, end tokens and engine, without what only changes the speed or the last bits."""
        ...

    def describe(self) -> dict[str, Json]:
        """Return what the run's header says of the engine and the model.

        These keys are always there: `engine`, which is the backend's name, `versions`, and, None if unknown, `dtype`,
        `parameters`, `max_length`, `weights_sha256` and `rope`. `environment` holds what changes last bits only:
        versions, processor, threads, GPU, parallel size.
        """
        ...

    def under(self, arm: Arm) -> AbstractContextManager[dict[str, Json]]:
        """Apply the arm inside the block and yield it as applied; raise UnsupportedArm with the field.

        `arm.require(name)` refuses fields that are other backends'. What is yielded is `applied` in the run's header:
        JSON, with `rope`, `positions`, `attention`, `dtype` and `kernel` as they were computed.
        """
        ...


class Backend(Described, Protocol):
    """A loaded model that answers requests under an arm."""

    def answer(self, requests: Sequence[Request]) -> Iterator[Output]:
        """Yield one output per request, each as soon as its batch is done, in any order.

        An answer ends at a string of `stop` (answering.py cuts there), at one of `end_ids` or after `max_new_tokens`;
        where nothing is to be generated, `finish` is `request.unsaid`. A request with `choices` gets a score for each,
        and one that `scores_text` gets `token_logprobs`: without log-probabilities these are outputs of finish "error"
        that say `why`, never outputs without scores. Elsewhere `reference_logprob` may be None.
        """
        ...

    def close(self) -> None:
        """Release the model; further calls are errors."""
        ...


def open_backend(name: str, model: str, **options: Json) -> Backend:
    """Return the backend called `name` with `model` loaded.

    `options` are the keyword arguments of that backend's `open` (`dtype`, `device`, `batch_tokens`, ...). Raise
    UnknownName (also for an option that the backend does not have), MissingExtra, or ModelError (also for an option of
    another kind).
    """
    opener = opener_of(name)
    taken = inspect.signature(opener).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values())
    words = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text"}
    for option, value in options.items():
        if option not in taken and not takes_any:
            raise UnknownName(f"option of backend {name}", option, list(taken)[1:])
        kind = str(taken[option].annotation).removesuffix(" | None") if option in taken else ""
        fits = {
            "int": type(value) is int and abs(value) < 2**63,
            "float": type(value) in (int, float) and abs(value) <= sys.float_info.max,
            "bool": type(value) is bool,
            "str": isinstance(value, str),
        }
        if value is not None and not fits.get(kind, True):
            raise ModelError(f"{option}={value}: expected {words[kind]}"[:200])
    backend: Backend = opener(model, **options)
    return backend


def opened_with(name: str, given: Mapping[str, Any], **flags: Any) -> dict[str, Any]:
    """Return the options to open a backend with: those of `--backend-args`, and those that have flags of their own.

    Raise AnchorEvalError for a flag that belongs to another backend.
    """
    backend = capabilities_of(name)
    if ((flags["base_url"] or given.get("base_url")) is None) == backend.one_server:
        raise AnchorEvalError("--backend openai and --base-url go together: --base-url http://127.0.0.1:8000/v1")
    flags = {flag: value for flag, value in flags.items() if value is not None}
    tuning = [flag for flag in flags if flag in ("chunk_tokens", "batch_tokens", "realisation")]
    if not backend.lenient and (refused := next((flag for flag in tuning if flag not in backend.takes), None)):
        owner = next(other for other, known in BACKENDS.items() if refused in known.takes)
        raise AnchorEvalError(f"--{refused.replace('_', '-')} is of backend {owner}; {name} has --backend-args")
    return {flag: value for flag, value in flags.items() if flag in backend.takes} | dict(given)


def capabilities_of(name: str) -> Capabilities:
    """Return what is known of the backend called `name`; raise UnknownName if there is none."""
    if name not in BACKENDS:
        raise UnknownName("backend", name, BACKENDS)
    return BACKENDS[name]


def opener_of(name: str) -> Callable[..., Backend]:
    """Import a backend and return its `open`; raise UnknownName, or MissingExtra with what installs it."""
    module, _, attribute = capabilities_of(name).opens.partition(":")
    try:
        opener: Callable[..., Backend] = getattr(importlib.import_module(module), attribute).open
    except ModuleNotFoundError as error:
        if error.name not in _INSTALLS:
            raise
        raise MissingExtra(f"backend {name!r} needs {error.name}: pip install {_INSTALLS[error.name]}") from error
    return opener


def waves(name: str, arms: Sequence[Arm]) -> list[tuple[Arm, ...]]:
    """Return the arms in groups that one start of the backend `name` serves, in the order of their first arms."""
    groups: dict[Hashable, list[Arm]] = {}
    for arm in arms:
        groups.setdefault(capabilities_of(name).restarts_for(arm), []).append(arm)
    return [tuple(group) for group in groups.values()]
