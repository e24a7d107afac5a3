"""Find out what a server takes by trying once: where its interface is, prompts as token ids, log-probabilities.

None of this is a condition of a run: what the server does not take is reported in one line, and the run goes on with
what it does take.
"""

from __future__ import annotations

import math
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from anchoreval.backends.openai.http import Link, NoAnswer, Refused
from anchoreval.backends.openai.message import usage_of
from anchoreval.backends.openai.server import (
    Api,
    Identity,
    Listed,
    Logprobs,
    Offers,
    identify,
    text_of,
    text_or_none,
)
from anchoreval.errors import ModelError, UnknownName
from anchoreval.prompt import wrap_of
from anchoreval.schema import Json
from anchoreval.tokenizer import TextTokenizer

PATHS: Mapping[Api, str] = {"completions": "/completions", "chat": "/chat/completions"}
_NOT_THERE = {200, 404, 405, 410, 501, *range(300, 400)}  # statuses of an address where no such interface is
_ENDPOINT = re.compile(r"/(chat/completions|completions|chat|models|responses|embeddings)$")
_NEAR = 1e-3  # nats by which two computations of one log-probability may differ on a 16-bit model, with room
_PROBE_TEXT = "The answer to this is a word, and then there is another purple"  # an unlikely last word
_MISTAKEN = "it has another tokenizer than --tokenizer"


@dataclass(frozen=True, slots=True)
class Opened:
    """What is at an address: the interface that answers, what it takes, and `around`, the tokens of its template."""

    listed: Listed
    offers: Offers
    api: Api
    around: int | None = None


def probe(
    link: Link,
    model: str,
    tokenizer: TextTokenizer,
    api: Api | None,
    logprobs: bool,
    template_args: Mapping[str, Json] | None = None,
) -> Opened:
    """Return what the server takes, found by asking for one token at a time. `api` None: chat only if it has no other.

    Raise ModelError if it counts other tokens in a prompt than `tokenizer` does, and UnknownName if it does not answer
    for the model and names others. Every probe begins as no prompt did before, because some servers leave out of their
    counts what they had cached.
    """
    given = link.address
    chosen, ids_taken = _find(link, model, tokenizer, api)
    if link.left_out or link.address != given:
        rest = f", without {link.left_out} in --base-url" if link.left_out else ""
        link.tell(f"the server answers at {link.address}{f', not at {given}' if link.address != given else ''}{rest}")
    listed = identify(link, model)
    if listed.notice:
        link.tell(listed.notice)
    extra = {"return_token_ids": True} if listed.identity.vllm else {}
    if chosen == "chat":
        return Opened(listed, *_probed_chat(link, listed.identity, tokenizer, extra, template_args or {}))
    return Opened(listed, _probed(link, listed.identity, tokenizer, extra, ids_taken, logprobs), chosen)


def _find(link: Link, model: str, tokenizer: TextTokenizer, api: Api | None) -> tuple[Api, bool]:
    """Return the interface that answers and whether it takes token ids; set the link's address to where it does."""
    failures: dict[str, Refused | NoAnswer] = {}
    given = link.address
    bases = list(dict.fromkeys(_bases(given)))
    ways: tuple[Api, ...] = (api,) if api else ("completions", "chat")
    for way in ways:
        for base in bases:
            link.address = base
            try:
                ids_taken = _answers(link, model, tokenizer, way)
            except (Refused, NoAnswer) as error:
                failures[f"{base}{PATHS[way]}"] = error
                if not _not_there(error):
                    break
                continue
            if way != ways[0]:
                why = _why(failures[f"{base}{PATHS[ways[0]]}"])
                link.tell(f"no {PATHS[ways[0]]} here ({why}): asked by {PATHS[way]} (api=chat)")
            return way, ids_taken
        if any(not _not_there(error) for error in failures.values()):
            break
    link.address = given
    raise _nowhere(link, model, bases, failures, api)


def _bases(given: str) -> Iterator[str]:
    """Yield addresses that may hold the interface, likeliest first: as given, without an endpoint, with /v1."""
    endpoint = _ENDPOINT.search(given)
    without = _ENDPOINT.sub("", given)
    yield without if endpoint and endpoint[1] == "chat" else given
    yield without
    root = re.match(r"https?://[^/]+", without)
    parts = without[root.end() :].split("/") if root else []
    for kept in range(len(parts), 0, -1):
        base = f"{root[0] if root else ''}{'/'.join(parts[:kept])}".rstrip("/")
        if not base.endswith("/v1"):
            yield f"{base}/v1"
        yield base


def _not_there(error: Refused | NoAnswer) -> bool:
    """Return whether the interface is not at an address, as far as its failure tells."""
    return error.status in _NOT_THERE if isinstance(error, Refused) else error.whole


def _why(error: Refused | NoAnswer) -> str:
    """Return the status that an error came with, or what came instead of an answer."""
    return f"HTTP {error.status}" if isinstance(error, Refused) else error.why.partition(":")[0]


def _answers(link: Link, model: str, tokenizer: TextTokenizer, api: Api) -> bool:
    """Return whether the server takes token ids; raise `Refused` or `NoAnswer` if it does not answer."""
    if api == "chat":
        link.seek(PATHS[api], _asked(model, {}, messages=[{"role": "user", "content": _probe_text()}]))
        return False
    ids = _with_anchor(tokenizer, _probe_text())
    try:
        link.seek(PATHS[api], _asked(model, {}, prompt=ids), optional=True)
    except (Refused, NoAnswer) as error:
        if _not_there(error):
            raise
        link.seek(PATHS[api], _asked(model, {}, prompt=_probe_text()))
        again = _asked(model, {}, prompt=_with_anchor(tokenizer, _probe_text()))
        return isinstance(error, NoAnswer) and _try(link, again) is not None  # it may have been busy
    return True


def _nowhere(
    link: Link, model: str, bases: Sequence[str], failures: Mapping[str, Refused | NoAnswer], api: Api | None
) -> ModelError | UnknownName:
    """Return the error that best explains why no address answers: another model, a refusal, or what was tried."""
    refusal = next((error for error in failures.values() if not _not_there(error)), None)
    if refusal is None or (isinstance(refusal, Refused) and refusal.status in (400, 404, 422)):
        for base in bases:
            link.address = base
            listed = identify(link, model)
            if listed.names and listed.lacks(model):
                link.address = bases[0]
                return UnknownName(f"model at {base}", model, [link.clean(name) for name in listed.names])
            if listed.names is not None:
                break
        link.address = bases[0]
    refusals = (error for error in failures.values() if isinstance(error, Refused))
    leads = next((error for error in refusals if 300 <= error.status < 400), None)
    if telling := refusal or leads:
        return telling
    tried = ", ".join(failures)
    first = _why(next(iter(failures.values())))
    other = "completions" if api == "chat" else "chat"
    hint = f"; does it want api={other} in --backend-args?" if api else ""
    return ModelError(f"no server with OpenAI's interface here ({first}): asked at {tried}{hint}")


def _probed_chat(
    link: Link,
    identity: Identity,
    tokenizer: TextTokenizer,
    extra: Mapping[str, Json],
    template_args: Mapping[str, Json],
) -> tuple[Offers, Api, int | None]:
    text = _probe_text()
    said = link.post(PATHS["chat"], _chat(identity, extra, text))
    if template_args:
        _require_template_args(link, identity, extra, template_args, said, text, tokenizer)
        text = _probe_text()
        said = link.post(PATHS["chat"], _chat(identity, {**extra, "chat_template_kwargs": dict(template_args)}, text))
    return _offers(said, False, "none"), "chat", _around(usage_of(said).prompt, tokenizer.count(text))


def _require_template_args(
    link: Link,
    identity: Identity,
    extra: Mapping[str, Json],
    args: Mapping[str, Json],
    plain: Mapping[str, Any],
    text: str,
    tokenizer: TextTokenizer,
) -> None:
    """Raise ModelError if the server refuses arguments of its chat template, or ignores them.

    It ignores them if the tokenizer's own template makes another prompt of them but the server's count is the same with
    and without. If the given template does not react to them, nothing can be seen.
    """
    named = f"--template-args {', '.join(args)}"
    second = _probe_text()
    try:
        said = link.post(PATHS["chat"], _chat(identity, {**extra, "chat_template_kwargs": dict(args)}, second), True)
    except (Refused, NoAnswer) as error:
        raise ModelError(f"{named}: the server takes no chat_template_kwargs: {error}") from error
    before, after = usage_of(plain).prompt, usage_of(said).prompt
    if before is None or after is None or not tokenizer.chat_template:
        link.tell(f"{named}: sent as chat_template_kwargs; whether the server heeds them cannot be seen")
        return
    moved = after - tokenizer.count(second) - (before - tokenizer.count(text))
    expected = _rendered(tokenizer, args) - _rendered(tokenizer, {})
    if expected and not moved:
        text = f"it counts {before} tokens in a prompt with and without, the template given {expected:+d}"
        raise ModelError(f"{named}: the server does not heed chat_template_kwargs: {text}: leave them out")
    if not expected and not moved:
        link.tell(f"{named}: sent as chat_template_kwargs; whether the server heeds them cannot be seen by its counts")


def _rendered(tokenizer: TextTokenizer, args: Mapping[str, Json]) -> int:
    """Return how many tokens the tokenizer's chat template puts around a turn."""
    wrap = wrap_of(tokenizer, "chat", args, "none")
    return tokenizer.count(wrap.opening) + tokenizer.count(wrap.closing)


def _probed(
    link: Link,
    identity: Identity,
    tokenizer: TextTokenizer,
    extra: Mapping[str, Json],
    ids_taken: bool,
    logprobs: bool,
) -> Offers:
    ids = _with_anchor(tokenizer, _probe_text())
    if ids_taken:
        said = link.post(PATHS["completions"], _asked(identity.model, extra, prompt=ids))
        if usage_of(said).prompt in (None, len(ids)):
            return _offers(said, True, _said_logprobs(link, identity, ids, logprobs))
    plain = _probe_text()
    ids = _with_anchor(tokenizer, plain)
    text = text_of(tokenizer, ids) or plain
    said = link.post(PATHS["completions"], _asked(identity.model, extra, prompt=text))
    read = usage_of(said).prompt
    if tokenizer.encode(text, special_tokens=True) == ids and read not in (None, len(ids)):
        raise ModelError(f"the server counts {read} tokens in a prompt of {len(ids)}: {_MISTAKEN}, or adds tokens")
    return _offers(said, False, _said_logprobs(link, identity, text, logprobs))


def _offers(said: Mapping[str, Any], token_prompts: bool, logprobs: Logprobs) -> Offers:
    has_ids = said["choices"][0].get("token_ids") is not None
    return Offers(token_prompts, logprobs, has_ids, text_or_none(said.get("system_fingerprint")))


def _around(read: int | None, turn: int) -> int | None:
    """Return how many tokens the server's chat template puts around a turn; raise ModelError if it read too few."""
    if read is not None and read < turn:
        raise ModelError(f"the server counts {read} tokens in a turn of {turn} and its chat template: {_MISTAKEN}")
    return None if read is None else read - turn


def _probe_text() -> str:
    return f"{secrets.token_hex(4)}: {_PROBE_TEXT}"


def _with_anchor(tokenizer: TextTokenizer, text: str) -> list[int]:
    """Return the ids of a prompt of this text, as sent."""
    anchor = tokenizer.bos or tokenizer.eos
    return [*([anchor[1]] if anchor else []), *tokenizer.encode(text)]


def _said_logprobs(link: Link, identity: Identity, prompt: Sequence[int] | str, asked: bool) -> Logprobs:
    """Return how log-probabilities of given tokens can be had; report it if they are asked for and cannot."""
    if not asked:
        return "none"
    way, why = _logprobs(link, identity, prompt)
    if way == "none":
        link.tell(f"no log-probabilities here ({why})")
    return way


def _logprobs(link: Link, identity: Identity, prompt: Sequence[int] | str) -> tuple[Logprobs, str]:
    """Return how log-probabilities of given tokens can be had, each way tried and checked; or else why they cannot."""
    if identity.vllm and not isinstance(prompt, str) and _forces(link, identity, list(prompt)):
        return "prompt_logprobs", ""
    why = ""
    for most in (0, 1):
        try:
            said = link.post(
                PATHS["completions"],
                _asked(identity.model, {"echo": True, "logprobs": 1, "max_tokens": most}, prompt=prompt),
                optional=True,
            )
        except (Refused, NoAnswer) as error:
            why = why or f"{_why(error)} to echo"
            continue
        logprobs = said["choices"][0].get("logprobs")
        given = logprobs.get("token_logprobs") if isinstance(logprobs, dict) else None
        values = given[1 : len(given) - most] if isinstance(given, list) else []
        if len(values) > 1 and all(_is_logprob(value) for value in values):
            return ("echo+1" if most else "echo"), ""
        why = why or "echo is answered without those of the prompt"
    return "none", why


def _is_logprob(value: Json) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value <= 0


def _forces(link: Link, identity: Identity, ids: list[int]) -> bool:
    """Return whether a forced last token has the log-probability that it has as a part of the prompt.

    It has not if the server reports log-probabilities after masking (--logprobs-mode processed_logprobs).
    """
    inside = _try(link, _asked(identity.model, {"prompt_logprobs": 1}, prompt=ids))
    forced = _try(link, _asked(identity.model, {"logprobs": 1, "allowed_token_ids": ids[-1:]}, prompt=ids[:-1]))
    if inside is None or forced is None:
        return False
    try:
        value = inside["choices"][0]["prompt_logprobs"][-1][str(ids[-1])]["logprob"]
        again = forced["choices"][0]["logprobs"]["token_logprobs"][0]
        return math.isclose(value, again, abs_tol=_NEAR + abs(value) * 0.05)
    except (KeyError, IndexError, TypeError, AttributeError, OverflowError):
        return False


def _asked(model: str, extra: Mapping[str, Json], **prompt: Json) -> dict[str, Json]:
    return {"model": model, "max_tokens": 1, "temperature": 0} | prompt | dict(extra)


def _chat(identity: Identity, extra: Mapping[str, Json], text: str) -> dict[str, Json]:
    return _asked(identity.model, extra, messages=[{"role": "user", "content": text}])


def _try(link: Link, body: Json) -> dict[str, Any] | None:
    """Return the answer, None if the server refuses the request."""
    try:
        return link.post(PATHS["completions"], body, optional=True)
    except (Refused, NoAnswer):
        return None
