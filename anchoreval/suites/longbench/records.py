"""LongBench's records, read from data.zip or a folder of `<name>.jsonl`.

A mirror whose rows already hold the prompts is refused.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from anchoreval.errors import SourceError
from anchoreval.schema import Json
from anchoreval.suites import FileState
from anchoreval.suites.files import state_of
from anchoreval.texts.reading import checked_text, json_lines, lines_of, opened
from anchoreval.texts.sources import Published, Sources

_REVISION = "5e628be450b7e67fb7ae6e201bd6d8f7056f7672"
LONGBENCH = Published(
    "longbench/data.zip",
    "cb45b11a4133c6bc1d6a44b0f8e701335ff1e543195db1103472e575857f7f64",
    tuple(
        f"https://huggingface.co/datasets/{owner}/LongBench/resolve/{_REVISION}/data.zip"
        for owner in ("zai-org", "THUDM")
    ),
    revision=_REVISION,
)
#: Numbers of records of every published file, in LongBench and in LongBench-E; None: LongBench-E has no such file.
RECORDS: dict[str, tuple[int, int | None]] = {
    "narrativeqa": (200, None), "qasper": (200, 224), "multifieldqa_en": (150, 150), "multifieldqa_zh": (200, None),
    "hotpotqa": (200, 300), "2wikimqa": (200, 300), "musique": (200, None), "dureader": (200, None),
    "gov_report": (200, 300), "qmsum": (200, None), "multi_news": (200, 294), "vcsum": (200, None),
    "trec": (200, 300), "triviaqa": (200, 300), "samsum": (200, 300), "lsht": (200, None),
    "passage_count": (200, 300), "passage_retrieval_en": (200, 300), "passage_retrieval_zh": (200, None),
    "lcc": (500, 300), "repobench-p": (500, 300),
}  # fmt: skip
FOLDERS = ("", "data", "longbench", "longbench/data")  # where files may lie inside a source folder
CLASSIFIED = ("trec", "lsht")  # answers are judged by the list of all classes
_SUITE, _FORM = "longbench", "LongBench's own records"


@dataclass(frozen=True, slots=True)
class LongRecord:
    """One line of a file. `words` counts characters in Chinese; only classification has `classes`."""

    input: str
    context: str
    answers: tuple[str, ...]
    words: int
    language: str
    classes: tuple[str, ...]
    id: str


@dataclass(frozen=True, slots=True)
class Place:
    """Where the records of a file lie: in a jsonl file, or in `member` of a zip."""

    path: Path
    member: str = ""

    def open(self) -> AbstractContextManager[IO[bytes]]:
        """Open the file for reading bytes."""
        return lines_of(self.path, self.member, _SUITE)

    def records(self) -> Iterator[LongRecord]:
        """Yield every record of the file, read one by one."""
        with self.open() as lines:
            for where, row in json_lines(lines, f"{self.path}{':' * bool(self.member)}{self.member}"):
                yield self._judgeable(row, where)

    def _judgeable(self, row: Mapping[str, Json], where: str) -> LongRecord:
        """Parse a record; raise SourceError if no answer to it could be judged."""
        record = parse(row, where)
        if Path(self.member or self.path).stem.removesuffix("_e") in CLASSIFIED and not record.classes:
            raise SourceError(f"{where}: 'all_classes' is empty, and answers are judged by it: expected {_FORM}")
        return record


def file_names() -> list[str]:
    """Return the names of all files of the benchmark, without the extension."""
    extended = [f"{name}_e" for name, (_, more) in RECORDS.items() if more is not None]
    return [*RECORDS, *extended]


def published_records(file: str) -> int:
    """Return the number of records of the published file."""
    if file in RECORDS:
        return RECORDS[file][0]
    return RECORDS[file.removesuffix("_e")][1] or 0


def find(sources: Sources, file: str) -> Place | None:
    """Return where a file lies, or None; raise SourceError for a broken zip.

    Source folders are searched in order, and in each a jsonl file comes before data.zip.
    """
    for folder in folders(sources):
        if (folder / f"{file}.jsonl").is_file():
            return Place(folder / f"{file}.jsonl")
        if (folder / "data.zip").is_file() and (member := _member(folder / "data.zip", file)):
            return Place(folder / "data.zip", member)
    return None


def folders(sources: Sources) -> list[Path]:
    """Return the folders in which files may lie, in the order of the search."""
    return [place / inner for place in sources.places() for inner in FOLDERS]


def _member(archive: Path, file: str) -> str:
    with opened(archive, _SUITE) as its:
        return next((name for name in its.namelist() if name.split("/")[-1] == f"{file}.jsonl"), "")


def records(sources: Sources, file: str, count: int) -> Iterator[LongRecord]:
    """Yield the first `count` records of a file, read one by one, and note its SHA-256 in `sources`.

    Raise SourceError, before the first record, if the file is missing, has fewer records or another form.
    """
    place = find(sources, file)
    if place is None:
        raise SourceError(_missing(file, sources))
    if not _noted(sources, place, file):
        there = sum(1 for _ in itertools.islice(place.records(), count))
        if there < count:
            raise SourceError(
                f"{place.path} has {there} records of {file}, {count} were asked for and {published_records(file)} are "
                f"published: {f'--limit {there}, or ' * bool(there)}anchoreval data fetch longbench"
            )
    yield from itertools.islice(place.records(), count)


def _noted(sources: Sources, place: Place, file: str) -> bool:
    """Note the opened file in `sources`, once; return True if it is the published archive."""
    name = LONGBENCH.file if place.member else f"longbench/{file}.jsonl"
    if name not in sources.files():
        if place.member:
            sources.note(name, place.path, LONGBENCH.sha256, revision=LONGBENCH.revision)
        else:
            sources.note(name, place.path, None, folder="longbench")
    return bool(sources.files()[name]["published"])


def parse(row: Mapping[str, Json], where: str) -> LongRecord:
    """Return the record of a row; raise SourceError that names the place and the wrong key."""
    if "input" not in row and {"question", "answer_prefix"} & row.keys():
        raise SourceError(
            f"{where}: these rows already hold prompts (a formatted mirror): use the published data.zip, "
            "anchoreval data fetch longbench"
        )
    question, context, language, name = (
        checked_text(row.get(key), where, key, _FORM) for key in ("input", "context", "language", "_id")
    )
    words = row.get("length")
    if isinstance(words, bool) or not isinstance(words, int) or words < 0:
        raise SourceError(f"{where}: 'length' is not a number of words: expected {_FORM}")
    answers = _texts(row.get("answers"), where, "answers")
    classes = _texts(row.get("all_classes") or [], where, "all_classes")
    return LongRecord(question, context, answers, words, language, classes, name)


def _texts(value: Json, where: str, key: str) -> tuple[str, ...]:
    """Return a list of texts as a tuple; an integer among them becomes its digits."""
    if not isinstance(value, list):
        raise SourceError(f"{where}: {key!r} is not a list: expected {_FORM}")
    return tuple(str(each) if type(each) is int else checked_text(each, where, key, _FORM) for each in value)


def _missing(file: str, sources: Sources) -> str:
    looked = " and ".join(map(str, sources.places()))
    return (
        f"{file}.jsonl of LongBench is missing (looked in {looked} for it and for data.zip, published at "
        f"{LONGBENCH.addresses[0]}): anchoreval data fetch longbench, or put it there and name the folder with "
        "--data-dir"
    )


def states(sources: Sources) -> Iterator[FileState]:
    """Yield the state of data.zip if it is there, then of its files that lie outside it, and of missing files."""
    archives = [path for folder in folders(sources) if (path := folder / "data.zip").is_file()]
    for path in archives:
        yield state_of(LONGBENCH, path)
    try:
        places = {file: find(sources, file) for file in file_names()}
    except SourceError as error:  # an unreadable archive hides the files inside it
        yield FileState(LONGBENCH.file, "differs", str(error))
        return
    for file, place in places.items():
        if place is None:
            if archives or any(places.values()):
                yield FileState(f"{file}.jsonl", "missing", "")
        elif not place.member:
            yield _apart(file, place.path)
    if not archives and not any(places.values()):
        yield state_of(LONGBENCH, None)


def _apart(file: str, path: Path) -> FileState:
    """Return the state of a jsonl file, judged by its number of records: no SHA-256 of it was published."""
    with path.open("rb") as lines:
        present = sum(1 for line in lines if line.strip())
    count, expected = f"{present} records {path}", published_records(file)
    if present != expected:
        return FileState(f"{file}.jsonl", "differs", f"{count}, published: {expected} records")
    return FileState(f"{file}.jsonl", "unpinned", f"{count}, as many as published; only data.zip has a SHA-256")
