"""Ids by words are those of the whole text, whatever is joined; what is kept of words is bounded."""

from __future__ import annotations

import random
from bisect import bisect_right

import pytest
from text_fixtures import KINDS

import anchoreval.tokenizer as tokenizing
from anchoreval.tokenizer import TextTokenizer

FRAGMENTS = (
    "The engineer painted the gate.", " ", "  ", "\n", "\t", " VAR XYZ = 12345\n", "don't", " 'quoted'", " ... ",
    " 17. apple", " naïve café", "日本 語", "(", ") ", " Mill\r\n wheel", "\u00a0", "\u0301x", " \u0301x", "a b", ".",
    "12 34", "</s> x", "x <s>", "", "One of the special magic numbers for lazy-fox is: 5667265.\n",
    "One of the special magic numbers for fat-bee is: 12.\n",
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_ids_by_words_are_those_of_the_text_at_once(
    kind: str, kinds: dict[str, TextTokenizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizing, "LONG", 0)
    monkeypatch.setattr(tokenizing, "MOST_CHARACTERS", 60)  # words are dropped and learned again
    tokenizer, rng = kinds[kind], random.Random(3)
    for _ in range(300):
        parts = rng.choices(FRAGMENTS, k=rng.randint(1, 12))
        text = "".join(parts)
        whole = tokenizer._inner.encode(text, add_special_tokens=False)
        seams = [sum(map(len, parts[: at + 1])) for at in range(len(parts) - 1)]
        segments = [bisect_right(seams, start) for start, _ in whole.offsets]
        ids, sizes = tokenizer.encode_parts(parts)
        assert ids == whole.ids == tokenizer.encode(text) and tokenizer.count(text) == len(ids), parts
        assert [number for number, size in enumerate(sizes) for _ in range(size)] == segments, parts
        assert tokenizer.starts(text, range(len(ids) + 3)) == [start for start, _ in whole.offsets], parts


def test_only_tokenizers_without_a_cut_behind_letters_encode_every_text_at_once(
    kinds: dict[str, TextTokenizer],
) -> None:
    assert [kind for kind in KINDS if kinds[kind]._cut is None] == ["crossing", "unknown"]


def test_a_word_is_tokenised_once(kinds: dict[str, TextTokenizer]) -> None:
    encoded = list[str]()
    known = TextTokenizer(kinds["byte-level"]._inner)

    def encode(text: str) -> object:
        encoded.append(text)
        return known._inner.encode(text, add_special_tokens=False)

    known._whole = encode  # type: ignore[assignment]
    lines = [f"One of the numbers for key-{at % 7} is: {at % 5}.\n" for at in range(50)]
    parts = ["Some lines:\n", *lines, "What is it?"]
    first = known.encode_parts(parts)
    before = len(encoded)
    assert known.encode_parts(parts) == first and encoded[before:] == ["Some"]
