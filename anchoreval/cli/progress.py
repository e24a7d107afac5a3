"""Progress of work: how much is done, rate, time left and what is being computed.

A terminal shows a live line. A log or a pipe gets a line every EVERY_S seconds from a timer, so that a single long
prompt or a loading model shows too.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from anchoreval.cli import console
from anchoreval.errors import AnchorEvalError, RunError
from anchoreval.schema import Progress

EVERY_S = 20.0


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
    """Yield a Progress that is shown on stderr; a `total` of None is one that `reach` will tell.

    An error that ends the work gets the attributes `while_running`, how far it got, and `goes_on`, how to continue.
    """
    way = Way(total, unit)
    way.at(what)
    try:
        with _display(way, EVERY_S if every_s is None else every_s):
            yield way
    except AnchorEvalError as error:
        if total:
            error.while_running = f"after {way.done:,} of {total:,} {unit}"
            error.goes_on = goes_on
        raise
    except OSError as error:
        if not total:
            raise
        run_error = RunError(str(error))
        run_error.while_running, run_error.goes_on = f"after {way.done:,} of {total:,} {unit}", goes_on
        raise run_error from error


def _display(way: Way, every_s: float) -> contextlib.AbstractContextManager[None]:
    """Return the block in which the progress is shown: nowhere if -q is given, live on a terminal, else in lines."""
    if console.QUIET.get():
        return contextlib.nullcontext()
    return _live(way) if console.on_terminal() else told(way, console.note, every_s)


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
            return Text(console.spelled(way.line()), no_wrap=True, overflow="ellipsis")

    drawn: Any = Console(file=console.terminal(), no_color=False)
    same = sys.stdout is not None and sys.stdout.isatty()  # results on the same terminal go through the bar
    bar = Bars(BarColumn(bar_width=20), Line(), console=drawn, transient=True, redirect_stdout=same)
    with bar:
        bar.add_task("work", total=way.total or None)
        with console.visible():
            yield
