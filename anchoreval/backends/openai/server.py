"""Find out which server is at an address, and its window; ask again after reconnecting.

The window is the number of positions for a prompt and its answer, wherever the server states it. It is not a condition
of a run: a server that does not state it is used all the same, and what it states may change from one start to the
next.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from anchoreval.backends.openai.http import Link, NoAnswer, Refused
from anchoreval.backends.openai.message import count_of, names_of, rows_of
from anchoreval.errors import ModelError
from anchoreval.schema import Json
from anchoreval.tokenizer import TextTokenizer

Api = Literal["completions", "chat"]
#: `prompt_logprobs`: vLLM's; `echo`: the prompt comes back with its log-probabilities, and `echo+1` with a new token.
Logprobs = Literal["prompt_logprobs", "echo", "echo+1", "none"]
#: Names in a row of a list of models, those of what is loaded before those of what the model could have.
_IN_ROW = (
    ("max_model_len",),  # vLLM, SGLang
    ("meta", "n_ctx"),  # llama.cpp; its n_ctx_train is the model's, not the server's
    ("loaded_context_length",),  # LM Studio
    ("top_provider", "context_length"),  # OpenRouter
    ("context_length",),  # OpenRouter, Ollama's running models
    ("context_window",),  # Groq
    ("max_context_length",),  # LM Studio, Mistral
    ("max_total_tokens",),
)
#: Addresses beside /v1 of which one says the window of the one model that is served.
_BESIDE = (
    ("/props", ("default_generation_settings", "n_ctx")),  # llama.cpp
    ("/info", ("max_total_tokens",)),  # TGI
    ("/get_server_info", ("context_length",)),  # SGLang
    ("/get_model_info", ("context_length",)),
)
SAYS = "x-anchoreval"  # the header in which a vLLM server with our plugin says what it computes


def text_of(tokenizer: TextTokenizer, ids: Sequence[int]) -> str | None:
    """Return the text that the tokenizer, with its special tokens, turns into `ids`; None if there is no such text.

    The text includes the anchor if the tokenizer does not put it in front itself.
    """
    for first in (1, 0):
        text = tokenizer.decode(list(ids[first:]), skip_special_tokens=False)
        if tokenizer.encode(text, special_tokens=True) == list(ids):
            return text
    return None


@dataclass(frozen=True, slots=True)
class Identity:
    """The model and the engine as the server names them; None for what it does not say."""

    model: str
    owned_by: str | None = None
    root: str | None = None
    max_model_len: int | None = None
    version: str | None = None
    says: str | None = None

    @property
    def vllm(self) -> bool:
        """Whether fields that only vLLM has may be sent."""
        return self.version is not None and self.owned_by == "vllm"

    @property
    def plugin(self) -> Mapping[str, Json] | None:
        """What our plugin in the server says that it computes; None without the plugin."""
        if self.says is None:
            return None
        try:
            said = json.loads(self.says)
        except ValueError:
            said = None
        if not isinstance(said, dict) or "rope" not in said:
            raise ModelError(f"the server's header {SAYS} cannot be read: {self.says[:80]!r}")
        return said


@dataclass(frozen=True, slots=True)
class Offers:
    """What was found by trying: prompts as token ids, log-probabilities, token ids of answers."""

    token_prompts: bool
    logprobs: Logprobs
    token_ids: bool
    system_fingerprint: str | None = None


@dataclass(frozen=True, slots=True)
class Listed:
    """The identity of a server, the models in its list (None: it has no list), and a notice about that list."""

    identity: Identity
    names: tuple[str, ...] | None
    notice: str = ""

    def lacks(self, model: str) -> bool:
        """Return whether there is a list and the model is not in it."""
        return self.names is not None and model not in self.names


def identify(link: Link, model: str) -> Listed:
    """Return the identity of the server at an address, as far as the server tells it. It need not have a model list."""
    try:
        said, headers = link.get(f"{link.address}/models")
    except Refused as error:
        return _unlisted(link, model, f"HTTP {error.status}")
    except NoAnswer as error:
        return _unlisted(link, model, error.why.partition(":")[0])
    rows = rows_of(said)
    if rows is None:
        return _unlisted(link, model, f"it is {link.clean(said)[:60]}")
    names = tuple(dict.fromkeys(name for row in rows for name in names_of(row)))
    row = next((row for row in rows if model in names_of(row)), None)
    if row is None:
        others = ", ".join(map(repr, names[:3])) + (", ..." if len(names) > 3 else "")
        what = f"holds {link.clean(others)} alone" if names else "is empty"
        notice = f"the model list here {what}: asked as {model}"
        return Listed(Identity(model, version=_version(link), says=headers.get(SAYS)), names, notice)
    owner, root, window = row.get("owned_by"), row.get("root"), count_of(row.get("max_model_len"))
    version, says = _version(link), headers.get(SAYS)
    return Listed(Identity(model, text_or_none(owner), text_or_none(root), window, version, says), names)


def _unlisted(link: Link, model: str, why: str) -> Listed:
    return Listed(Identity(model, version=_version(link)), None, f"no model list here, asked as {model} ({why})")


def text_or_none(value: Json) -> str | None:
    """Return a text; None for anything else."""
    return value if isinstance(value, str) else None


def require_same(link: Link, known: Listed) -> None:
    """Raise ModelError if another model or engine than the known one is at the address now.

    A list or version that has disappeared proves nothing; nor does one that was not there before.
    """
    now, model = identify(link, known.identity.model), known.identity.model
    if now.names is None or known.names is None:
        return
    text = f"another server is behind {link.address} than when the run began"
    if now.lacks(model) and not known.lacks(model):
        raise ModelError(f"{text}: {now.notice}")
    before, after = asdict(known.identity), asdict(now.identity)
    if after["version"] is None:
        after["version"] = before["version"]
    if changed := [f"{name} was {before[name]}, is {after[name]}" for name in before if before[name] != after[name]]:
        raise ModelError(f"{text}: {', '.join(changed)}; start the first one and give the same command again")


def _version(link: Link) -> str | None:
    """Return the engine's version, if the server has /version beside or below the address."""
    try:
        said, _ = link.get(f"{link.address.removesuffix('/v1')}/version")
    except (Refused, NoAnswer):
        return None
    version = said.get("version") if isinstance(said, dict) else None
    return link.clean(str(version)) if version else None


def stated_window(link: Link, model: str) -> int | None:
    """Return the number of positions for a prompt and its answer; None if the server does not state it."""
    return next(_stated(link, model), None)


def _stated(link: Link, model: str) -> Iterator[int]:
    root = link.address.removesuffix("/v1")
    yield from _in_row(link.aside(f"{link.address}/models"), model)
    for path, place in _BESIDE:
        yield from _numbers(link.aside(f"{root}{path}"), place)
    yield from _in_row(link.aside(f"{root}/api/v0/models"), model)
    running = link.aside(f"{root}/api/ps")
    yield from _in_row(running, model)
    if isinstance(running, dict) and "models" in running:  # no other server than Ollama is posted what it may not know
        said = link.aside(f"{root}/api/show", {"model": model})
        parameters = said.get("parameters") if isinstance(said, dict) else None  # of a Modelfile, one a line
        for line in parameters.splitlines() if isinstance(parameters, str) else ():
            name, _, value = line.partition(" ")
            if name == "num_ctx" and value.strip().isdecimal() and len(value.strip()) < 12:
                yield int(value)


def _in_row(said: Json, model: str) -> Iterator[int]:
    """Yield the counts in the model's row of a list of models."""
    for row in rows_of(said) or ():
        if model in names_of(row):
            yield from _numbers(row, *_IN_ROW)


def _numbers(said: Json, *places: tuple[str, ...]) -> Iterator[int]:
    """Yield the counts that stand at `places`, each a path of keys."""
    for place in places:
        value = said
        for key in place:
            value = value.get(key) if isinstance(value, dict) else None
        if (count := count_of(value)) is not None:
            yield count
