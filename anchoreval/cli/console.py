"""Everything that is printed, by commands and by libraries alike: characters that drive, hide or reorder what a
terminal shows are spelled out, a stderr that cannot be written ends no work, and a stdout that cannot be written is one
line.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterable, Iterator
from typing import Any

# C0 but tab and newline, DEL, C1, soft hyphen, Arabic and Mongolian marks, zero-width and bidirectional marks, line and
# paragraph separators, invisible operators, byte order mark, interlinear annotations, tags, lone surrogates
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff"
    "\ufff9-\ufffb\U000e0000-\U000e007f]"
)
#: What progress bars of libraries write to move the cursor between their lines, and nothing else.
_MOVES = re.compile("(?:\n|\x1b\\[A)+")


class StdoutLost(Exception):
    """Raised where results cannot be printed: the reader of the pipe has gone, or the disk is full."""


def spelled(text: str) -> str:
    r"""Return the text with every character that a terminal obeys or hides written out: `\x1b`, `\u202e`, `\ud800`."""
    return _UNSEEN.sub(_escape, text)


def _escape(match: re.Match[str]) -> str:
    number = ord(match[0])
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def say(text: str) -> None:
    """Print a line of results on stdout, at once; StdoutLost where that cannot be done."""
    sys.stdout.write(spelled(text) + "\n")
    sys.stdout.flush()


def note(text: str) -> None:
    """Print a line on stderr; lost in silence where that cannot be done."""
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(spelled(text) + "\n")
        sys.stderr.flush()


@contextlib.contextmanager
def visible() -> Iterator[None]:
    """Let all that is written to sys.stdout and sys.stderr inside the block pass through `Visible`.

    Libraries are asked for text without colours, whose codes would be spelled out as well.
    """
    before, colours = (sys.stdout, sys.stderr), os.environ.get("NO_COLOR")
    sys.stdout, sys.stderr = Visible(before[0], results=True), Visible(before[1], results=False)
    os.environ["NO_COLOR"] = colours or "1"
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
        if colours is None:
            os.environ.pop("NO_COLOR", None)


def on_terminal() -> bool:
    """Return whether a terminal shows stderr."""
    return sys.stderr is not None and sys.stderr.isatty()


def terminal() -> Any:
    """Return the stream behind sys.stderr, for what draws on a terminal by itself."""
    return sys.stderr.stream if isinstance(sys.stderr, Visible) else sys.stderr


class Visible:
    """A text stream that spells what is written to `stream`, which is None where the process has none.

    A carriage return at either end of what is written stays, as progress bars of libraries begin and end with one. Of
    `results`, what cannot be written raises StdoutLost; of other text it is dropped.
    """

    def __init__(self, stream: Any, results: bool) -> None:
        self.stream, self._results = stream, results

    def write(self, text: str) -> int:
        """Write the text as a reader may see it; its length as it was given."""
        with self._kept():
            if self.stream is None:
                raise OSError("it is closed")
            self.stream.write(self._shown(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write each text."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Hand on what is held back."""
        if self.stream is not None:
            with self._kept():
                self.stream.flush()

    def isatty(self) -> bool:
        """Return whether a terminal shows it."""
        return self.stream is not None and bool(self.stream.isatty())

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def _shown(self, text: str) -> str:
        if "\x1b" in text and _MOVES.fullmatch(text):
            return text if self.isatty() else ""
        start = "\r" if text.startswith("\r") else ""
        rest = text[len(start) :]
        end = next((each for each in ("\r", "\r\n") if rest.endswith(each)), "")
        shown = start + spelled(rest.removesuffix(end)) + end
        encoding = getattr(self.stream, "encoding", None) or "utf-8"
        return shown.encode(encoding, "backslashreplace").decode(encoding)

    @contextlib.contextmanager
    def _kept(self) -> Iterator[None]:
        """Raise StdoutLost for a failed write of results, and hear no more of the stream either way."""
        try:
            yield
        except (OSError, ValueError) as error:  # ValueError: the file object is closed
            silence(self.stream)
            if self._results:
                why = "its reader has gone" if isinstance(error, BrokenPipeError) else getattr(error, "strerror", None)
                raise StdoutLost(f"stdout cannot be written ({why or error})") from error


def silence(stream: Any) -> None:
    """Point the descriptor of a stream that failed to nowhere, so that the interpreter's last flush says nothing."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
