"""Which server is behind an address, asked again after reconnecting, and what it takes, found by trying once."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from anchoreval.backends.openai_http import Link, Refused
from anchoreval.errors import ModelError, UnknownName
from anchoreval.schema import Json
from anchoreval.tokenizer import TextTokenizer

Api = Literal["completions", "chat"]
#: `prompt_logprobs`: vLLM's; `echo`: the prompt comes back with its log-probabilities, and `echo+1` with a new token.
Logprobs = Literal["prompt_logprobs", "echo", "echo+1", "none"]
SAYS = "x-anchoreval"  # the header in which a vLLM server with our plugin says what it computes
_NEAR = 1e-3  # nats by which two computations of one log-probability may differ on a 16-bit model, with room
_PROBE_TEXT = "The answer to this is a word, and then there is another purple"  # an unlikely last word


@dataclass(frozen=True, slots=True)
class Identity:
    """The model and the engine as the server names them; None where it does not say."""

    model: str
    owned_by: str | None = None
    root: str | None = None
    max_model_len: int | None = None
    version: str | None = None
    says: str | None = None

    @property
    def vllm(self) -> bool:
        """Whether the fields that only vLLM has may be sent."""
        return self.version is not None and self.owned_by == "vllm"

    @property
    def plugin(self) -> Mapping[str, Json] | None:
        """What our plugin in the server says that it computes; None where there is no such plugin."""
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


def identify(link: Link, model: str) -> Identity:
    """The identity of the server behind an address; `UnknownName` where it does not serve the model."""
    try:
        said, headers = link.get(f"{link.address}/models")
    except Refused as error:
        if error.status not in (404, 405):
            raise
        return Identity(model, version=_version(link))  # a server without a list of its models
    rows = said.get("data") if isinstance(said, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ModelError(f"{link.address}/models is not a list of models: {link.clean(said)}")
    served = {str(row.get("id")): row for row in rows}
    if model not in served:
        raise UnknownName(f"model at {link.address}", model, served)
    row = served[model]
    return Identity(
        model, row.get("owned_by"), row.get("root"), row.get("max_model_len"), _version(link), headers.get(SAYS)
    )


def require_same(link: Link, known: Identity) -> None:
    """`ModelError` where another model or engine than the known one is behind the address now."""
    try:
        now = identify(link, known.model)
    except UnknownName as error:
        raise ModelError(f"another server is behind {link.address} than when the run began: {error}") from error
    before, after = asdict(known), asdict(now)
    if changed := [f"{name} was {before[name]}, is {after[name]}" for name in before if before[name] != after[name]]:
        text = f"another server is behind {link.address} than when the run began: {', '.join(changed)}"
        raise ModelError(f"{text}; start the first one and give the same command again")


def probe(link: Link, identity: Identity, tokenizer: TextTokenizer, api: Api, logprobs: bool) -> Offers:
    """What the server takes, found by asking for one token at a time."""
    extra = {"return_token_ids": True} if identity.vllm else {}
    if api == "chat":
        turn = [{"role": "user", "content": _PROBE_TEXT}]
        said = link.post("/chat/completions", _asked(identity, extra, messages=turn))
        return Offers(False, "none", said["choices"][0].get("token_ids") is not None, said.get("system_fingerprint"))
    ids = tokenizer.encode(_PROBE_TEXT)
    tried = _try(link, _asked(identity, extra, prompt=ids))
    token_prompts = tried is not None and (tried.get("usage") or {}).get("prompt_tokens", len(ids)) == len(ids)
    if tried is not None and token_prompts:
        said = tried
    else:
        said = link.post("/completions", _asked(identity, extra, prompt=_PROBE_TEXT))
    return Offers(
        token_prompts,
        _logprobs(link, identity, ids if token_prompts else _PROBE_TEXT) if logprobs else "none",
        said["choices"][0].get("token_ids") is not None,
        said.get("system_fingerprint"),
    )


def _logprobs(link: Link, identity: Identity, prompt: Sequence[int] | str) -> Logprobs:
    """How log-probabilities of given tokens are had; each way is tried and its numbers looked at."""
    if identity.vllm and not isinstance(prompt, str) and _forces(link, identity, list(prompt)):
        return "prompt_logprobs"
    for most in (0, 1):
        said = _try(link, _asked(identity, {"echo": True, "logprobs": 1, "max_tokens": most}, prompt=prompt))
        given = ((said["choices"][0] if said else {}).get("logprobs") or {}).get("token_logprobs") or []
        values = given[1 : len(given) - most]
        if len(values) > 1 and all(isinstance(value, float) and value <= 0 for value in values):
            return "echo+1" if most else "echo"
    return "none"


def _forces(link: Link, identity: Identity, ids: list[int]) -> bool:
    """Whether a forced last token has the log-probability that it has as a part of the prompt.

    It has not where the server reports log-probabilities after it has masked (--logprobs-mode processed_logprobs).
    """
    inside = _try(link, _asked(identity, {"prompt_logprobs": 1}, prompt=ids))
    forced = _try(link, _asked(identity, {"logprobs": 1, "allowed_token_ids": ids[-1:]}, prompt=ids[:-1]))
    if inside is None or forced is None:
        return False
    try:
        value = inside["choices"][0]["prompt_logprobs"][-1][str(ids[-1])]["logprob"]
        again = forced["choices"][0]["logprobs"]["token_logprobs"][0]
    except (KeyError, IndexError, TypeError):
        return False
    return math.isclose(value, again, abs_tol=_NEAR + abs(value) * 0.05)


def _asked(identity: Identity, extra: Mapping[str, Json], **prompt: Json) -> dict[str, Json]:
    return {"model": identity.model, "max_tokens": 1, "temperature": 0} | prompt | dict(extra)


def _try(link: Link, body: Json) -> dict[str, Any] | None:
    """The answer, None where the server refuses what it was asked."""
    try:
        return link.post("/completions", body)
    except Refused:
        return None


def _version(link: Link) -> str | None:
    """The engine's version, where the server has /version beside or below the address."""
    try:
        said, _ = link.get(f"{link.address.removesuffix('/v1')}/version")
    except Refused:
        return None
    version = said.get("version") if isinstance(said, dict) else None
    return str(version) if version else None
