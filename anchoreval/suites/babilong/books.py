"""The text around BABILong's facts: the books of PG-19 in a local folder, or prose that the package generates."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from random import Random

from anchoreval.errors import SourceError
from anchoreval.texts.prose import sentences
from anchoreval.texts.reading import text_of
from anchoreval.texts.sources import Sources

FOLDERS = ("pg19", "babilong/pg19")
CHARACTERS_PER_TOKEN = 10  # of a stretch of a book that is split into sentences at a time, as upstream does
LEAST_CHARACTERS = 4096


def background(sources: Sources, rng: Random, tokens: int) -> Iterator[str]:
    """Yield sentences without end: generated prose, or from random places of random books (as SentenceSampler does)."""
    if sources.haystack == "generated":
        return sentences(rng.getrandbits(32))
    return _of_books(books(sources), rng, max(LEAST_CHARACTERS, CHARACTERS_PER_TOKEN * tokens))


def books(sources: Sources) -> tuple[str, ...]:
    """Return every text of the folder pg19 and note each in `sources`; raise SourceError if there is no text."""
    for folder in (place / inner for place in sources.places() for inner in FOLDERS):
        if paths := sorted(folder.glob("*.txt")):
            for path in paths:
                if f"pg19/{path.name}" not in sources.files():
                    sources.note(f"pg19/{path.name}", path, None, folder="pg19")
            return _read(tuple(paths))
    looked = " and ".join(str(place / FOLDERS[0]) for place in sources.places())
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
