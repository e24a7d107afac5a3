"""Read foreign files as UTF-8, JSON and zip; whatever is wrong with a file is a SourceError that names the file."""

from __future__ import annotations

import contextlib
import json
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO

from anchoreval.errors import SourceError
from anchoreval.schema import Json

_LFS = "a git-lfs pointer must be replaced by its file"
_HALVES = re.compile(r"\\u[dD][89a-fA-F]")  # JSON escapes of surrogates, which belong in pairs
_HALF = "holds half a character (a lone surrogate), which no tokenizer takes"
#: The errors that zipfile raises for damaged, encrypted and foreign archives.
_BROKEN = (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, NotImplementedError)


def text_of(path: Path) -> str:
    """Return the text of a file in UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"{path} cannot be read as UTF-8: {error}") from None


def json_of(content: str | bytes, where: str) -> Json:
    """Return the value of a JSON text; raise SourceError, which begins with `where`, if it is not JSON.

    A text with a lone surrogate is an error too.
    """
    try:
        text = (content if isinstance(content, str) else content.decode("utf-8")).removeprefix("\ufeff")
        value: Json = json.loads(text)
    except ValueError as error:
        raise SourceError(f"{where} is not JSON ({error}); {_LFS}") from None
    except RecursionError:
        raise SourceError(f"{where} is not JSON that can be read: nested too deeply") from None
    if _HALVES.search(text) and not whole(json.dumps(value, ensure_ascii=False)):
        raise SourceError(f"{where} {_HALF}")
    return value


def json_lines(
    lines: Iterable[bytes], file: object, loads: Callable[[str | bytes, str], Json] = json_of
) -> Iterator[tuple[str, dict[str, Json]]]:
    """Yield `file:line` and the JSON object of every line that is not blank; `loads` takes a line and its place.

    Raise SourceError that names file and line.
    """
    import jsonlines

    number = 0

    def counted() -> Iterator[bytes]:
        nonlocal number
        try:
            for line in lines:
                number += 1
                yield line
        except EOFError as error:  # the reader takes it for the end of the lines
            raise OSError(f"{file}:{number}: {error}") from error

    reader = jsonlines.Reader(counted(), loads=lambda line: loads(line, f"{file}:{number}"))
    try:
        for row in reader.iter(type=dict, skip_empty=True):
            yield f"{file}:{number}", row
    except jsonlines.InvalidLineError as error:
        if error.__cause__ is None:
            raise SourceError(f"{file}:{number}: not a record: each line is one JSON object, {{...}}") from None
        raise SourceError(f"{file}:{number} is not JSON ({error.__cause__}); {_LFS}") from None
    except RecursionError:
        raise SourceError(f"{file}:{number} is not JSON that can be read: nested too deeply") from None


@contextlib.contextmanager
def expected(where: str, form: str) -> Iterator[None]:
    """Raise SourceError that names the expected `form` for errors inside the block, which parses a foreign value."""
    try:
        yield
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise SourceError(f"{where}: expected {form} ({type(error).__name__}: {error})") from None


def whole(text: str) -> bool:
    """Return True if UTF-8 can encode the text: JSON may hold a lone surrogate, which no tokenizer accepts."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def checked_text(value: Json, where: str, key: str, form: str) -> str:
    """Return `value` if it is a text, else raise SourceError.

    The error names `where`, the record's key, and `form`, which says whose records were expected.
    """
    if not isinstance(value, str):
        raise SourceError(f"{where}: {key!r} is not a str: expected {form}")
    if not whole(value):
        raise SourceError(f"{where}: {key!r} {_HALF}")
    return value


@contextlib.contextmanager
def opened(path: Path, suite: str) -> Iterator[zipfile.ZipFile]:
    """Yield an open archive; raise SourceError for a broken one, with the command that fetches it again."""
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except _BROKEN as error:
        raise SourceError(f"{path} cannot be read ({error}): anchoreval data fetch {suite} makes it anew") from None


@contextlib.contextmanager
def lines_of(path: Path, member: str, suite: str) -> Iterator[IO[bytes]]:
    """Yield a file open for reading bytes, or `member` of the archive at `path`."""
    if not member:
        try:
            plain = path.open("rb")
        except OSError as error:
            raise SourceError(f"{path} cannot be read: {error}") from None
        with plain:
            yield plain
        return
    with opened(path, suite) as archive, archive.open(member) as packed:
        yield packed
