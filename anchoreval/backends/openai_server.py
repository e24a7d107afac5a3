"""Which server is behind an address, asked again after reconnecting, and what it takes, found by trying once."""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from anchoreval.backends.openai_http import Link, NoAnswer, Refused
from anchoreval.backends.openai_message import count_of, usage_of
from anchoreval.errors import ModelError, UnknownName
from anchoreval.schema import Json
from anchoreval.tokenizer import TextTokenizer

Api = Literal["completions", "chat"]
#: `prompt_logprobs`: vLLM's; `echo`: the prompt comes back with its log-probabilities, and `echo+1` with a new token.
Logprobs = Literal["prompt_logprobs", "echo", "echo+1", "none"]
SAYS = "x-anchoreval"  # the header in which a vLLM server with our plugin says what it computes
_NEAR = 1e-3  # nats by which two computations of one log-probability may differ on a 16-bit model, with room
_PROBE_TEXT = "The answer to this is a word, and then there is another purple"  # an unlikely last word
_MISTAKEN = "it has another tokenizer than --tokenizer"


def text_of(tokenizer: TextTokenizer, ids: Sequence[int]) -> str | None:
    """The text that the tokenizer, with its special tokens, turns into `ids`; None where there is none.

    The anchor stands in the text where the tokenizer does not put it in front itself.
    """
    for first in (1, 0):
        text = tokenizer.decode(list(ids[first:]), skip_special_tokens=False)
        if tokenizer.encode(text, special_tokens=True) == list(ids):
            return text
    return None


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
    owner, root, window = row.get("owned_by"), row.get("root"), count_of(row.get("max_model_len"))
    return Identity(model, _text_or_none(owner), _text_or_none(root), window, _version(link), headers.get(SAYS))


def _text_or_none(value: Json) -> str | None:
    return value if isinstance(value, str) else None


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


def probe(
    link: Link, identity: Identity, tokenizer: TextTokenizer, api: Api, logprobs: bool
) -> tuple[Offers, int | None]:
    """What the server takes, found by asking for one token at a time, and the tokens of its own chat template.

    `ModelError` where it counts other tokens in what it is asked than `tokenizer` does. What is asked begins as nothing
    before did, for some servers leave out of their counts what they had cached.
    """
    extra = {"return_token_ids": True} if identity.vllm else {}
    if api == "chat":
        text = _probe_text()
        said = link.post("/chat/completions", _asked(identity, extra, messages=[{"role": "user", "content": text}]))
        return _offers(said, False, "none"), _around(usage_of(said).prompt, tokenizer.count(text))
    ids = _with_anchor(tokenizer, _probe_text())
    tried = _try(link, _asked(identity, extra, prompt=ids))
    if tried is not None and usage_of(tried).prompt in (None, len(ids)):
        return _offers(tried, True, _logprobs(link, identity, ids) if logprobs else "none"), None
    plain = _probe_text()
    ids = _with_anchor(tokenizer, plain)
    text = text_of(tokenizer, ids) or plain
    said = link.post("/completions", _asked(identity, extra, prompt=text))
    read = usage_of(said).prompt
    if tokenizer.encode(text, special_tokens=True) == ids and read not in (None, len(ids)):
        raise ModelError(f"the server counts {read} tokens in a prompt of {len(ids)}: {_MISTAKEN}, or adds tokens")
    return _offers(said, False, _logprobs(link, identity, text) if logprobs else "none"), None


def _offers(said: Mapping[str, Any], token_prompts: bool, logprobs: Logprobs) -> Offers:
    has_ids = said["choices"][0].get("token_ids") is not None
    return Offers(token_prompts, logprobs, has_ids, _text_or_none(said.get("system_fingerprint")))


def _around(read: int | None, turn: int) -> int | None:
    """The tokens that the server's chat template puts around a turn; `ModelError` where it read less than the turn."""
    if read is not None and read < turn:
        raise ModelError(f"the server counts {read} tokens in a turn of {turn} and its chat template: {_MISTAKEN}")
    return None if read is None else read - turn


def _probe_text() -> str:
    return f"{secrets.token_hex(4)}: {_PROBE_TEXT}"


def _with_anchor(tokenizer: TextTokenizer, text: str) -> list[int]:
    """The ids that a prompt of this text is sent as."""
    anchor = tokenizer.bos or tokenizer.eos
    return [*([anchor[1]] if anchor else []), *tokenizer.encode(text)]


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
    except (Refused, NoAnswer):
        return None


def _version(link: Link) -> str | None:
    """The engine's version, where the server has /version beside or below the address."""
    try:
        said, _ = link.get(f"{link.address.removesuffix('/v1')}/version")
    except Refused:
        return None
    version = said.get("version") if isinstance(said, dict) else None
    return str(version) if version else None
