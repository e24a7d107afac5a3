"""LongBench v1 and LongBench-E: prompts as LongBench/pred.py of THUDM/LongBench at 2e00731 makes them.

A record is filled into its prompt (prompts.yaml) by str.format, so braces in a record are safe. A prompt of more than
`length` tokens, special tokens counted, loses its middle. The chat template goes around what is left, except for six
data sets. So `length` is upstream's max_length: the tokens of the prompt without the template and without the answer.

Records are read from data.zip or a folder of `<name>.jsonl`. A mirror whose rows already hold the prompts is refused.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from string import Formatter
from typing import Literal

from anchoreval.errors import LengthError, SourceError
from anchoreval.schema import Json, Role, Sample, Segment, Tokenizer
from anchoreval.suites import FileState
from anchoreval.suites.files import state_of
from anchoreval.suites.recipe import BASE, Recipe, options
from anchoreval.texts.download import HUB
from anchoreval.texts.reading import checked_text, json_lines, lines_of, opened
from anchoreval.texts.sources import Published, Sources

_REVISION = "5e628be450b7e67fb7ae6e201bd6d8f7056f7672"
LONGBENCH = Published(
    "longbench/data.zip",
    "cb45b11a4133c6bc1d6a44b0f8e701335ff1e543195db1103472e575857f7f64",
    tuple(f"{HUB}/datasets/{owner}/LongBench/resolve/{_REVISION}/data.zip" for owner in ("zai-org", "THUDM")),
    revision=_REVISION,
)
#: Numbers of records of every published file, of LongBench and of LongBench-E.
RECORDS = {
    "narrativeqa": 200, "qasper": 200, "multifieldqa_en": 150, "multifieldqa_zh": 200, "hotpotqa": 200, "2wikimqa": 200,
    "musique": 200, "dureader": 200, "gov_report": 200, "qmsum": 200, "multi_news": 200, "vcsum": 200, "trec": 200,
    "triviaqa": 200, "samsum": 200, "lsht": 200, "passage_count": 200, "passage_retrieval_en": 200,
    "passage_retrieval_zh": 200, "lcc": 500, "repobench-p": 500, "qasper_e": 224, "multifieldqa_en_e": 150,
    "hotpotqa_e": 300, "2wikimqa_e": 300, "gov_report_e": 300, "multi_news_e": 294, "trec_e": 300, "triviaqa_e": 300,
    "samsum_e": 300, "passage_count_e": 300, "passage_retrieval_en_e": 300, "lcc_e": 300, "repobench-p_e": 300,
}  # fmt: skip
FOLDERS = ("", "data", "longbench", "longbench/data")  # where files may lie inside a source folder
CLASSIFIED = ("trec", "lsht")  # answers are judged by the list of all classes
_SUITE, _FORM = "longbench", "LongBench's own records"
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

    def records(self) -> Iterator[LongRecord]:
        """Yield every record of the file, read one by one; raise SourceError if no answer to one could be judged."""
        classified = Path(self.member or self.path).stem.removesuffix("_e") in CLASSIFIED
        with lines_of(self.path, self.member, _SUITE) as lines:
            for where, row in json_lines(lines, f"{self.path}{':' * bool(self.member)}{self.member}"):
                record = parse(row, where)
                if classified and not record.classes:
                    lacking = f"{where}: 'all_classes' is empty, and answers are judged by it"
                    raise SourceError(f"{lacking}: expected {_FORM}")
                yield record


@cache
def prompts() -> dict[str, str]:
    """Return data set -> prompt."""
    from anchoreval.cards.strict_yaml import read_yaml

    texts: dict[str, str] = read_yaml(Path(__file__).with_name("prompts.yaml"))
    return texts


def folders(sources: Sources) -> list[Path]:
    """Return the folders in which files may lie, in the order of the search."""
    return [place / inner for place in sources.places() for inner in FOLDERS]


def find(sources: Sources, file: str) -> Place | None:
    """Return where a file lies, or None; raise SourceError for a broken zip.

    Source folders are searched in order, and in each a jsonl file comes before data.zip.
    """
    for folder in folders(sources):
        if (folder / f"{file}.jsonl").is_file():
            return Place(folder / f"{file}.jsonl")
        if (archive := folder / "data.zip").is_file():
            with opened(archive, _SUITE) as members:
                for name in members.namelist():
                    if name.split("/")[-1] == f"{file}.jsonl":
                        return Place(archive, name)
    return None


def records(sources: Sources, file: str, count: int) -> Iterator[LongRecord]:
    """Yield the first `count` records of a file, read one by one, and note its SHA-256 in `sources`.

    Raise SourceError, before the first record, if the file is missing, has fewer records or another form.
    """
    place = find(sources, file)
    if place is None:
        looked = " and ".join(map(str, sources.places()))
        raise SourceError(
            f"{file}.jsonl of LongBench is missing (looked in {looked} for it and for data.zip, published at "
            f"{LONGBENCH.addresses[0]}): anchoreval data fetch longbench, or put it there and name the folder with "
            "--data-dir"
        )
    name = LONGBENCH.file if place.member else f"longbench/{file}.jsonl"
    if name not in sources.files():
        if place.member:
            sources.note(name, place.path, LONGBENCH.sha256, revision=LONGBENCH.revision)
        else:
            sources.note(name, place.path, None, folder="longbench")
    if not sources.files()[name]["published"]:
        there = sum(1 for _ in itertools.islice(place.records(), count))
        if there < count:
            raise SourceError(
                f"{place.path} has {there} records of {file}, {count} were asked for and {RECORDS[file]} are "
                f"published: {f'--limit {there}, or ' * bool(there)}anchoreval data fetch longbench"
            )
    yield from itertools.islice(place.records(), count)


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


def states(sources: Sources) -> Iterator[FileState]:
    """Yield the state of data.zip if it is there, then of its files that lie outside it, and of missing files.

    A jsonl file is judged by its number of records: no SHA-256 of it was published.
    """
    archives = [path for folder in folders(sources) if (path := folder / "data.zip").is_file()]
    for path in archives:
        yield state_of(LONGBENCH, path)
    try:
        places = {file: find(sources, file) for file in RECORDS}
    except SourceError as error:  # an unreadable archive hides the files inside it
        yield FileState(LONGBENCH.file, "differs", str(error))
        return
    if not archives and not any(places.values()):
        yield state_of(LONGBENCH, None)
        return
    for file, place in places.items():
        if place is None:
            yield FileState(f"{file}.jsonl", "missing", "")
        elif not place.member:
            with place.path.open("rb") as lines:
                present = sum(1 for line in lines if line.strip())
            count, expected = f"{present} records {place.path}", RECORDS[file]
            if present != expected:
                yield FileState(f"{file}.jsonl", "differs", f"{count}, published: {expected} records")
            else:
                what = f"{count}, as many as published; only data.zip has a SHA-256"
                yield FileState(f"{file}.jsonl", "unpinned", what)


def bucket(words: int) -> str:
    """Return LongBench-E's bucket of a record: 0-4k, 4-8k, 8k+."""
    return next((name for limit, name in BUCKETS if words < limit), "8k+")


def generate(recipe: Recipe) -> Iterator[Sample]:
    """Yield samples of the first records of a data set, in the order of its file."""
    task = options(recipe, LongBenchTask)
    if recipe.length < 2:
        raise LengthError("nothing is left of a prompt", 2)
    file = f"{task.data}_e" if task.edition == "e" else task.data
    wrap = BASE if task.data in RAW else recipe.wrap
    for index, record in enumerate(records(recipe.sources, file, recipe.count)):
        context = record.context if recipe.sources.context else ""
        whole = pieces(prompts()[task.data], record.input, documents(context, MARKS.get(task.data, "")))
        kept, tokens = cut(whole, recipe.length, recipe.tokenizer)
        segments = joined([Segment("preamble", wrap.opening), *kept, Segment("answer_prefix", wrap.closing)])
        facts: dict[str, Json] = {
            "id": record.id, "language": record.language, "words": record.words,
            "source": hashlib.sha256(record.context.encode()).hexdigest()[:16],  # questions on one text share it
            "whole_tokens": tokens, "cut": tokens > recipe.length,
            "documents": sum(segment.role == "document" for segment in kept),
        }  # fmt: skip
        facts |= {"bucket": bucket(record.words)} if task.edition == "e" else {}
        facts |= {"all_classes": list(record.classes)} if record.classes else {}
        facts |= {} if recipe.sources.context else {"context": "left out"}
        sample = recipe.sample(index, segments, record.answers, facts)
        yield replace(sample, end=ENDS.get(task.data, ""))


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
    sizes = [len(segment.text) for segment in whole]
    parts: list[tuple[int, str]] = []  # the number of a segment of `whole`, and its text
    for number, start, end in _spread(sizes, len(head)):
        parts.append((number, head[start:end]))
    least = parts[-1][0] if parts else 0
    for number, start, end in reversed(_spread(sizes[::-1], len(tail))):
        parts.append((max(least, len(whole) - 1 - number), tail[len(tail) - end : len(tail) - start]))
    groups = itertools.groupby(parts, key=lambda part: part[0])
    return [Segment(whole[number].role, "".join(text for _, text in group)) for number, group in groups]


def _spread(sizes: Sequence[int], length: int) -> list[tuple[int, int, int]]:
    """Return (number, start, end) of the pieces of these sizes in `length` characters; the last takes all beyond."""
    ends = [min(end, length) for end in itertools.accumulate(sizes)][:-1]
    rows = enumerate(itertools.pairwise([0, *ends, length]))
    return [(number, start, end) for number, (start, end) in rows if start < end]


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
