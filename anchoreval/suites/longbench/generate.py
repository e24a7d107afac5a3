"""LongBench v1 and LongBench-E: prompts as LongBench/pred.py of THUDM/LongBench at 2e00731 makes them.

A record is filled into its prompt. A prompt of more than `length` tokens, special tokens counted, loses its middle. The
chat template goes around what is left, except for six data sets. So `length` is upstream's max_length: the tokens of
the prompt without the template and without the answer.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from string import Formatter
from typing import Literal

from anchoreval.errors import LengthError
from anchoreval.schema import Json, Role, Sample, Segment, Tokenizer
from anchoreval.suites.longbench.prompts import prompts
from anchoreval.suites.longbench.records import LongRecord, records
from anchoreval.suites.recipe import BASE, Recipe, options

DataSet = Literal[
    "narrativeqa", "qasper", "multifieldqa_en", "multifieldqa_zh", "hotpotqa", "2wikimqa", "musique", "dureader",
    "gov_report", "qmsum", "multi_news", "vcsum", "trec", "triviaqa", "samsum", "lsht", "passage_count",
    "passage_retrieval_en", "passage_retrieval_zh", "lcc", "repobench-p",
]  # fmt: skip
RAW = frozenset({"trec", "triviaqa", "samsum", "lsht", "lcc", "repobench-p"})  # no chat template
#: The word, at the start of a line and before a number, with which each document of a context begins.
MARKS = {
    "hotpotqa": "Passage", "2wikimqa": "Passage", "musique": "Passage", "multi_news": "Passage", "dureader": "文章",
    "passage_count": "Paragraph", "passage_retrieval_en": "Paragraph", "passage_retrieval_zh": "段落",
}  # fmt: skip
ENDS = {"samsum": "\n"}  # a line break ends the answer, as EOS does, unless it would be the first token
BUCKETS = ((4000, "0-4k"), (8000, "4-8k"))  # of LongBench-E, in words


@dataclass(frozen=True, slots=True)
class LongBenchTask:
    """The `args` of a task card: which data set, of LongBench or of LongBench-E."""

    data: DataSet
    edition: Literal["v1", "e"] = "v1"


def bucket(words: int) -> str:
    """Return LongBench-E's bucket of a record: 0-4k, 4-8k, 8k+."""
    return next((name for limit, name in BUCKETS if words < limit), "8k+")


def generate(recipe: Recipe) -> Iterator[Sample]:
    """Yield samples of the first records of a data set, in the order of its file."""
    task = options(recipe, LongBenchTask)
    if recipe.length < 2:
        raise LengthError("nothing is left of a prompt", 2)
    file = f"{task.data}_e" if task.edition == "e" else task.data
    for index, record in enumerate(records(recipe.sources, file, recipe.count)):
        yield _sample(recipe, task, index, record)


def _sample(recipe: Recipe, task: LongBenchTask, index: int, record: LongRecord) -> Sample:
    context = record.context if recipe.sources.context else ""
    whole = pieces(prompts()[task.data], record.input, documents(context, MARKS.get(task.data, "")))
    kept, tokens = cut(whole, recipe.length, recipe.tokenizer)
    wrap = BASE if task.data in RAW else recipe.wrap
    segments = [Segment("preamble", wrap.opening), *kept, Segment("answer_prefix", wrap.closing)]
    facts: dict[str, Json] = {
        "id": record.id,
        "language": record.language,
        "words": record.words,
        "source": hashlib.sha256(record.context.encode()).hexdigest()[:16],  # questions on one text share it
        "whole_tokens": tokens,
        "cut": tokens > recipe.length,
        "documents": sum(segment.role == "document" for segment in kept),
    }
    if task.edition == "e":
        facts["bucket"] = bucket(record.words)
    if record.classes:
        facts["all_classes"] = list(record.classes)
    if not recipe.sources.context:
        facts["context"] = "left out"
    return replace(recipe.sample(index, joined(segments), record.answers, facts), end=ENDS.get(task.data, ""))


def documents(context: str, mark: str) -> list[str]:
    """Cut the context before every numbered `mark` at the start of a line.

    Text before the first mark belongs to the first document. Without a `mark` the context is one document.
    """
    starts = [match.start() for match in re.finditer(rf"^{mark} ?\d+", context, re.MULTILINE)] if mark else []
    cuts = [0, *starts[1:], len(context)]
    return [context[start:end] for start, end in itertools.pairwise(cuts) if start < end]


def pieces(prompt: str, question: str, context: Sequence[str]) -> list[Segment]:
    """Return the filled prompt: preamble, documents of the context, query, and the last line as the answer prefix."""
    segments: list[Segment] = []
    role: Role = "preamble"
    for literal, name, _, _ in Formatter().parse(prompt):
        segments.append(Segment(role, literal))
        if name == "context":
            segments += [Segment("document", text) for text in context]
            role = "query"
        elif name == "input":
            segments.append(Segment(role, question))
    if not prompt.endswith("}"):
        last = segments.pop().text
        cue = re.search(r"[^\n]*\n*\Z", last)
        at = cue.start() if cue else len(last)
        segments += [Segment("query", last[:at]), Segment("answer_prefix", last[at:])]
    return list(joined(segments))


def cut(whole: Sequence[Segment], length: int, tokenizer: Tokenizer) -> tuple[list[Segment], int]:
    """Cut the middle out of a prompt of more than `length` tokens; return its segments and the tokens it had before.

    As upstream: the first and the last int(length / 2) tokens, special tokens among them, are decoded separately and
    joined. A character that is cut through becomes U+FFFD; an odd length loses a token.
    """
    text = "".join(segment.text for segment in whole)
    ids = tokenizer.encode(text, special_tokens=True)
    if len(ids) <= length:
        return list(whole), len(ids)
    half = int(length / 2)
    return from_ends(whole, tokenizer.decode(ids[:half]), tokenizer.decode(ids[-half:])), len(ids)


def from_ends(whole: Sequence[Segment], head: str, tail: str) -> list[Segment]:
    """Return `head` and `tail` as segments.

    Each character takes the role of the character of `whole` at the same distance from the same end.
    """
    front = _taken([len(segment.text) for segment in whole], head)
    behind = _taken([len(segment.text) for segment in reversed(whole)], tail[::-1])
    parts = [(index, text) for index, text in front]
    least = parts[-1][0] if parts else 0
    parts += [(max(least, len(whole) - 1 - index), text[::-1]) for index, text in reversed(behind)]
    groups = itertools.groupby(parts, key=lambda part: part[0])
    return [Segment(whole[index].role, "".join(text for _, text in group)) for index, group in groups]


def _taken(sizes: Sequence[int], text: str) -> list[tuple[int, str]]:
    """Cut `text` into pieces of these sizes, each with its index; text beyond the sizes goes to the last piece."""
    ends = list(itertools.accumulate(sizes))[:-1]
    cuts = [0, *(min(end, len(text)) for end in ends), len(text)]
    return [(index, text[a:b]) for index, (a, b) in enumerate(itertools.pairwise(cuts)) if a < b]


def joined(segments: Sequence[Segment]) -> tuple[Segment, ...]:
    """Drop empty segments and join neighbours of one role, unless they are documents."""
    merged: list[Segment] = []
    for segment in segments:
        if not segment.text:
            continue
        if merged and merged[-1].role == segment.role != "document":
            merged[-1] = Segment(segment.role, merged[-1].text + segment.text)
        else:
            merged.append(segment)
    return tuple(merged)
