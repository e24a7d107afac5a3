"""What BABILong is made of: bAbI's stories, and the text around their facts.

The stories (Weston et al. 2015), with facts and questions, are the en-10k training files of tasks_1-20_v1-2. The text
around them is the books of PG-19 in a local folder, or prose that the package generates.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random

from anchoreval.errors import SourceError
from anchoreval.files import sha256_of
from anchoreval.texts.download import digest_of
from anchoreval.texts.prose import sentences
from anchoreval.texts.reading import opened, text_of
from anchoreval.texts.sources import Published, Sources

_COMMIT = "7a6efee29f5cac03c3c410e6799c80fd2ffe3610"
BABI = Published(
    "babilong/tasks_1-20_v1-2.zip",
    "039086666b117f06455a64aac804773b74847464",
    (f"https://raw.githubusercontent.com/booydar/babilong/{_COMMIT}/data/tasks_1-20_v1-2.zip",),
    revision=_COMMIT,
)
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
BOOKS = ("pg19", "babilong/pg19")  # folders
CHARACTERS_PER_TOKEN = 10  # of a stretch of a book that is split into sentences at a time, as upstream does
LEAST_CHARACTERS = 4096


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
        looked = " and ".join(map(str, sources.places()))
        raise SourceError(
            f"bAbI's {file_name(data)} is missing (looked in {looked} for {INNER[0]}/ and for {ZIP}, published at "
            f"{BABI.addresses[0]}): anchoreval data fetch babilong, or put it there and name the folder with --data-dir"
        )
    if path.name == ZIP:
        wanted = f"{INNER[1]}/{file_name(data)}"
        with opened(path, "babilong") as archive:
            member = next((name for name in archive.namelist() if name.endswith(wanted)), None)
            if member is None:
                raise SourceError(f"{path} has no {wanted}: anchoreval data fetch babilong makes it anew")
            content = archive.read(member)
        try:
            text = content.decode("utf-8")
        except UnicodeDecodeError as error:
            raise SourceError(f"{path}: {member} cannot be read as UTF-8: {error}") from None
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
        supporting = tuple(at for at, (told_in, _) in enumerate(told) if told_in in needed)
        yield Story(tuple(fact for _, fact in told), question, answer, supporting, begun)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def background(sources: Sources, rng: Random, tokens: int) -> Iterator[str]:
    """Yield sentences without end: generated prose, or from random places of random books (as SentenceSampler does)."""
    if sources.haystack == "generated":
        return sentences(rng.getrandbits(32))
    return _of_books(books(sources), rng, max(LEAST_CHARACTERS, CHARACTERS_PER_TOKEN * tokens))


def books(sources: Sources) -> tuple[str, ...]:
    """Return every text of the folder pg19 and note each in `sources`; raise SourceError if there is no text."""
    for folder in (place / inner for place in sources.places() for inner in BOOKS):
        if paths := sorted(folder.glob("*.txt")):
            for path in paths:
                if f"pg19/{path.name}" not in sources.files():
                    sources.note(f"pg19/{path.name}", path, None, folder="pg19")
            return _read(tuple(paths))
    looked = " and ".join(str(place / BOOKS[0]) for place in sources.places())
    raise SourceError(
        f"no background for BABILong (looked for *.txt in {looked}): put books there, upstream's are the test split of "
        "PG-19, and name the folder above with --data-dir, or use --haystack generated"
    )


@cache
def _read(paths: tuple[Path, ...]) -> tuple[str, ...]:
    """Return the texts, cached: a suite of twenty tasks at six lengths would read them 120 times."""
    texts = tuple(text for path in paths if (text := text_of(path)).strip())
    if not texts:
        raise SourceError(f"{paths[0].parent}: every text is empty: put books there, or use --haystack generated")
    return texts


def _of_books(texts: tuple[str, ...], rng: Random, characters: int) -> Iterator[str]:
    """Yield the sentences from a random place of a random book on, without the first and the last; then of another."""
    from nltk.tokenize.punkt import PunktSentenceTokenizer

    splitter, idle = PunktSentenceTokenizer(), 0
    while idle < 1000:
        text = rng.choice(texts)
        start = rng.randrange(len(text))
        whole = splitter.tokenize(text[start : start + characters])[1:-1]
        idle = 0 if whole else idle + 1
        yield from whole
    raise SourceError("the texts of the folder pg19 hold no sentences: three in a row are needed")
