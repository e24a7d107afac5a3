from __future__ import annotations

import random
import re
from itertools import islice

import pytest

from anchoreval.texts.draft import Tally
from anchoreval.texts.passage import Essay, Prose, Sentences
from anchoreval.texts.prose import sentences
from anchoreval.texts.sources import Sources
from anchoreval.tokenizer import TextTokenizer


def split(text: str) -> list[tuple[int, int]]:
    """Sentences end at a full stop, so that the tests need no sentence model."""
    return [match.span() for match in re.finditer(r"\S[^.]*(\.|$)", text)]


def joined(found: Sentences, start: int, end: int) -> str:
    return "".join(piece.text for piece in found.chunk(start, end))


def test_prefixes_have_nltks_own_sentences(golden_sources: Sources, golden_tokenizer: TextTokenizer) -> None:
    text, own = golden_sources.essay(), golden_sources.sentence_splitter()
    essay = Essay(text, own, Tally(golden_tokenizer))
    words = re.sub(r"\s+", " ", text).split(" ")
    essay.upto(6000)
    rng = random.Random(5)
    for units in [1, 2, 17, 5999, 6000, *(rng.randint(3, 6000) for _ in range(120))]:
        prefix = " ".join(words[:units]).strip()
        found = essay.upto(units)
        expected = [prefix[start:end] for start, end in own(prefix)]
        assert [joined(found, index, index + 1) for index in range(len(found))] == expected
        a, b = sorted(rng.choices(range(len(expected) + 1), k=2))
        assert joined(found, a, b) == " ".join(expected[a:b])


@pytest.mark.parametrize("kind", ["byte-level", "llama-2", "crossing"])
def test_chunks_count_as_their_text(kind: str, kinds: dict[str, TextTokenizer]) -> None:
    tally = Tally(kinds[kind])
    essay = Essay(" ".join(islice(sentences(1), 300)), split, tally)
    prose, rng = Prose(sentences(2), tally), random.Random(4)
    for passage, units in ((essay, 1500), (essay, 900), (prose, 250), (prose, 90)):
        found = passage.upto(units)
        for _ in range(30):
            a, b = sorted(rng.choices(range(len(found) + 1), k=2))
            pieces = found.chunk(a, b)
            assert tally.count(pieces) == kinds[kind].count("".join(piece.text for piece in pieces))


def test_a_text_that_is_too_short_is_repeated(tokenizer: TextTokenizer) -> None:
    essay = Essay(" One two.  Three\nfour. ", split, Tally(tokenizer))
    found = essay.upto(15)
    assert joined(found, 0, len(found)) == "One two. Three four. One two. Three four. One two."


def test_a_longer_generated_text_continues_the_shorter(tokenizer: TextTokenizer) -> None:
    prose = Prose(sentences(3), Tally(tokenizer))
    short = joined(prose.upto(20), 0, 20)
    assert joined(prose.upto(500), 0, 500).startswith(short + " ")
    assert joined(prose.upto(20), 0, 20) == short


def test_a_range_early_in_a_text_is_counted_without_reading_the_text_behind_it(
    tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    tally = Tally(tokenizer)
    text = Prose(sentences(3), tally).upto(2000)
    total = tally.count(text.chunk(0, 1900))
    read: list[int] = []
    whole = tokenizer.count
    monkeypatch.setattr(tokenizer, "count", lambda part: read.append(len(part)) or whole(part))
    assert all(tally.count(text.chunk(start, start + 50)) < total for start in range(100, 1800, 100))
    assert max(read) < 1000, "characters of one call"
