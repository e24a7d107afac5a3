"""Generated English: the same for the same seed, nothing in it that looks like a needle, answers that stand in it."""

from __future__ import annotations

import itertools
import re

import pytest

from anchoreval.texts import prose


def some(seed: int, count: int) -> list[str]:
    return list(itertools.islice(prose.sentences(seed), count))


def test_the_same_seed_gives_the_same_text_and_another_seed_another() -> None:
    assert some(1, 200) == some(1, 200) != some(2, 200)


def test_a_longer_text_continues_the_shorter_one() -> None:
    assert some(3, 500)[:100] == some(3, 100)


def test_nothing_looks_like_a_needle() -> None:
    text = " ".join(some(42, 20_000))
    assert not re.search(r"\d|[a-z]-[a-z]|magic|special|VAR ", text)


def test_sentences_vary() -> None:
    sentences = some(42, 5_000)
    assert len(set(sentences)) > 0.98 * len(sentences)
    assert len(set(" ".join(sentences).lower().split())) > 500


def test_every_sentence_starts_with_a_capital_ends_with_a_mark_and_has_the_right_article() -> None:
    for sentence in some(7, 5_000):
        assert sentence[0].isupper() and sentence[-1] in ".!" and "  " not in sentence
        assert not re.search(r"\b[Aa] [aeiou]", sentence), sentence
        assert not re.search(r"\b[Aa]n [^aeiou]", sentence), sentence


def test_paragraphs_are_the_sentences_in_groups() -> None:
    groups = list(itertools.islice(prose.paragraphs(5), 50))
    assert [sentence for group in groups for sentence in group] == some(5, sum(map(len, groups)))
    assert all(4 <= len(group) <= 9 for group in groups)


@pytest.mark.parametrize("hops", [1, 2])
def test_an_answer_stands_in_its_gold_documents_and_the_question_names_one(hops: int) -> None:
    quiz = prose.quiz(42, hops)
    assert len(quiz.documents) == len(quiz.titles) == 400 and len(quiz.questions) == 200
    for question in quiz.questions:
        gold = [quiz.documents[index] for index in question.gold]
        assert len(gold) == hops
        assert all(answer in gold[-1] for answer in question.answers)
        assert any(title in question.text for title in quiz.titles)


def test_in_a_two_hop_question_the_first_document_does_not_give_the_answer_away() -> None:
    quiz = prose.quiz(42, 2)
    for question in quiz.questions:
        assert question.answers[0] not in quiz.documents[question.gold[0]]


def test_titles_are_unique() -> None:
    titles = prose.quiz(42, 1, size=1000).titles
    assert len(set(titles)) == len(titles)
