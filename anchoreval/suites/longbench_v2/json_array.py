"""Read the objects of a file that is one JSON array one at a time; the whole file is never in memory."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from anchoreval.errors import SourceError
from anchoreval.schema import Json

CHUNK = 1 << 20  # characters
NEAR_THE_END = 16  # characters: longer than any literal or escape that the end of a window can cut
_BLANKS = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()


class _Window:
    """The part of a text that is in memory; `passed` characters of the text lie before it."""

    def __init__(self, text: TextIO, chunk: int) -> None:
        self._text, self._chunk = text, chunk
        self.held, self.at, self.passed = "", 0, 0

    def more(self) -> bool:
        """Read on and return True if the text went on.

        At least as many characters are read as are held unused, so that long objects cost linear time.
        """
        new = self._text.read(max(self._chunk, len(self.held) - self.at))
        self.passed += self.at
        self.held, self.at = self.held[self.at :] + new, 0
        return bool(new)

    def peek(self) -> str:
        """Return the next character that is no blank, or "" at the end of the text."""
        while True:
            blanks = _BLANKS.match(self.held, self.at)
            self.at = blanks.end() if blanks else self.at
            if self.at < len(self.held):
                return self.held[self.at]
            if not self.more():
                return ""

    def value(self) -> Json:
        """Return the value that begins here; raise ValueError if it is broken or the text ends inside it."""
        while True:
            try:
                value, self.at = _DECODER.raw_decode(self.held, self.at)
                return value
            except json.JSONDecodeError as error:
                unfinished = error.msg.startswith("Unterminated string")
                if not unfinished and error.pos < len(self.held) - NEAR_THE_END:
                    raise ValueError(f"{error.msg} at character {self.passed + error.pos}") from None
                if not self.more():
                    raise ValueError("the file ends inside it") from None
            except RecursionError:
                raise ValueError("nested too deeply") from None


def objects(path: Path, chunk: int = CHUNK) -> Iterator[dict[str, Json]]:
    """Yield the objects of the array in order; about twice the size of the longest object is held at a time.

    Raise SourceError that names the file, the element and what is wrong: no UTF-8, no array, an element that is broken,
    cut off or no object, or text behind the array. The objects before the wrong one have been yielded by then.
    """
    with path.open(encoding="utf-8", newline="") as text:
        window, number = _Window(text, chunk), 0
        try:
            if window.peek() != "[":
                hint = "; a git-lfs pointer must be replaced by its file" * window.held.startswith("version")
                raise ValueError(f"expected a JSON array, found {window.held[:20]!r}{hint}")
            window.at += 1
            end = window.peek() == "]"
            while not end:
                if window.peek() != "{":
                    raise ValueError(f"expected an object, found {window.peek() or 'the end of the file'!r}")
                value = window.value()
                number += 1
                yield value
                mark = window.peek()
                if mark not in (",", "]"):
                    found = mark or "the end of the file"
                    raise ValueError(f"expected a comma or the end of the array, found {found!r}")
                end = mark == "]"
                window.at += not end
            window.at += 1
            if window.peek():
                raise ValueError(f"the text goes on behind the array with {window.peek()!r}")
        except UnicodeDecodeError as error:
            raise SourceError(f"{path}: behind element {number}: not UTF-8 ({error.reason})") from None
        except ValueError as error:
            raise SourceError(f"{path}: {f'behind element {number}: ' * bool(number)}{error}") from None
