"""Read the files of a tokenizer beside tokenizer.json, by the rules of transformers 5.

`PreTrainedTokenizerBase._from_pretrained` and `TokenizersBackend.__init__` (transformers 5.16 to 5.23) decide which
file wins, which tokens are added to those of tokenizer.json, and in which order, so that they get the same ids.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken

from anchoreval.errors import ModelError

CONFIG = "tokenizer_config.json"
#: The files that decide the tokens of a text, besides tokenizer.json and the class that config.json names.
FILES = (CONFIG, "special_tokens_map.json", "added_tokens.json")
#: A file and a folder of chat templates.
TEMPLATES = ("chat_template.jinja", "additional_chat_templates")
_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_EXTRA = "extra_special_tokens"


def config_of(folder: Path) -> dict[str, Any]:
    """Return tokenizer_config.json with special_tokens_map.json, added_tokens.json and the chat template folded in."""
    config = _json(folder / CONFIG)
    if "additional_special_tokens" in config and not config.get(_EXTRA):
        config[_EXTRA] = config.pop("additional_special_tokens")
    if "added_tokens_decoder" not in config:  # otherwise transformers reads neither of the two older files
        entries = {
            name: value | {"special": True} if isinstance(value, dict) and name != _EXTRA else value
            for name, value in _json(folder / "special_tokens_map.json").items()
        }
        if isinstance(entries.get(_EXTRA), list):
            extra = _listed(config)
            entries[_EXTRA] = [*extra, *(token for token in entries[_EXTRA] if token not in extra)]
        config |= entries
        special = {text_of(config[name]) for name in _NAMES if config.get(name)}
        special |= {text_of(token) for token in _listed(config)}
        older = _json(folder / "added_tokens.json")
        config["added_tokens_decoder"] = {
            str(number): {"content": text, "normalized": text not in special, "special": text in special}
            for text, number in older.items()
        }
    if "additional_special_tokens" in config and _EXTRA not in config:  # from the older map
        config[_EXTRA] = config.pop("additional_special_tokens")
    templates: dict[str, str] = {}
    for path in (folder / TEMPLATES[0], *sorted((folder / TEMPLATES[1]).glob("*.jinja"))):
        if path.is_file():
            try:
                name = "default" if path.parent == folder else path.stem
                templates[name] = path.read_text(encoding="utf-8")
            except (OSError, ValueError) as error:
                raise ModelError(f"{path} cannot be read: {error}") from error
    if templates:  # one alone is text, several are a map by name
        config["chat_template"] = templates["default"] if list(templates) == ["default"] else templates
    return config


def special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the text of every named special token, by name (bos_token, ...). Chat templates receive these."""
    return {name: text_of(value) for name, value in _named(config)}


def complete(inner: tokenizers.Tokenizer, config: Mapping[str, Any]) -> None:
    """Add to a tokenizer the tokens that only its configuration has, in transformers' order and with their flags."""
    rows = config.get("added_tokens_decoder") or {}
    try:
        given = {int(number): _token(row) for number, row in rows.items()}
    except (TypeError, ValueError, AttributeError) as error:
        raise ModelError(f"{CONFIG}: added_tokens_decoder: {error}") from None
    by_text = {token.content: token for token in given.values()}
    known = inner.get_added_tokens_decoder().values()
    same = {repr(token) for token in known}
    more = [token for _, token in sorted(given.items()) if repr(token) not in same]
    named = [value for _, value in _named(config)]
    texts = {token.content for token in [*known, *more]}
    for value in [*(by_text.get(text_of(value), value) for value in named), *_listed(config)]:
        if text_of(value) not in texts:
            more.append(_token(value))
            texts.add(text_of(value))
    names = {text_of(value) for value in named}
    for token in more:
        token.special = token.special or token.content in names
    if more:
        inner.add_tokens(more)
    if config.get("split_special_tokens"):
        inner.encode_special_tokens = True


def text_of(token: Any) -> str:
    """Return the text of a token that is given as text or as an object with flags."""
    if isinstance(token, AddedToken):
        return str(token.content)
    text = token.get("content") if isinstance(token, dict) else token
    if not isinstance(text, str) or any("\ud800" <= char <= "\udfff" for char in text):
        entry = repr(token)[:80]
        raise ModelError(f"{CONFIG}: a special token stands as text or as an object with its content, not as {entry}")
    return text


def _token(entry: Any) -> AddedToken:
    """Return the token of an entry; an entry that is only text gives a special token."""
    if isinstance(entry, AddedToken):
        return entry
    if isinstance(entry, str):
        return AddedToken(entry, special=True)
    try:
        return AddedToken(**{name: value for name, value in entry.items() if name not in ("__type", "id")})
    except (TypeError, ValueError, AttributeError) as error:
        raise ModelError(f"{CONFIG}: the token {repr(entry)[:80]}: {error}") from None


def _named(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield every named special token: the seven common ones, then those of this model (image_token, ...)."""
    for name in _NAMES:
        if config.get(name) is not None:
            yield name, config[name]
    for name, value in config.items():
        if name.endswith("_token") and name not in _NAMES and isinstance(value, str):
            yield name, value
    if isinstance(config.get(_EXTRA), dict):
        yield from config[_EXTRA].items()


def _listed(config: Mapping[str, Any]) -> list[Any]:
    extra = config.get(_EXTRA)
    return list(extra) if isinstance(extra, list) else []


def _json(file: Path) -> dict[str, Any]:
    """Return the object in a file, an empty one if the file does not exist; raise ModelError for anything else."""
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{file} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{file} holds no JSON object")
    return content
