"""A checkpoint's tokenizer over the `tokenizers` library alone: importing transformers would cost 2.5 CPU
seconds.
"""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from anchoreval.errors import ModelError
from anchoreval.token_cuts import cut_after


class TextTokenizer:
    """Counts, spans and token ids of texts; no special token is ever added unless asked for.

    `cut_after` holds the characters after which a single space is a safe cut (see token_cuts): the counts
    of the parts of a text, cut there, add up exactly. It is empty for a tokenizer about which that cannot
    be proved.
    """

    def __init__(self, inner: tokenizers.Tokenizer, config: dict[str, Any] | None = None, name: str = "") -> None:
        inner.no_truncation()
        inner.no_padding()
        self._inner = inner
        self._config = config or {}
        self.name = name

    @cached_property
    def cut_after(self) -> frozenset[str]:
        """The characters after which a single space is a safe cut."""
        return cut_after(json.loads(self._inner.to_str()))

    def count(self, text: str) -> int:
        """Tokens of `text`, no special tokens added."""
        return len(self._inner.encode_batch_fast([text], add_special_tokens=False)[0])

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Character span (start, end) of every token of `text`, no special tokens added."""
        return list(self._inner.encode(text, add_special_tokens=False).offsets)

    def encode(self, text: str, special_tokens: bool = False) -> list[int]:
        """Token ids of `text`; with `special_tokens`, what the checkpoint itself puts around a text."""
        return list(self._inner.encode(text, add_special_tokens=special_tokens).ids)

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        """The text of `ids`."""
        return str(self._inner.decode(ids, skip_special_tokens=skip_special_tokens))

    @property
    def vocab_size(self) -> int:
        """Entries of the vocabulary, added tokens included."""
        return int(self._inner.get_vocab_size())

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the whole definition (vocabulary, merges, rules), for fingerprints."""
        return hashlib.sha256(self._inner.to_str().encode()).hexdigest()

    @property
    def bos(self) -> tuple[str, int] | None:
        """Text and id of the begin-of-sequence token, None when the checkpoint names none."""
        return self._named("bos_token")

    @property
    def eos(self) -> tuple[str, int] | None:
        """Text and id of the end-of-sequence token, None when the checkpoint names none."""
        return self._named("eos_token")

    @property
    def chat_template(self) -> str | None:
        """The checkpoint's chat template (Jinja text), None when it has none; the default one of several."""
        template = self._config.get("chat_template")
        if isinstance(template, list):
            named = {entry["name"]: entry["template"] for entry in template}
            template = named.get("default") or next(iter(named.values()), None)
        return template

    def _named(self, name: str) -> tuple[str, int] | None:
        entry = self._config.get(name)
        text: str | None = entry["content"] if isinstance(entry, dict) else entry
        number = None if text is None else self._inner.token_to_id(text)
        return None if text is None or number is None else (text, number)


def load_tokenizer(path: str | Path) -> TextTokenizer:
    """The tokenizer of a checkpoint folder, or of a tokenizer.json.

    Raises ModelError when there is no tokenizer.json: a slow (pickled or sentencepiece-only) tokenizer is
    not read.
    """
    place = Path(path).expanduser()
    file = place if place.is_file() else place / "tokenizer.json"
    if not file.is_file():
        raise ModelError(
            f"no tokenizer at {place}: expected {file.name} (save one with "
            "AutoTokenizer.from_pretrained(...).save_pretrained(DIR))"
        )
    try:
        inner = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises a bare Exception
        raise ModelError(f"{file} cannot be read as a tokenizer: {error}") from error
    return TextTokenizer(inner, _config(file.parent), str(path))


def _config(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json, with the separate chat template and special-token map folded in."""
    config: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            config.update(json.loads((folder / name).read_text(encoding="utf-8")))
    if (folder / "chat_template.jinja").is_file():
        config["chat_template"] = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    return config
