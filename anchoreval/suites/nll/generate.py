"""Windows of the user's own texts: a text is tokenised once and cut at token positions, what is left over is dropped.

A window is everything that the model is fed at a length, the anchor token in front included. Windows come in turn, the
first of every text before the second of any, so that a limit takes them from all texts; those of one text share it as
their source.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from anchoreval.errors import AnchorEvalError, LengthError, SourceError
from anchoreval.schema import Sample, Segment, Tokenizer
from anchoreval.suites.recipe import BASE, Recipe, options

ALL = 10**9  # windows of a text: more than any has


@dataclass(frozen=True, slots=True)
class Text:
    """A text as token ids without the anchor token, and the characters of each token."""

    name: str
    sha256: str
    size: int
    text: str
    ids: tuple[int, ...]
    starts: array[int]
    ends: array[int]

    def between(self, first: int, stop: int) -> str:
        """The characters of the tokens from `first` up to `stop`."""
        return self.text[self.starts[first] : self.ends[stop - 1]]


@dataclass(frozen=True, slots=True)
class Windows:
    """Arguments of a card: how many windows of each text are taken."""

    windows: int = ALL


def generate(recipe: Recipe) -> Iterator[Sample]:
    """Yield the windows of a length, as many as are asked for; SourceError and LengthError as for `texts_of`, `taken`.

    AnchorEvalError where a chat template would stand around them.
    """
    if recipe.wrap != BASE or recipe.outside > (recipe.front is not None):
        raise AnchorEvalError(f"{recipe.task} scores texts as they are, without a chat template: --template base")
    for index, (text, first) in enumerate(islice(taken(recipe), recipe.count)):
        stop = first + _step(recipe)
        piece = (Segment("document", text.between(first, stop)),)
        facts = {"tokens": stop - first, "text": text.name, "source": text.sha256, "first": first}
        new_tokens, ids = recipe.max_new_tokens, text.ids[first:stop]
        yield Sample(recipe.task, recipe.length, index, piece, (), new_tokens, facts, ids=ids)


def size(recipe: Recipe) -> int:
    """Return how many windows the texts have at a length."""
    return len(taken(recipe))


def taken(recipe: Recipe) -> list[tuple[Text, int]]:
    """Every window as its text and its first token there, in turn; LengthError for a length that no text fills."""
    said, first = (" with the anchor", "the anchor token") if recipe.front else ("", "a first token")
    if recipe.length < 2:
        raise LengthError(f"--lengths {recipe.length}: a window has {first} and at least one more")
    texts, step, most = texts_of(recipe), _step(recipe), options(recipe, Windows).windows
    firsts = [range(0, min(len(text.ids) // step, most) * step, step) for text in texts]
    found = [(at // step, number, at) for number, each in enumerate(firsts) for at in each]
    if not found:
        longest = max(len(text.ids) for text in texts) + recipe.length - step
        raise LengthError(f"--lengths {recipe.length}: the longest text has {longest} tokens{said}", longest)
    return [(texts[number], at) for _, number, at in sorted(found)]


def too_short(recipe: Recipe) -> list[str]:
    """Return a line for each text that is too short for one window."""
    said, front = (" with the anchor", 1) if recipe.front else ("", 0)
    return [
        f"left out: {text.name} has {len(text.ids) + front} tokens{said}, a window {recipe.length}"
        for text in texts_of(recipe)
        if len(text.ids) < _step(recipe)
    ]


def _step(recipe: Recipe) -> int:
    """Tokens of a window that are of its text."""
    return recipe.length - (recipe.front is not None)


def texts_of(recipe: Recipe) -> tuple[Text, ...]:
    """The texts that `--text` names, read once and remembered; SourceError as for `read_texts`, or for none."""
    sources, asked = recipe.sources, (id(recipe.tokenizer), recipe.front)
    if sources.text is None:
        raise SourceError(f"{recipe.task} is made of texts of yours: name their file or folder with --text")
    if asked not in sources.made:
        sources.made[asked] = read_texts(sources.text, recipe.tokenizer, recipe.front)
    texts: tuple[Text, ...] = sources.made[asked]
    for text in texts:
        sources.note_text(text.name, text.sha256, text.size, len(text.ids))
    return texts


def files_of(place: Path) -> list[Path]:
    """The file itself, or all *.txt in and under a folder, sorted by name; SourceError where there are none."""
    files = sorted(place.rglob("*.txt"), key=str) if place.is_dir() else [place]
    if not files:
        raise SourceError(f"--text {place}: no *.txt in this folder")
    return files


def read_texts(place: Path, tokenizer: Tokenizer, front: tuple[str, int] | None = None) -> tuple[Text, ...]:
    """The texts of a file or folder; SourceError names a file that is no text or spells the anchor token `front`."""
    return tuple(_read(file, name_of(file, place), tokenizer, front) for file in files_of(place))


def name_of(file: Path, place: Path) -> str:
    """What a text is called: its path in the folder that was named, or its file's name; SourceError if not UTF-8."""
    name = str(file.relative_to(place)) if place.is_dir() else file.name
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise SourceError(f"--text: the name {name!a} is not UTF-8: rename the file") from error
    return name


def _read(file: Path, name: str, tokenizer: Tokenizer, front: tuple[str, int] | None) -> Text:
    try:
        raw = file.read_bytes()
        text = raw.decode("utf-8")
    except OSError as error:
        raise SourceError(f"--text {file}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise SourceError(f"--text {file}: byte {error.start} is not UTF-8: convert it first (iconv)") from error
    if not text.strip():
        raise SourceError(f"--text {file}: the file is empty")
    ids, spans = tuple(tokenizer.encode(text)), tokenizer.spans(text)
    if front is not None and front[1] in ids:
        raise SourceError(f"--text {file}: spells the anchor token {front[0]!r}, which stands at position 0 alone")
    starts, ends = (array("Q", [span[end] for span in spans]) for end in (0, 1))
    return Text(name, hashlib.sha256(raw).hexdigest(), len(raw), text, ids, starts, ends)
