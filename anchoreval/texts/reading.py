"""Files that somebody else wrote, as UTF-8, JSON and zip; whatever is wrong with one is a SourceError that names it."""

from __future__ import annotations

import contextlib
import json
import re
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from anchoreval.errors import SourceError
from anchoreval.schema import Json

_LFS = "a git-lfs pointer must be replaced by its file"
_HALVES = re.compile(r"\\u[dD][89a-fA-F]")  # escapes of halves of a character, which belong in pairs
_HALF = "holds half a character (a lone surrogate), which no tokenizer takes"
#: What zipfile makes of a damaged, an encrypted and a foreign archive.
_BROKEN = (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, NotImplementedError)


def text_of(path: Path) -> str:
    """The text of a file in UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"{path} cannot be read as UTF-8: {error}") from None


def json_of(content: str | bytes, where: str) -> Json:
    """The value that a text is as JSON; `where` it stands begins the error. Texts with half a character are none."""
    try:
        text = content if isinstance(content, str) else content.decode("utf-8-sig")
        value: Json = json.loads(text)
    except ValueError as error:
        raise SourceError(f"{where} is not JSON ({error}); {_LFS}") from None
    except RecursionError:
        raise SourceError(f"{where} is not JSON that can be read: nested too deeply") from None
    if _HALVES.search(text) and not whole(json.dumps(value, ensure_ascii=False)):
        raise SourceError(f"{where} {_HALF}")
    return value


@contextlib.contextmanager
def expected(where: str, form: str) -> Iterator[None]:
    """Whatever a value of another form makes of the code that takes it apart is a SourceError that says the form."""
    try:
        yield
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise SourceError(f"{where}: expected {form} ({type(error).__name__}: {error})") from None


def whole(text: str) -> bool:
    """Whether UTF-8 has all of its characters: JSON may hold half a one, which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def checked_text(value: Json, where: str, key: str, form: str) -> str:
    """The text that stands under a key of a record; `form` says whose records were expected."""
    if not isinstance(value, str):
        raise SourceError(f"{where}: {key!r} is not a str: expected {form}")
    if not whole(value):
        raise SourceError(f"{where}: {key!r} {_HALF}")
    return value


@contextlib.contextmanager
def opened(path: Path, suite: str) -> Iterator[zipfile.ZipFile]:
    """An archive; an error of it while it is open names the command that brings it anew."""
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except _BROKEN as error:
        raise SourceError(f"{path} cannot be read ({error}): anchoreval data fetch {suite} makes it anew") from None


@contextlib.contextmanager
def lines_of(path: Path, member: str, suite: str) -> Iterator[IO[bytes]]:
    """The bytes of a file, or of `member` of the archive that it is."""
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
