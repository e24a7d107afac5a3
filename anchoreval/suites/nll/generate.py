"""Make windows of the user's own texts: tokenise each text once, cut it at token positions, and drop the rest.

A window is everything that the model is fed at a length, including the anchor token in front. The first windows of all
texts come before the second window of any, so that a limit takes windows from all texts. Windows of one text have it as
their source. They are scored by the mean log-probability of their tokens, mapped to 0..1.
"""

from __future__ import annotations

import hashlib
import math
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from anchoreval.errors import AnchorEvalError, LengthError, SourceError
from anchoreval.schema import Json, Sample, Score, Segment, Tokenizer
from anchoreval.suites import NO_FACTS, PER_TOKEN
from anchoreval.suites.recipe import BASE, Recipe, options

ALL = 10**9  # more windows than any text has


@dataclass(frozen=True, slots=True)
class Text:
    """A text as token ids without the anchor token, and the character span of each token."""

    name: str
    sha256: str
    size: int
    text: str
    ids: tuple[int, ...]
    starts: array[int]
    ends: array[int]


@dataclass(frozen=True, slots=True)
class Windows:
    """Arguments of a card: `windows` is the number of windows taken of each text."""

    windows: int = ALL


def generate(recipe: Recipe) -> Iterator[Sample]:
    """Yield as many windows of a length as are asked for.

    Raise SourceError and LengthError as `texts_of` and `taken` do, and AnchorEvalError for a chat template.
    """
    if recipe.wrap != BASE or recipe.outside > (recipe.front is not None):
        raise AnchorEvalError(f"{recipe.task} scores texts as they are, without a chat template: --template base")
    for index, (text, first) in enumerate(islice(taken(recipe), recipe.count)):
        stop = first + _step(recipe)
        piece = (Segment("document", text.text[text.starts[first] : text.ends[stop - 1]]),)
        facts = {"tokens": stop - first, "text": text.name, "source": text.sha256, "first": first}
        new_tokens, ids = recipe.max_new_tokens, text.ids[first:stop]
        yield Sample(recipe.task, recipe.length, index, piece, (), new_tokens, facts, ids=ids)


def size(recipe: Recipe) -> int:
    """Return the number of windows that the texts have at a length."""
    return len(taken(recipe))


def taken(recipe: Recipe) -> list[tuple[Text, int]]:
    """Return every window, in order, as its text and the index of its first token.

    Raise LengthError for a length that no text fills.
    """
    counted, first = (" with the anchor", "the anchor token") if recipe.front else ("", "a first token")
    if recipe.length < 2:
        raise LengthError(f"--lengths {recipe.length}: a window has {first} and at least one more")
    texts, step, most = texts_of(recipe), _step(recipe), options(recipe, Windows).windows
    firsts = [range(0, min(len(text.ids) // step, most) * step, step) for text in texts]
    windows = [(at // step, number, at) for number, positions in enumerate(firsts) for at in positions]
    if not windows:
        longest = max(len(text.ids) for text in texts) + recipe.length - step
        raise LengthError(f"--lengths {recipe.length}: the longest text has {longest} tokens{counted}", longest)
    return [(texts[number], at) for _, number, at in sorted(windows)]


def too_short(recipe: Recipe) -> list[str]:
    """Return a line for each text that is too short for one window."""
    counted, front = (" with the anchor", 1) if recipe.front else ("", 0)
    return [
        f"left out: {text.name} has {len(text.ids) + front} tokens{counted}, a window {recipe.length}"
        for text in texts_of(recipe)
        if len(text.ids) < _step(recipe)
    ]


def _step(recipe: Recipe) -> int:
    """Return the number of a window's tokens that come from its text."""
    return recipe.length - (recipe.front is not None)


def texts_of(recipe: Recipe) -> tuple[Text, ...]:
    """Return the texts that `--text` names, read once and cached.

    Raise SourceError as `read_texts` does, and if no text is named.
    """
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
    """Return the file itself, or all *.txt in and under a folder, sorted by name; raise SourceError for none."""
    files = sorted(place.rglob("*.txt"), key=str) if place.is_dir() else [place]
    if not files:
        raise SourceError(f"--text {place}: no *.txt in this folder")
    return files


def read_texts(place: Path, tokenizer: Tokenizer, front: tuple[str, int] | None = None) -> tuple[Text, ...]:
    """Return the texts of a file or folder.

    Raise SourceError for a file that is no UTF-8 text, is empty, or contains the anchor token `front`.
    """
    texts = []
    for file in files_of(place):
        name = name_of(file, place)
        try:
            raw = file.read_bytes()
            text = raw.decode("utf-8")
        except OSError as error:
            raise SourceError(f"--text {file}: cannot be read: {error.strerror or error}") from error
        except UnicodeDecodeError as error:
            raise SourceError(f"--text {file}: byte {error.start} is not UTF-8: convert it first (iconv)") from error
        if not text.strip():
            raise SourceError(f"--text {file}: the file is empty")
        ids, spans = tokenizer.encode_with_spans(text)
        if front is not None and front[1] in ids:
            raise SourceError(f"--text {file}: spells the anchor token {front[0]!r}, which stands at position 0 alone")
        starts, ends = (array("Q", [span[end] for span in spans]) for end in (0, 1))
        texts.append(Text(name, hashlib.sha256(raw).hexdigest(), len(raw), text, tuple(ids), starts, ends))
    return tuple(texts)


def name_of(file: Path, place: Path) -> str:
    """Return the name of a text: its path in the folder that was named, or its file's name.

    Raise SourceError for a name that is not UTF-8.
    """
    name = str(file.relative_to(place)) if place.is_dir() else file.name
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise SourceError(f"--text: the name {name!a} is not UTF-8: rename the file") from error
    return name


def token_probability(_: str, __: Sequence[str], facts: Mapping[str, Json] = NO_FACTS) -> Score:
    """Return e to the mean log-probability per token: the tokens' geometric mean probability, 1 / perplexity."""
    logprob = facts.get(PER_TOKEN)
    return Score(None, "its tokens have no log-probability") if logprob is None else Score(min(1.0, math.exp(logprob)))
