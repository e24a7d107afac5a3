"""A checkpoint's tokenizer over the `tokenizers` library alone: importing transformers would cost 2.5 CPU seconds.

Its files are read by transformers' rules (tokenizer/files.py), and its tokens are compared with those of transformers
once per set of files (tokenizer/check.py).
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from functools import cached_property, lru_cache, partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import tokenizers

from anchoreval.errors import ModelError
from anchoreval.tokenizer.check import Reading, compared
from anchoreval.tokenizer.cuts import cut_after
from anchoreval.tokenizer.files import FILES, TEMPLATES, complete, config_of, special_tokens, text_of
from anchoreval.tokenizer.words import LEAD, Words

LONG = 256  # characters from which on a text is encoded by its words


class TextTokenizer:
    """Counts, spans and token ids of texts. No special token is added unless asked for.

    `cut_after` holds the characters after which a single space is a safe cut (see cuts.py): the counts of the parts of
    a text, cut there, add up exactly. It is empty for a tokenizer for which that cannot be proved.
    """

    def __init__(
        self,
        inner: tokenizers.Tokenizer,
        config: dict[str, Any] | None = None,
        name: str = "",
        reading: Reading | None = None,
    ) -> None:
        inner.no_truncation()
        inner.no_padding()
        self._inner = inner
        self._config = config or {}
        self.name = name
        self.reading = reading
        self._panics = _Panics(name)

    @cached_property
    def cut_after(self) -> frozenset[str]:
        """The characters after which a single space is a safe cut."""
        return cut_after(json.loads(self._inner.to_str()))

    @cached_property
    def _words(self) -> Words | None:
        """Encodes long texts by their words; None if no cut is known to be safe."""
        whole = partial(self._inner.encode, add_special_tokens=False)
        return Words(whole, self.cut_after) if LEAD in self.cut_after else None

    def _by_words(self, characters: int) -> Words | None:
        return self._words if characters >= LONG else None

    def count(self, text: str) -> int:
        """Return the number of tokens of `text`, without special tokens."""
        with self._panics:
            if words := self._by_words(len(text)):
                return words.count(text)
            return len(self._inner.encode_batch_fast([text], add_special_tokens=False)[0])

    def count_behind(self, texts: Sequence[str]) -> int:
        """Return the number of tokens of texts, each of which is to stand behind a safe cut and begins with its space.

        There must be a safe cut behind a letter (`cut_after`).
        """
        assert self._words is not None
        with self._panics:
            return self._words.count_behind(texts)

    def encode_with_spans(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Return the token ids of `text` and the character span (start, end) of each, without special tokens."""
        with self._panics:
            found = self._inner.encode(text, add_special_tokens=False)
            return found.ids, found.offsets

    def encode_parts(self, parts: Sequence[str]) -> tuple[list[int], list[int]]:
        """Return the token ids of the joined parts, and the number of tokens that begin in each part."""
        if words := self._by_words(sum(map(len, parts))):
            with self._panics:
                return words.encode_parts(parts)
        ids, spans = self.encode_with_spans("".join(parts))
        seams = [*accumulate(map(len, parts[:-1]))]
        begun = Counter(bisect_right(seams, start) for start, _ in spans)
        return ids, [begun[number] for number in range(len(parts))]

    def starts(self, text: str, tokens: Sequence[int]) -> list[int]:
        """Return the characters of `text` at which its tokens of these numbers begin; those past the end have none."""
        if not tokens:
            return []
        if words := self._by_words(len(text)):
            with self._panics:
                return words.starts(text, tokens)
        spans = self.spans(text)
        return [spans[token][0] for token in tokens if 0 <= token < len(spans)]

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Return the character span (start, end) of every token of `text`, without special tokens."""
        return self.encode_with_spans(text)[1]

    def encode(self, text: str, special_tokens: bool = False) -> list[int]:
        """Return the token ids of `text`; with `special_tokens`, including those that the checkpoint itself adds."""
        with self._panics:
            if not special_tokens and (words := self._by_words(len(text))):
                return words.encode(text)
            return list(self._inner.encode(text, add_special_tokens=special_tokens).ids)

    def encode_batch(self, texts: list[str], offsets: bool = False) -> list[tuple[list[int], list[tuple[int, int]]]]:
        """Token ids of many texts, on all cores, and the character span of each token where `offsets` are wanted.

        The names of special tokens are text like any other here.
        """
        encode = self._plain.encode_batch if offsets else self._plain.encode_batch_fast
        with self._panics:
            found = encode(texts, add_special_tokens=False)
            return [(each.ids, each.offsets if offsets else []) for each in found]

    @cached_property
    def _plain(self) -> tokenizers.Tokenizer:
        plain = tokenizers.Tokenizer.from_str(self._inner.to_str())
        plain.encode_special_tokens = True
        return plain

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        """Return the text of `ids`, without blanks before punctuation if the configuration has them cleaned up."""
        with self._panics:
            text = str(self._inner.decode(ids, skip_special_tokens=skip_special_tokens))
        if self._cleans:
            for old, new in _CLEANED:
                text = text.replace(old, new)
        return text

    @cached_property
    def _cleans(self) -> bool:
        """Whether transformers cleans up blanks: if the configuration says so, but not on BPE: its blanks are text."""
        forced = self._config.get("clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output")
        byte_pairs = isinstance(self._inner.model, tokenizers.models.BPE)
        return bool(self._config.get("clean_up_tokenization_spaces")) and (not byte_pairs or bool(forced))

    @property
    def vocab_size(self) -> int:
        """The number of entries of the vocabulary, including added tokens."""
        return int(self._inner.get_vocab_size())

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the whole definition (vocabulary, merges, rules), for fingerprints."""
        split = "special tokens are split" if self._inner.encode_special_tokens else ""  # not in the definition
        return hashlib.sha256((self._inner.to_str() + split).encode()).hexdigest()

    @cached_property
    def bos(self) -> tuple[str, int] | None:
        """Text and id of the begin-of-sequence token; None if the checkpoint names none."""
        return self._named("bos_token")

    @cached_property
    def eos(self) -> tuple[str, int] | None:
        """Text and id of the end-of-sequence token; None if the checkpoint names none."""
        return self._named("eos_token")

    @cached_property
    def special_tokens(self) -> Mapping[str, str]:
        """The text of every named special token, by name (bos_token, ...). Chat templates receive these."""
        return special_tokens(self._config)

    @cached_property
    def front(self) -> list[int]:
        """The token ids that the tokenizer itself puts in front of a text."""
        alone, whole = self.encode("x"), self.encode("x", special_tokens=True)
        return next((whole[:at] for at in range(len(whole)) if whole[at : at + len(alone)] == alone), [])

    @cached_property
    def chat_template(self) -> str | None:
        """The checkpoint's chat template (Jinja text), the default one of several; None if the checkpoint has none.

        Raise ModelError if there are several and none is the default, as transformers does.
        """
        template = self._config.get("chat_template")
        if isinstance(template, list):
            try:
                template = {entry["name"]: entry["template"] for entry in template}
            except (TypeError, KeyError):
                raise ModelError(
                    f"{self.name}: chat_template: several are a list of objects of name and template"
                ) from None
        if not isinstance(template, dict):
            return template
        if "default" not in template:
            names = ", ".join(sorted(template))
            raise ModelError(f"{self.name} has several chat templates and none is called default: {names}")
        return str(template["default"])

    def _named(self, name: str) -> tuple[str, int] | None:
        entry = self._config.get(name)
        text = None if entry is None else text_of(entry)
        number = None if text is None else self._inner.token_to_id(text)
        return None if text is None or number is None else (text, number)


_CLEANED = (
    *((f" {mark}", mark) for mark in ".?!,"),
    (" ' ", "'"),
    *((f" {end}", end) for end in ("n't", "'m", "'s", "'ve", "'re")),
)


class _Panics:
    """Turns a panic of the library, which is not an Exception, into a ModelError that names the tokenizer."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if kind is not None and kind.__name__ == "PanicException":
            message = " ".join(str(error).split())[:200]
            raise ModelError(f"the tokenizer of {self.name} cannot read a text: {message}") from error


def load_tokenizer(path: str | Path) -> TextTokenizer:
    """Return the tokenizer of a checkpoint folder, or of a tokenizer.json.

    Raise ModelError if there is no tokenizer.json (a slow tokenizer, pickled or sentencepiece-only, is not read), or if
    transformers reads other tokens from these files. A tokenizer is shared until one of its files changes.
    """
    place = Path(path).expanduser()
    file = place if place.is_file() else place / "tokenizer.json"
    if not file.is_file():
        raise ModelError(
            f"no tokenizer at {place}: expected {file.name} (save one with "
            "AutoTokenizer.from_pretrained(...).save_pretrained(DIR))"
        )
    read = [file, *(file.parent / name for name in (*FILES, *TEMPLATES, "config.json"))]
    read += sorted((file.parent / TEMPLATES[-1]).glob("*.jinja"))
    stats = [each.stat() for each in read if each.exists()]
    return _loaded(str(path), file, tuple((one.st_ino, one.st_size, one.st_mtime_ns, one.st_ctime_ns) for one in stats))


@lru_cache(maxsize=2)
def _loaded(name: str, file: Path, _: Hashable) -> TextTokenizer:
    try:
        inner = tokenizers.Tokenizer.from_file(str(file))
        inner.decode(inner.encode("x").ids)  # fails if rules name tokens that do not exist
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the library raises a bare Exception, or a panic, which is not an Exception
        raise ModelError(f"{file} cannot be read as a tokenizer: {' '.join(str(error).split())[:300]}") from error
    config = config_of(file.parent)
    complete(inner, config)
    tokenizer = TextTokenizer(inner, config, name)
    if file.name != "tokenizer.json":  # transformers reads no other name
        return tokenizer
    reading = compared(tokenizer, inner, file)
    return TextTokenizer(inner, dict(reading.special) | config, name, reading)
