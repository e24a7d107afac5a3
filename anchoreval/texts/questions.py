"""Questions with the documents that answer them, from the files of SQuAD and HotpotQA."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from anchoreval.schema import Json


@dataclass(frozen=True, slots=True)
class Question:
    """A question, its acceptable answers, its documents (`gold`) and other documents of the same article (`related`).

    `supporting` are the gold documents that the answer needs, if the source names them.
    """

    text: str
    answers: tuple[str, ...]
    gold: tuple[int, ...]
    related: tuple[int, ...] = ()
    supporting: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Questions:
    """Questions in file order and every document once, sorted."""

    documents: Sequence[str]
    questions: Sequence[Question]


def of_squad(value: Json) -> Questions:
    """Return SQuAD's answerable questions, with the paragraphs of all articles as documents.

    Raise ValueError if there is no question.
    """
    articles = value["data"]
    documents = sorted({_text(paragraph["context"]) for article in articles for paragraph in article["paragraphs"]})
    place = {text: index for index, text in enumerate(documents)}
    questions = []
    for article in articles:
        of_article = [place[paragraph["context"]] for paragraph in article["paragraphs"]]
        for paragraph, gold in zip(article["paragraphs"], of_article, strict=True):
            related = tuple(index for index in of_article if index != gold)
            for entry in paragraph["qas"]:
                if not entry["is_impossible"]:
                    answers = tuple(_text(each["text"]) for each in entry["answers"])
                    questions.append(Question(_text(entry["question"]), answers, (gold,), related))
    return _some(Questions(documents, questions))


def of_hotpot(value: Json) -> Questions:
    """Return HotpotQA's questions with their paragraphs, ten each in the distractor setting.

    Raise ValueError if there is no question.
    """
    texts = [[f"{title}\n{''.join(lines)}" for title, lines in entry["context"]] for entry in value]
    documents = sorted({text for paragraphs in texts for text in paragraphs})
    place = {text: index for index, text in enumerate(documents)}
    questions = []
    for entry, paragraphs in zip(value, texts, strict=True):
        gold = tuple(place[text] for text in paragraphs)
        named = {title for title, _ in entry.get("supporting_facts", ())}
        rows = zip(entry["context"], gold, strict=True)
        supporting = tuple(index for (title, _), index in rows if title in named)
        answers = (_text(entry["answer"]),)
        questions.append(Question(_text(entry["question"]), answers, gold, supporting=supporting))
    return _some(Questions(documents, questions))


def _some(found: Questions) -> Questions:
    if not found.questions:
        raise ValueError("no question")
    return found


def _text(value: Json) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{str(value)[:40]!r} is no text")
    return value
