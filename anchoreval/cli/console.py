"""What commands and libraries write on stdout and stderr, and the progress of work.

Characters that control a terminal, or hide or reorder its text, are spelled out. If stderr cannot be written, work goes
on. If stdout cannot be written, the user sees one line of error.

Progress says how much is done, rate, time left and what is being computed. A terminal shows a live line. A log or a
pipe gets a line every EVERY_S seconds from a timer, so that a single long prompt or a loading model shows too.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from anchoreval.errors import AnchorEvalError, RunError
from anchoreval.schema import Progress

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
EVERY_S = 20.0


class StdoutLost(Exception):
    """Raised if results cannot be printed: the reader of the pipe has gone, or the disk is full."""


def spelled(text: str) -> str:
    r"""Return the text with every character that a terminal obeys or hides written out: `\x1b`, `\u202e`, `\ud800`."""

    def escape(match: re.Match[str]) -> str:
        number = ord(match[0])
        return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"

    return _UNSEEN.sub(escape, text)


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


@dataclass(eq=False)
class Visible:
    """A text stream that spells out hidden characters in what is written to `stream` (None if the process has none).

    A carriage return at either end of a text is kept, since progress bars of libraries begin and end with one. A failed
    write raises StdoutLost if the stream carries `results`; otherwise the text is dropped.
    """

    stream: Any
    results: bool

    def write(self, text: str) -> int:
        """Write the text with hidden characters spelled out; return the length of the text as given."""
        try:
            if self.stream is None:
                raise OSError("it is closed")
            if "\x1b" in text and _MOVES.fullmatch(text):
                shown = text if self.isatty() else ""
            else:
                start = "\r" if text.startswith("\r") else ""
                rest = text[len(start) :]
                end = next((ending for ending in ("\r", "\r\n") if rest.endswith(ending)), "")
                shown = start + spelled(rest.removesuffix(end)) + end
                encoding = getattr(self.stream, "encoding", None) or "utf-8"
                shown = shown.encode(encoding, "backslashreplace").decode(encoding)
            self.stream.write(shown)
        except (OSError, ValueError) as error:
            self._lose(error)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Flush `stream`."""
        if self.stream is not None:
            try:
                self.stream.flush()
            except (OSError, ValueError) as error:
                self._lose(error)

    def isatty(self) -> bool:
        """Return whether `stream` is a terminal."""
        return self.stream is not None and bool(self.stream.isatty())

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def _lose(self, error: OSError | ValueError) -> None:
        """Silence the stream after a failed write, and raise StdoutLost if it carries results.

        Its file descriptor then leads to os.devnull, so that the interpreter's last flush prints no error. ValueError
        means that the file object is closed.
        """
        with contextlib.suppress(OSError, ValueError, AttributeError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.stream.fileno())
            os.close(nowhere)
        if self.results:
            why = "its reader has gone" if isinstance(error, BrokenPipeError) else getattr(error, "strerror", None)
            raise StdoutLost(f"stdout cannot be written ({why or error})") from error


class Way(Progress):
    """Progress that counts work; `line` describes where it stands."""

    def __init__(self, total: int | None, unit: str = "records", clock: Callable[[], float] = time.monotonic) -> None:
        self.total, self.stage, self._unit, self._clock = total or 0, total == 0, unit, clock
        self._start, self.done, self._new, self._what = clock(), 0, 0, ""

    def __call__(self, done: int) -> None:
        """Count work that was done in this process."""
        self.done += done
        self._new += done

    def had(self, done: int) -> None:
        """Count work that was already done before; it does not enter the rate."""
        self.done += done

    def at(self, what: str) -> None:
        """Name what is being computed."""
        self._what = what

    def reach(self, done: int, total: int) -> None:
        """Set how much is done and how much there is, for work that is counted elsewhere."""
        if self.total:  # what was there at first is of an earlier try
            self._new += done - self.done
        self.done, self.total = done, total

    def line(self) -> str:
        """Return `12 of 60 records, 1.3 a second, 37 s left; ruler/vt at 4,096, fp32`, or name and time of a stage."""
        elapsed = self._clock() - self._start
        if not self.total:
            return f"{self._what or 'at work'}, for {duration(elapsed)} so far"
        parts = [f"{min(self.done, self.total):,} of {self.total:,} {self._unit}"]
        if self._new and elapsed > 0:
            rate = self._new / elapsed
            parts += [rate_words(rate), f"{duration(max(0, self.total - self.done) / rate)} left"]
        else:
            parts.append(f"none new in {duration(elapsed)}")
        return ", ".join(parts) + (f"; {self._what}" if self._what else "")


def rate_words(rate: float) -> str:
    """Return `1.3 a second`, `4.2 a minute` or `2.0 an hour`."""
    for factor, unit in ((1, "a second"), (60, "a minute")):
        if rate * factor >= 1:
            return f"{rate * factor:,.1f} {unit}"
    return f"{rate * 3600:,.1f} an hour"


def duration(seconds: float) -> str:
    """Return `42 s`, `12 min 5 s`, `3 h 20 min` or `2 d 4 h`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


@contextlib.contextmanager
def shown(
    total: int | None, unit: str = "records", goes_on: str = "", every_s: float | None = None, what: str = ""
) -> Iterator[Way]:
    """Yield a Progress that is shown on stderr unless -q is given; a `total` of None is one that `reach` will tell.

    An error that ends the work gets the attributes `while_running`, how far it got, and `goes_on`, how to continue.
    """
    way = Way(total, unit)
    way.at(what)
    display: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
    if not QUIET.get():
        on_terminal = sys.stderr is not None and sys.stderr.isatty()
        display = _live(way) if on_terminal else told(way, note, EVERY_S if every_s is None else every_s)
    try:
        with display:
            yield way
    except (AnchorEvalError, OSError) as error:
        if not total:
            raise
        failure = error if isinstance(error, AnchorEvalError) else RunError(str(error))
        failure.while_running, failure.goes_on = f"after {way.done:,} of {total:,} {unit}", goes_on
        if failure is error:
            raise
        raise failure from error


#: The progress of the work at hand, innermost last: only that one is told.
_OPEN: list[Way] = []


@contextlib.contextmanager
def told(way: Way, tell: Callable[[str], None], every_s: float) -> Iterator[None]:
    """Call `tell` with the progress line every `every_s` seconds inside the block, from a thread of its own."""
    over = threading.Event()

    def lines() -> None:
        while not over.wait(every_s):
            if _OPEN[-1:] == [way]:
                tell(way.line())

    teller = threading.Thread(target=lines, name="progress", daemon=True)
    _OPEN.append(way)
    teller.start()
    try:
        yield
    finally:
        _OPEN.remove(way)
        over.set()
        teller.join(timeout=1.0)


@contextlib.contextmanager
def _live(way: Way) -> Iterator[None]:
    """Redraw a line on the terminal inside the block.

    A stage gets no line, because the model prints its own lines while it loads.
    """
    if way.stage:
        yield
        return
    from rich.console import Console
    from rich.progress import BarColumn, ProgressColumn, Task
    from rich.progress import Progress as Bars
    from rich.text import Text

    class Line(ProgressColumn):
        """The progress line, worded as in a log."""

        def render(self, task: Task) -> Text:
            bar.update(task.id, completed=way.done, total=way.total or None)
            return Text(spelled(way.line()), no_wrap=True, overflow="ellipsis")

    stream: Any = sys.stderr.stream if isinstance(sys.stderr, Visible) else sys.stderr
    drawn: Any = Console(file=stream, no_color=False)
    same = sys.stdout is not None and sys.stdout.isatty()  # results on the same terminal go through the bar
    bar = Bars(BarColumn(bar_width=20), Line(), console=drawn, transient=True, redirect_stdout=same)
    with bar:
        bar.add_task("work", total=way.total or None)
        with visible():
            yield
