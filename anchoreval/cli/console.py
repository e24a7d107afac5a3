"""Output of commands and libraries on stdout and stderr.

Characters that control a terminal, or hide or reorder its text, are spelled out. If stderr cannot be written, work goes
on. If stdout cannot be written, the user sees one line of error.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from typing import Any

# C0 except tab and newline, DEL, C1, soft hyphen, Arabic and Mongolian marks, zero-width and bidirectional marks, line
# and paragraph separators, invisible operators, byte order mark, interlinear annotations, tags, lone surrogates
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff"
    "\ufff9-\ufffb\U000e0000-\U000e007f]"
)
#: Progress bars of libraries write these, alone, to move the cursor between their lines.
_MOVES = re.compile("(?:\n|\x1b\\[A)+")
WIDTH = 160  # columns of a table when stdout is not a terminal
#: Whether progress is left out, as -q asks.
QUIET = ContextVar("QUIET", default=False)


class StdoutLost(Exception):
    """Raised if results cannot be printed: the reader of the pipe has gone, or the disk is full."""


def spelled(text: str) -> str:
    r"""Return the text with every character that a terminal obeys or hides written out: `\x1b`, `\u202e`, `\ud800`."""
    return _UNSEEN.sub(_escape, text)


def _escape(match: re.Match[str]) -> str:
    number = ord(match[0])
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def say(text: str) -> None:
    """Print a line of results on stdout and flush it; raise StdoutLost if that fails."""
    sys.stdout.write(spelled(text) + "\n")
    sys.stdout.flush()


def note(text: str) -> None:
    """Print a line on stderr; ignore a failure to write it."""
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(spelled(text) + "\n")
        sys.stderr.flush()


@contextlib.contextmanager
def visible() -> Iterator[None]:
    """Pass all that is written to sys.stdout and sys.stderr inside the block through `Visible`.

    Set NO_COLOR, because `Visible` would spell out colour codes too.
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


def width() -> int:
    """Return how many columns a wide table may have: those of the terminal, or WIDTH if stdout is none."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else WIDTH


def on_terminal() -> bool:
    """Return whether stderr is a terminal."""
    return sys.stderr is not None and sys.stderr.isatty()


def terminal() -> Any:
    """Return the stream behind sys.stderr, for code that draws on a terminal itself."""
    return sys.stderr.stream if isinstance(sys.stderr, Visible) else sys.stderr


class Visible:
    """A text stream that spells out hidden characters in what is written to `stream` (None if the process has none).

    A carriage return at either end of a text is kept, since progress bars of libraries begin and end with one. A failed
    write raises StdoutLost if the stream carries `results`; otherwise the text is dropped.
    """

    def __init__(self, stream: Any, results: bool) -> None:
        self.stream, self._results = stream, results

    def write(self, text: str) -> int:
        """Write the text with hidden characters spelled out; return the length of the text as given."""
        with self._kept():
            if self.stream is None:
                raise OSError("it is closed")
            self.stream.write(self._shown(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Flush `stream`."""
        if self.stream is not None:
            with self._kept():
                self.stream.flush()

    def isatty(self) -> bool:
        """Return whether `stream` is a terminal."""
        return self.stream is not None and bool(self.stream.isatty())

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def _shown(self, text: str) -> str:
        if "\x1b" in text and _MOVES.fullmatch(text):
            return text if self.isatty() else ""
        start = "\r" if text.startswith("\r") else ""
        rest = text[len(start) :]
        end = next((ending for ending in ("\r", "\r\n") if rest.endswith(ending)), "")
        shown = start + spelled(rest.removesuffix(end)) + end
        encoding = getattr(self.stream, "encoding", None) or "utf-8"
        return shown.encode(encoding, "backslashreplace").decode(encoding)

    @contextlib.contextmanager
    def _kept(self) -> Iterator[None]:
        """Silence the stream after a failed write, and raise StdoutLost if it carries results."""
        try:
            yield
        except (OSError, ValueError) as error:  # ValueError: the file object is closed
            silence(self.stream)
            if self._results:
                why = "its reader has gone" if isinstance(error, BrokenPipeError) else getattr(error, "strerror", None)
                raise StdoutLost(f"stdout cannot be written ({why or error})") from error


def silence(stream: Any) -> None:
    """Redirect the file descriptor of a failed stream to os.devnull.

    The interpreter's last flush then prints no error.
    """
    with contextlib.suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
