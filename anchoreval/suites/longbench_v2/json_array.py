"""The objects of a file that is one JSON array, one at a time: the file is never whole in memory."""

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
    """The part of a text that is being read; `passed` characters of the text lie before it."""

    def __init__(self, text: TextIO, chunk: int) -> None:
        self._text, self._chunk = text, chunk
        self.held, self.at, self.passed = "", 0, 0

    def more(self) -> bool:
        """Whether there was more: as much again as is not used yet, so that long objects cost linear time."""
        new = self._text.read(max(self._chunk, len(self.held) - self.at))
        self.passed += self.at
        self.held, self.at = self.held[self.at :] + new, 0
        return bool(new)

    def peek(self) -> str:
        """The next character that is no blank, empty at the end of the text."""
        while True:
            blanks = _BLANKS.match(self.held, self.at)
            self.at = blanks.end() if blanks else self.at
            if self.at < len(self.held):
                return self.held[self.at]
            if not self.more():
                return ""

    def value(self) -> Json:
        """The value that begins here; ValueError when it is broken or the text ends in it."""
        while True:
            try:
                value, self.at = _DECODER.raw_decode(self.held, self.at)
                return value
            except json.JSONDecodeError as error:
                if not self._may_be_cut(error):
                    raise ValueError(f"{error.msg} at character {self.passed + error.pos}") from None
                if not self.more():
                    raise ValueError("the file ends inside it") from None
            except RecursionError:
                raise ValueError("nested too deeply") from None

    def _may_be_cut(self, error: json.JSONDecodeError) -> bool:
        return error.msg.startswith("Unterminated string") or error.pos >= len(self.held) - NEAR_THE_END


def objects(path: Path, chunk: int = CHUNK) -> Iterator[dict[str, Json]]:
    """Every object of the array in its order; about twice the longest one is held at a time.

    SourceError names the file, the element and what is wrong: no UTF-8, no array, an element that is broken, cut off
    or no object, a text that goes on behind the array. What precedes it has been given out by then.
    """
    with path.open(encoding="utf-8", newline="") as text:
        window, number = _Window(text, chunk), 0
        try:
            if window.peek() != "[":
                hint = "; a git-lfs pointer must be replaced by its file" * window.held.startswith("version")
                raise ValueError(f"expected a JSON array, found {window.held[:20]!r}{hint}")
            for value in _elements(window):
                number += 1
                yield value
        except UnicodeDecodeError as error:
            raise SourceError(f"{path}: behind element {number}: not UTF-8 ({error.reason})") from None
        except ValueError as error:
            raise SourceError(f"{path}: {f'behind element {number}: ' * bool(number)}{error}") from None


def _elements(window: _Window) -> Iterator[dict[str, Json]]:
    """What stands between the brackets; ValueError when that is not objects with commas in between."""
    window.at += 1
    end = window.peek() == "]"
    while not end:
        if window.peek() != "{":
            raise ValueError(f"expected an object, found {window.peek() or 'the end of the file'!r}")
        yield window.value()
        mark = window.peek()
        if mark not in (",", "]"):
            raise ValueError(f"expected a comma or the end of the array, found {mark or 'the end of the file'!r}")
        end = mark == "]"
        window.at += not end
    window.at += 1
    if window.peek():
        raise ValueError(f"the text goes on behind the array with {window.peek()!r}")
