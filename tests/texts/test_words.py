from __future__ import annotations

import random

import pytest

from anchoreval.errors import SourceError
from anchoreval.texts import wordlists as words
from anchoreval.texts.wordlists import AdjectiveNouns, distinct_words, nouns, pairs, word_list


def test_indexing_equals_the_sorted_list_of_all_pairs() -> None:
    adjectives = [
        "high",
        "high-pitched",
        "old",
        "old-fashioned",
        "older",
        "blue",
        "teeny",
        "teeny-tiny",
        "wide",
        "a",
        "high",
    ]
    some_nouns = ["ATM", "apple", "pitched-roof", "fashioned-apple", "zoo", "contact lens", "tiny", "apple"]
    expected = sorted({f"{adjective}-{noun}" for adjective in adjectives for noun in some_nouns})
    lazy = AdjectiveNouns(adjectives, some_nouns)
    assert [lazy[index] for index in range(len(lazy))] == expected
    assert random.Random(3).choices(lazy, k=20) == random.Random(3).choices(expected, k=20)
    with pytest.raises(IndexError):
        lazy[len(lazy)]


def test_the_lists_have_the_sizes_of_the_two_wonderwords_versions() -> None:
    assert (len(nouns("3.0.1")), len(distinct_words("3.0.1")), len(pairs("3.0.1"))) == (6782, 8166, 6_171_620)
    assert (len(nouns("2.2.0")), len(distinct_words("2.2.0")), len(pairs("2.2.0"))) == (6786, 8169, 6_175_260)


def test_every_adjective_block_of_the_real_list_is_in_order() -> None:
    lazy = pairs("3.0.1")
    step = 997
    sample = [lazy[index] for index in range(0, len(lazy), step)]
    assert sample == sorted(sample)
    adjectives = set(word_list("adjectivelist.txt"))
    assert all(any(entry.startswith(f"{adjective}-") for adjective in adjectives) for entry in sample[::50])


def test_another_version_of_the_package_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(words.FINGERPRINT, "nounlist.txt", 6786)
    with pytest.raises(SourceError, match=r"wonderwords==3\.0\.1"):
        word_list("nounlist.txt")
