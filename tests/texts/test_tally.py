from __future__ import annotations

import random

import pytest

from anchoreval.texts.draft import Piece, Tally
from anchoreval.tokenizer import TextTokenizer
from anchoreval.tokenizer.cuts import PRINTABLE

KINDS = ("byte-level", "llama-2", "metaspace", "wordpiece", "crossing", "unknown")
FRAGMENTS = (
    "The engineer painted the gate.", " ", "  ", "\n", "\n\n", "\t", "A", " VAR XYZ = 12345", "don't",
    " 'quoted'",
    "...", " ...", " 17. apple", "é", " naïve café", "日本 語", "(", ") ", "- a", " Mill\r\n wheel", "\u00a0",
    "One of the special magic numbers for lazy-fox is: 5667265.", " \u0301x", "a b", ".", " 1", "12 34",
    "</s> x",
    "x <s>",
)  # fmt: skip


def compositions(seed: int, count: int) -> list[list[str]]:
    rng = random.Random(seed)
    return [rng.choices(FRAGMENTS, k=rng.randint(1, 12)) for _ in range(count)]


@pytest.mark.parametrize("kind", KINDS)
def test_counts_of_pieces_are_the_counts_of_the_joined_text(kind: str, kinds: dict[str, TextTokenizer]) -> None:
    tokenizer = kinds[kind]
    tally = Tally(tokenizer)
    shared = {text: Piece(text) for text in FRAGMENTS}  # counted once, used in many places
    for texts in compositions(1, 400):
        assert tally.count([shared[text] for text in texts]) == tokenizer.count("".join(texts)), texts
        halves = [Piece("".join(texts[:2])), Piece("".join(texts[2:]))]
        assert tally.count(halves) == tokenizer.count("".join(texts)), texts


@pytest.mark.parametrize("kind", KINDS)
def test_a_repeated_piece_counts_as_its_text(kind: str, kinds: dict[str, TextTokenizer]) -> None:
    tokenizer = kinds[kind]
    tally = Tally(tokenizer)
    for texts in compositions(2, 60):
        text = "".join(texts)
        repeated = tally.repeat(Piece(text), 3)
        assert repeated.text == text * 3
        assert tally.count([Piece("Start: x"), repeated, Piece(" end")]) == tokenizer.count(f"Start: x{text * 3} end")


def test_the_kinds_differ_in_where_they_may_be_cut(kinds: dict[str, TextTokenizer]) -> None:
    assert all(
        kinds[kind].cut_after >= PRINTABLE - set(">]") for kind in ("byte-level", "metaspace", "wordpiece", "llama-2")
    )
    assert kinds["crossing"].cut_after < PRINTABLE - set(">"), "its vocabulary joins words, so some cuts are unsafe"
    assert not kinds["unknown"].cut_after


def test_a_counted_text_is_not_tokenised_again(kinds: dict[str, TextTokenizer]) -> None:
    class Counting:
        cut_after = kinds["byte-level"].cut_after
        characters = 0

        def count(self, text: str) -> int:
            self.characters += len(text)
            return kinds["byte-level"].count(text)

        def spans(self, text: str) -> list[tuple[int, int]]:
            raise NotImplementedError

    tokenizer = Counting()
    tally, long = Tally(tokenizer), Piece("A sentence about the mill. " * 500)
    tally.count([long])
    before = tokenizer.characters
    for index in range(100):
        tally.count([Piece(f"number {index} "), long, Piece(f" {index} more")])
    assert before > len(long.text) / 2
    assert tokenizer.characters - before < 100 * 200
