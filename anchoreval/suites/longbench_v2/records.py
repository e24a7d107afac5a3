"""LongBench v2's records, from its data.json: 503 questions with four choices, contexts of up to two million words."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from anchoreval.errors import SourceError
from anchoreval.schema import Json
from anchoreval.suites import FileState
from anchoreval.suites.files import state_of
from anchoreval.suites.longbench_v2.json_array import objects
from anchoreval.texts.reading import checked_text
from anchoreval.texts.sources import Published, Sources

_REVISION = "2b48e494f2c7a2f0af81aae178e05c7e1dde0fe9"
LONGBENCH_V2 = Published(  # 465,490,535 bytes
    "longbench_v2/data.json",
    "15d61c22d92c96900b3c4948b6aeea218d3214b676a65df48e7b8555604c7fe2",
    tuple(
        f"https://huggingface.co/datasets/{owner}/LongBench-v2/resolve/{_REVISION}/data.json"
        for owner in ("zai-org", "THUDM")
    ),
    revision=_REVISION,
)
RECORDS = 503
FOLDERS = ("longbench_v2", "LongBench-v2", "", "data")  # where data.json may lie inside a source folder
LETTERS = "ABCD"
_TEXTS = ("_id", "domain", "sub_domain", "question", *(f"choice_{letter}" for letter in LETTERS), "context")
_WORDS = {"difficulty": ("easy", "hard"), "length": ("short", "medium", "long"), "answer": tuple(LETTERS)}


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
        raise SourceError(_missing(sources))
    if not _noted(sources, path):
        there = sum(1 for _ in _parsed(path, count))
        if there < count:
            raise SourceError(
                f"{path} has {there} records, {count} were asked for and {RECORDS} are published: "
                f"{f'--limit {there}, or ' * bool(there)}anchoreval data fetch longbench_v2"
            )
    yield from _parsed(path, count)


def _parsed(path: Path, count: int) -> Iterator[Question]:
    for number, row in enumerate(itertools.islice(objects(path), count), 1):
        yield parse(row, f"{path}: record {number}")


def _noted(sources: Sources, path: Path) -> bool:
    """Note the file in `sources`, once; return True if it is the published file."""
    if LONGBENCH_V2.file not in sources.files():
        sources.note(LONGBENCH_V2.file, path, LONGBENCH_V2.sha256, revision=LONGBENCH_V2.revision)
    return bool(sources.files()[LONGBENCH_V2.file]["published"])


def parse(row: Mapping[str, Json], where: str) -> Question:
    """Return the record of a row; raise SourceError that names the place and the wrong key."""
    for key in (*_TEXTS, *_WORDS):
        checked_text(row.get(key), where, key, "LongBench v2's own records")
    for key, words in _WORDS.items():
        if row[key] not in words:
            raise SourceError(f"{where}: {key!r} is {row[key][:20]!r}, not one of {', '.join(words)}")
    choices = tuple(row[f"choice_{letter}"] for letter in LETTERS)
    return Question(
        row["_id"],
        row["domain"],
        row["sub_domain"],
        row["difficulty"],
        row["length"],
        row["question"],
        choices,
        row["answer"],
        row["context"],
    )


def _missing(sources: Sources) -> str:
    looked = " and ".join(map(str, sources.places()))
    return (
        f"data.json of LongBench v2 is missing (looked in {looked} and there in longbench_v2; published at "
        f"{LONGBENCH_V2.addresses[0]}): anchoreval data fetch longbench_v2, or put it there and name the folder with "
        "--data-dir"
    )


def states(sources: Sources) -> Iterator[FileState]:
    """Yield the state of data.json, found where a run would read it."""
    yield state_of(LONGBENCH_V2, find(sources))
