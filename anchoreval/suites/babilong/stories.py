"""bAbI's stories (Weston et al. 2015) with BABILong's facts and questions: en-10k training files of tasks_1-20_v1-2."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from anchoreval.errors import SourceError
from anchoreval.files import sha256_of
from anchoreval.texts.download import digest_of
from anchoreval.texts.reading import opened, text_of
from anchoreval.texts.sources import BABI, Sources

NAMES = {
    "qa1": "single-supporting-fact", "qa2": "two-supporting-facts", "qa3": "three-supporting-facts",
    "qa4": "two-arg-relations", "qa5": "three-arg-relations", "qa6": "yes-no-questions", "qa7": "counting",
    "qa8": "lists-sets", "qa9": "simple-negation", "qa10": "indefinite-knowledge", "qa11": "basic-coreference",
    "qa12": "conjunction", "qa13": "compound-coreference", "qa14": "time-reasoning", "qa15": "basic-deduction",
    "qa16": "basic-induction", "qa17": "positional-reasoning", "qa18": "size-reasoning", "qa19": "path-finding",
    "qa20": "agents-motivations",
}  # fmt: skip
FOLDERS = ("", "babilong")  # inside a source folder, where the zip or the unpacked files may lie
INNER = ("tasks_1-20_v1-2/en-10k", "en-10k")
ZIP = "tasks_1-20_v1-2.zip"


@dataclass(frozen=True, slots=True)
class Story:
    """A question with the facts told before it; `supporting` are the indices of the facts that it needs.

    `number` is the number of the story in its file; several questions may ask about one story.
    """

    facts: tuple[str, ...]
    question: str
    answer: str
    supporting: tuple[int, ...]
    number: int = 0


def file_name(data: str) -> str:
    """Return the file name of a task."""
    return f"{data}_{NAMES[data]}_train.txt"


def find(sources: Sources, data: str) -> Path | None:
    """Return the unpacked file of a task, or the zip that holds it, from the first source folder that has one."""
    for folder in (place / inner for place in sources.places() for inner in FOLDERS):
        for path in (*(folder / inner / file_name(data) for inner in INNER), folder / ZIP):
            if path.is_file():
                return path
    return None


def stories(sources: Sources, data: str) -> list[Story]:
    """Return every question of a task's file in order and note the file in `sources`; raise SourceError without one."""
    path = find(sources, data)
    if path is None:
        raise SourceError(_missing(sources, data))
    if path.name == ZIP:
        text = _unzipped(path, data)
        if BABI.file not in sources.files():
            published = digest_of(path, BABI.sha256) == BABI.sha256
            sources.note(BABI.file, path, sha256_of(path) if published else None, revision=BABI.revision)
    else:
        text = text_of(path)
        sources.note(f"babilong/{file_name(data)}", path, None, folder="babilong")
    questions = list(parse(text, str(path)))
    if not questions:
        raise SourceError(f"{path} holds no question of {data}: expected bAbI's {file_name(data)}")
    return questions


def parse(text: str, where: str) -> Iterator[Story]:
    """Yield the questions of a file of numbered lines; a question has its answer and supporting lines behind tabs.

    As upstream (get_dataset_df), earlier questions of a story are not facts of later ones.
    """
    told: list[tuple[int, str]] = []
    begun = 0
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        place, _, rest = line.partition(" ")
        if not _is_number(place):
            raise SourceError(f"{where}:{number}: not a line of bAbI, which begins with its number in the story")
        if int(place) == 1:
            told, begun = [], begun + 1
        if "\t" not in rest:
            told.append((int(place), rest))
            continue
        question, answer, *support = rest.split("\t")
        if not all(map(_is_number, " ".join(support).split())):
            raise SourceError(f"{where}:{number}: behind the answer stand the numbers of the lines that support it")
        needed = {int(part) for part in " ".join(support).split()}
        yield Story(
            tuple(fact for _, fact in told),
            question,
            answer,
            tuple(at for at, (line_number, _) in enumerate(told) if line_number in needed),
            begun,
        )


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _unzipped(path: Path, data: str) -> str:
    wanted = f"{INNER[1]}/{file_name(data)}"
    with opened(path, "babilong") as archive:
        member = next((name for name in archive.namelist() if name.endswith(wanted)), None)
        if member is None:
            raise SourceError(f"{path} has no {wanted}: anchoreval data fetch babilong makes it anew")
        content = archive.read(member)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise SourceError(f"{path}: {member} cannot be read as UTF-8: {error}") from None


def _missing(sources: Sources, data: str) -> str:
    looked = " and ".join(map(str, sources.places()))
    return (
        f"bAbI's {file_name(data)} is missing (looked in {looked} for {INNER[0]}/ and for {ZIP}, published at "
        f"{BABI.addresses[0]}): anchoreval data fetch babilong, or put it there and name the folder with --data-dir"
    )
