"""A checkpoint's tokenizer over the `tokenizers` library alone: importing transformers would cost 2.5 CPU seconds.

Its files are read by transformers' rules (tokenizer/files.py), and its tokens are compared with those of transformers
once per set of files (tokenizer/check.py).

Long texts are tokenised word by word. A word stands between two safe cuts (cuts.py), so its ids are the same wherever
it stands, and it is tokenised once. The prompts of a benchmark repeat their words: of 113,000 words in 128k tokens of
generated prose 948 differ.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from functools import cached_property, lru_cache, partial
from itertools import accumulate, chain
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

import tokenizers

from anchoreval.errors import ModelError
from anchoreval.tokenizer.check import Reading, compared
from anchoreval.tokenizer.cuts import cut_after
from anchoreval.tokenizer.files import FILES, TEMPLATES, complete, config_of, special_tokens, text_of

LONG = 256  # characters from which on a text is encoded by its words
LEAD = "a"  # text in front of words that are tokenised as they stand behind a cut
MOST_CHARACTERS = 1 << 20  # of words whose ids are kept
_CLEANED = (
    *((f" {mark}", mark) for mark in ".?!,"),
    (" ' ", "'"),
    *((f" {end}", end) for end in ("n't", "'m", "'s", "'ve", "'re")),
)
Ids = tuple[int, ...]
Given = ParamSpec("Given")
Value = TypeVar("Value")


def _without_panics(
    method: Callable[Concatenate[TextTokenizer, Given], Value],
) -> Callable[Concatenate[TextTokenizer, Given], Value]:
    """Let a method raise a ModelError that names the tokenizer where the library panics, which is no Exception."""

    @functools.wraps(method)
    def guarded(self: TextTokenizer, /, *args: Given.args, **kwargs: Given.kwargs) -> Value:
        try:
            return method(self, *args, **kwargs)
        except BaseException as error:
            if type(error).__name__ != "PanicException":
                raise
            message = " ".join(str(error).split())[:200]
            raise ModelError(f"the tokenizer of {self.name} cannot read a text: {message}") from error

    return guarded


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
        self._whole = partial(inner.encode, add_special_tokens=False)  # a text at once
        self._config = config or {}
        self.name = name
        self.reading = reading
        self._ids: dict[str, Ids] = {}  # of words that stand behind a cut
        self._starts: dict[str, Ids] = {}  # the characters of a word at which its tokens begin
        self._held = 0  # characters of the words that are kept

    @cached_property
    def cut_after(self) -> frozenset[str]:
        """The characters after which a single space is a safe cut."""
        return cut_after(json.loads(self._inner.to_str()))

    @cached_property
    def _cut(self) -> re.Pattern[str] | None:
        """Matches the spaces at which a long text is cut into words; None if no cut behind a letter is safe."""
        if LEAD not in self.cut_after:
            return None
        return re.compile(f"(?<=[{re.escape(''.join(sorted(self.cut_after)))}]) (?=[!-~])")

    @_without_panics
    def count(self, text: str) -> int:
        """Return the number of tokens of `text`, without special tokens."""
        if len(text) < LONG or self._cut is None:
            return len(self._inner.encode_batch_fast([text], add_special_tokens=False)[0])
        first, *words = self._cut.split(text)
        return len(self._whole(first)) + sum(map(len, self._by_words(words)[0]))

    @_without_panics
    def count_behind(self, texts: Sequence[str]) -> int:
        """Return the number of tokens of texts, each of which is to stand behind a safe cut and begins with its space.

        There must be a safe cut behind a letter (`cut_after`), and none inside the texts.
        """
        return sum(map(len, self._by_words([text[1:] for text in texts])[0]))

    @_without_panics
    def encode_with_spans(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Return the token ids of `text` and the character span (start, end) of each, without special tokens."""
        whole = self._whole(text)
        return whole.ids, whole.offsets

    @_without_panics
    def encode_parts(self, parts: Sequence[str]) -> tuple[list[int], list[int]]:
        """Return the token ids of the joined parts, and the number of tokens that begin in each part."""
        if self._cut is None or sum(map(len, parts)) < LONG:
            ids, spans = self.encode_with_spans("".join(parts))
            seams = [*accumulate(map(len, parts[:-1]))]
            begun = Counter(bisect_right(seams, start) for start, _ in spans)
            return ids, [begun[number] for number in range(len(parts))]

        words, last = list[str](), ""
        ends: list[tuple[int, int]] = []  # of each part: the number of the word, and its character
        for part in parts:
            head, *rest = self._cut.split(part)
            last += head
            if rest:
                words.append(last)
                last = rest.pop()
                words += rest
            ends.append((len(words), len(last)))
        words.append(last)

        opening = self._whole(words[0])  # begins at no cut and is tokenised each time
        encoded, starts = self._by_words(words[1:], {words[number] for number, _ in ends if number})
        encoded = [tuple(opening.ids), *encoded]
        ids = list(chain.from_iterable(encoded))
        sizes, before, passed, total = list[int](), 0, 0, 0
        for number, characters in ends[:-1]:
            total += sum(map(len, encoded[passed:number]))
            passed = number
            begins = starts[words[number]] if number else [start for start, _ in opening.offsets]
            upto = total + bisect_left(begins, characters)
            sizes.append(upto - before)
            before = upto
        return ids, [*sizes, len(ids) - before]

    @_without_panics
    def starts(self, text: str, tokens: Sequence[int]) -> list[int]:
        """Return the characters of `text` at which its tokens of these numbers begin; those past the end have none."""
        if not tokens:
            return []
        if len(text) < LONG or self._cut is None:
            spans = self.spans(text)
            return [spans[token][0] for token in tokens if 0 <= token < len(spans)]
        words = self._cut.split(text)
        opening = self._whole(words[0])
        before = list(accumulate(map(len, [opening.ids, *self._by_words(words[1:])[0]]), initial=0))
        asked = [token for token in tokens if 0 <= token < before[-1]]
        numbers = [bisect_right(before, token) - 1 for token in asked]
        behind = [words[number] for number in sorted(set(numbers)) if number]
        starts = self._by_words(behind, set(behind))[1]
        places = list(accumulate((len(word) + 1 for word in words), initial=0))
        begins = []
        for token, number in zip(asked, numbers, strict=True):
            of_word = starts[words[number]] if number else [start for start, _ in opening.offsets]
            begins.append(places[number] + of_word[token - before[number]])
        return begins

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Return the character span (start, end) of every token of `text`, without special tokens."""
        return self.encode_with_spans(text)[1]

    @_without_panics
    def encode(self, text: str, special_tokens: bool = False) -> list[int]:
        """Return the token ids of `text`; with `special_tokens`, including those that the checkpoint itself adds."""
        if special_tokens or len(text) < LONG or self._cut is None:
            return list(self._inner.encode(text, add_special_tokens=special_tokens).ids)
        first, *words = self._cut.split(text)
        return list(chain(self._whole(first).ids, chain.from_iterable(self._by_words(words)[0])))

    def _by_words(self, words: Sequence[str], seamed: Collection[str] = ()) -> tuple[Sequence[Ids], Mapping[str, Ids]]:
        """Return the ids of words that stand behind cuts, and where in those of them in `seamed` each token begins.

        Words that are not known are tokenised, all in one text, and kept. Threads may share a tokenizer.
        """
        encoded = [*map(self._ids.get, words)]
        known = {word: begun for word in seamed if (begun := self._starts.get(word)) is not None}
        if all(encoded) and len(known) == len(seamed):  # the usual case, at the speed of C
            return cast(list[Ids], encoded), known

        # The last word of a text may end with what no cut follows: it stays the last.
        rows = zip(words, encoded, strict=True)
        missing = dict.fromkeys(word for word, ids in rows if ids is None or (word in seamed and word not in known))
        whole = self._whole(" ".join([LEAD, *missing]))
        ids, begins = whole.ids, [start for start, _ in whole.offsets]
        fresh, starts, place, first = dict[str, Ids](), dict[str, Ids](), len(LEAD) + 1, self._lead
        for word in missing:
            end = place + len(word)
            last = bisect_left(begins, end, first)
            fresh[word] = tuple(ids[first:last])
            if "\n" in word or word in seamed:  # segments of a prompt mostly end with a line
                starts[word] = tuple(start - place for start in begins[first:last])
            place, first = end + 1, last
        self._held += place
        if self._held > MOST_CHARACTERS:
            self._ids, self._starts, self._held = {}, {}, place
        self._ids.update(fresh)
        self._starts.update(starts)
        return [fresh[word] if ids is None else ids for word, ids in zip(words, encoded, strict=True)], starts | known

    @cached_property
    def _lead(self) -> int:
        return len(self._whole(LEAD).ids)

    @_without_panics
    def encode_batch(self, texts: list[str], offsets: bool = False) -> list[tuple[list[int], list[tuple[int, int]]]]:
        """Token ids of many texts, on all cores, and the character span of each token where `offsets` are wanted.

        The names of special tokens are text like any other here.
        """
        encode = self._plain.encode_batch if offsets else self._plain.encode_batch_fast
        return [(each.ids, each.offsets if offsets else []) for each in encode(texts, add_special_tokens=False)]

    @cached_property
    def _plain(self) -> tokenizers.Tokenizer:
        plain = tokenizers.Tokenizer.from_str(self._inner.to_str())
        plain.encode_special_tokens = True
        return plain

    @_without_panics
    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        """Return the text of `ids`, without blanks before punctuation if the configuration has them cleaned up."""
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
