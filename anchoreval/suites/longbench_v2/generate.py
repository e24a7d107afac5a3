"""LongBench v2: prompts as pred.py of THUDM/LongBench at 2e00731 makes them, and a variant that scores four letters.

A record is filled into its prompt. A prompt of more than `length` tokens, special tokens counted, loses its middle. The
chat template goes around what is left. So `length` is upstream's max_len. With `cot` a second prompt follows: it asks
for the letter and holds the reasoning in place of the document.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from anchoreval.errors import CardError
from anchoreval.schema import Choice, Json, Sample, Segment, Tokenizer
from anchoreval.suites.longbench.generate import from_ends, joined
from anchoreval.suites.longbench_v2.prompts import MARKER, filled, prompts
from anchoreval.suites.longbench_v2.records import LETTERS, Question, questions
from anchoreval.suites.recipe import Recipe, options

REASONING_TOKENS = 1024
_GAP = "$COT$"


@dataclass(frozen=True, slots=True)
class LongBenchV2Task:
    """The `args` of a task card: which of upstream's prompts."""

    prompting: Literal["zero_shot", "cot", "no_context"] = "zero_shot"


@dataclass(frozen=True, slots=True)
class LetterTask:
    """The `args` of a task card of the variant that scores letters: none."""


def generate(recipe: Recipe) -> Iterator[Sample]:
    """Yield samples of the first records of the file that ask for the letter in upstream's words."""
    prompting: str = options(recipe, LongBenchV2Task).prompting
    if not recipe.sources.context:
        if prompting == "cot":
            raise CardError(f"{recipe.task}: --prompting cot needs the context: leave out --no-context")
        prompting = "no_context"
    for index, record in enumerate(questions(recipe.sources, recipe.count)):
        sample = _sample(recipe, prompting, index, record)
        if prompting == "cot":
            around = "".join(
                segment.text for segment in filled(prompts()["cot_answer"], _texts(record) | {"COT": _GAP})
            )
            before, _, behind = around.rpartition(_GAP)
            sample = replace(sample, max_new_tokens=REASONING_TOKENS, then=(before, behind))
        yield sample


def generate_letters(recipe: Recipe) -> Iterator[Sample]:
    """Yield samples of the first records of the file with the four letters as choices behind "Answer:"."""
    options(recipe, LetterTask)
    for index, record in enumerate(questions(recipe.sources, recipe.count)):
        sample = _sample(recipe, "choices", index, record)
        gold = {"gold": LETTERS.index(record.answer)}
        choices = tuple(Choice(f" {letter}") for letter in LETTERS)
        yield replace(sample, references=(record.answer,), choices=choices, facts={**sample.facts, **gold})


def follow_up(recipe: Recipe, sample: Sample, answer: str) -> Sample:
    """Return the sample with the second prompt of `cot`, which holds the stripped reasoning in place of the document.

    The second prompt is cut as the first one is. Upstream asks no second prompt, and counts no sample, if the reasoning
    is empty.
    """
    before, behind = sample.then
    kept, _ = cut([Segment("query", before + answer.strip() + behind)], recipe.length, recipe.tokenizer)
    segments = _wrapped(recipe, kept)
    return replace(sample, segments=segments, max_new_tokens=recipe.max_new_tokens, then=())


def _sample(recipe: Recipe, prompting: str, index: int, record: Question) -> Sample:
    texts = _texts(record)
    kept, tokens = cut(filled(prompts()[prompting], texts), recipe.length, recipe.tokenizer)
    facts: dict[str, Json] = {
        "id": record.id,
        "prompting": prompting,
        "domain": record.domain,
        "sub_domain": record.sub_domain,
        "difficulty": record.difficulty,
        "size": record.size,
        "source": hashlib.sha256(record.context.encode()).hexdigest()[:16],
        "whole_tokens": tokens,
        "cut": tokens > recipe.length,
    }
    if prompting == "no_context":
        facts["context"] = "left out"
    if any(MARKER.search(text) for text in texts.values()):
        facts["marker"] = "a text holds one of upstream's markers, which upstream would replace"
    return recipe.sample(index, _wrapped(recipe, kept), (f"The correct answer is ({record.answer})",), facts)


def _texts(record: Question) -> dict[str, str]:
    """Return marker -> the record's stripped text for it."""
    choices = {f"C_{letter}": text.strip() for letter, text in zip(LETTERS, record.choices, strict=True)}
    return {"DOC": record.context.strip(), "Q": record.question.strip(), **choices}


def _wrapped(recipe: Recipe, kept: Sequence[Segment]) -> tuple[Segment, ...]:
    opening, closing = Segment("preamble", recipe.wrap.opening), Segment("answer_prefix", recipe.wrap.closing)
    return joined([opening, *kept, closing])


def cut(whole: Sequence[Segment], length: int, tokenizer: Tokenizer) -> tuple[list[Segment], int]:
    """Cut the middle out of a prompt of more than `length` tokens; return its segments and the tokens it had before.

    As upstream: the first half and the rest from the end, special tokens among them, are decoded together. Unlike in
    LongBench v1, an odd length loses no token.
    """
    ids = tokenizer.encode("".join(segment.text for segment in whole), special_tokens=True)
    if len(ids) <= length:
        return list(whole), len(ids)
    half = length // 2
    kept, head = tokenizer.decode(ids[:half] + ids[-length // 2 :]), tokenizer.decode(ids[:half])
    pairs = enumerate(zip(kept, head, strict=False))
    seam = next((at for at, (one, other) in pairs if one != other), min(len(kept), len(head)))
    return from_ends(whole, kept[:seam], kept[seam:]), len(ids)
