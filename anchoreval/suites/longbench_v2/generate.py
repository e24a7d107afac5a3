"""LongBench v2: prompts as pred.py of THUDM/LongBench at 2e00731 makes them, and a variant that scores four letters.

A record of data.json (503 questions with four choices, contexts of up to two million words) is filled into its prompt
(prompts.yaml). A prompt of more than `length` tokens, special tokens counted, loses its middle. The chat template goes
around what is left. So `length` is upstream's max_len. With `cot` a second prompt follows: it asks for the letter and
holds the reasoning in place of the document. `choices` is no prompt of LongBench v2: it ends with the cue "Answer:"
where upstream describes the form of an answer.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Literal

from anchoreval.errors import CardError, SourceError
from anchoreval.schema import Choice, Json, Role, Sample, Segment, Tokenizer
from anchoreval.suites import FileState
from anchoreval.suites.files import state_of
from anchoreval.suites.longbench.generate import from_ends, joined
from anchoreval.suites.longbench_v2.json_array import objects
from anchoreval.suites.recipe import NoArgs, Recipe, options
from anchoreval.texts.download import HUB
from anchoreval.texts.reading import checked_text
from anchoreval.texts.sources import Published, Sources

_REVISION = "2b48e494f2c7a2f0af81aae178e05c7e1dde0fe9"
LONGBENCH_V2 = Published(  # 465,490,535 bytes
    "longbench_v2/data.json",
    "15d61c22d92c96900b3c4948b6aeea218d3214b676a65df48e7b8555604c7fe2",
    tuple(f"{HUB}/datasets/{owner}/LongBench-v2/resolve/{_REVISION}/data.json" for owner in ("zai-org", "THUDM")),
    revision=_REVISION,
)
RECORDS = 503
FOLDERS = ("longbench_v2", "LongBench-v2", "", "data")  # where data.json may lie inside a source folder
LETTERS = "ABCD"
_TEXTS = ("_id", "domain", "sub_domain", "question", *(f"choice_{letter}" for letter in LETTERS), "context")
_WORDS = {"difficulty": ("easy", "hard"), "length": ("short", "medium", "long"), "answer": tuple(LETTERS)}
REASONING_TOKENS = 1024
MARKER = re.compile(r"\$(DOC|Q|C_[A-D]|COT)\$")
_GAP = "$COT$"


@dataclass(frozen=True, slots=True)
class LongBenchV2Task:
    """The `args` of a task card: which of upstream's prompts."""

    prompting: Literal["zero_shot", "cot", "no_context"] = "zero_shot"


@dataclass(frozen=True, slots=True)
class Question:
    """One record. `answer` is a letter; `size` is short, medium or long."""

    id: str
    domain: str
    sub_domain: str
    difficulty: str
    size: str
    question: str
    choices: tuple[str, ...]
    answer: str
    context: str


def find(sources: Sources) -> Path | None:
    """Return the path of data.json in the first source folder that has it, or None."""
    places = (place / inner / "data.json" for place in sources.places() for inner in FOLDERS)
    return next((path for path in places if path.is_file()), None)


def questions(sources: Sources, count: int) -> Iterator[Question]:
    """Yield the first `count` records, read one by one, and note the file's SHA-256 in `sources`.

    Raise SourceError, before the first record, if the file is missing, has fewer records or another form.
    """
    path = find(sources)
    if path is None:
        looked = " and ".join(map(str, sources.places()))
        raise SourceError(
            f"data.json of LongBench v2 is missing (looked in {looked} and there in longbench_v2; published at "
            f"{LONGBENCH_V2.addresses[0]}): anchoreval data fetch longbench_v2, or put it there and name the folder "
            "with --data-dir"
        )
    if LONGBENCH_V2.file not in sources.files():
        sources.note(LONGBENCH_V2.file, path, LONGBENCH_V2.sha256, revision=LONGBENCH_V2.revision)
    if not sources.files()[LONGBENCH_V2.file]["published"]:
        there = sum(1 for _ in _parsed(path, count))
        if there < count:
            raise SourceError(
                f"{path} has {there} records, {count} were asked for and {RECORDS} are published: "
                f"{f'--limit {there}, or ' * bool(there)}anchoreval data fetch longbench_v2"
            )
    yield from _parsed(path, count)


def _parsed(path: Path, count: int) -> Iterator[Question]:
    """Yield the first `count` records of a file; raise SourceError that names the place and the wrong key."""
    for number, row in enumerate(itertools.islice(objects(path), count), 1):
        where = f"{path}: record {number}"
        for key in (*_TEXTS, *_WORDS):
            checked_text(row.get(key), where, key, "LongBench v2's own records")
        for key, words in _WORDS.items():
            if row[key] not in words:
                raise SourceError(f"{where}: {key!r} is {row[key][:20]!r}, not one of {', '.join(words)}")
        about = (row["domain"], row["sub_domain"], row["difficulty"], row["length"])
        choices = tuple(row[f"choice_{letter}"] for letter in LETTERS)
        yield Question(row["_id"], *about, row["question"], choices, row["answer"], row["context"])


def states(sources: Sources) -> Iterator[FileState]:
    """Yield the state of data.json, found where a run would read it."""
    yield state_of(LONGBENCH_V2, find(sources))


@cache
def prompts() -> dict[str, str]:
    """Return the prompts by name."""
    from anchoreval.cards.strict_yaml import read_yaml

    texts: dict[str, str] = read_yaml(Path(__file__).with_name("prompts.yaml"))
    return texts


def filled(prompt: str, texts: Mapping[str, str]) -> list[Segment]:
    """Return the prompt with `texts` in place of its markers; the document and the cue are segments of their own.

    All markers are replaced in one pass. Upstream replaces one marker after the other, which changes a document that
    holds "$Q$".
    """
    segments: list[Segment] = []
    role: Role = "preamble" if "$DOC$" in prompt else "query"
    for at, part in enumerate(MARKER.split(prompt)):
        document = at % 2 == 1 and part == "DOC"
        segments.append(Segment("document" if document else role, texts[part] if at % 2 else part))
        role = "query" if document else role
    if prompt.endswith(":"):
        rest, line, cue = segments.pop().text.rpartition("\n")
        segments += [Segment("query", rest + line), Segment("answer_prefix", cue)]
    return segments


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
            around = filled(prompts()["cot_answer"], _texts(record) | {"COT": _GAP})
            before, _, behind = "".join(segment.text for segment in around).rpartition(_GAP)
            sample = replace(sample, max_new_tokens=REASONING_TOKENS, then=(before, behind))
        yield sample


def generate_letters(recipe: Recipe) -> Iterator[Sample]:
    """Yield samples of the first records of the file with the four letters as choices behind "Answer:"."""
    options(recipe, NoArgs)
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
        "id": record.id, "prompting": prompting, "domain": record.domain, "sub_domain": record.sub_domain,
        "difficulty": record.difficulty, "size": record.size,
        "source": hashlib.sha256(record.context.encode()).hexdigest()[:16],
        "whole_tokens": tokens, "cut": tokens > recipe.length,
    }  # fmt: skip
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
