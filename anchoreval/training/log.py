"""What a training leaves beside its weights, as one callback of Trainer.

    log.csv     step, loss, learning rate, tokens, targets, documents, density, operations: the same bytes when resumed
    speed.csv   step, seconds, tokens per second, peak memory: of each process that ran

A loss that is not finite stops the training before its step is saved. The card is written into each checkpoint.
"""

from __future__ import annotations

import csv
import io
import math
import resource
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from anchoreval.files import write_errors, write_whole
from anchoreval.training.checkpoints import complete
from anchoreval.training.statistics import Shape
from anchoreval.training.variants import NO_TARGET, Row

LOG, SPEED = "log.csv", "speed.csv"
COLUMNS = ("step", "loss", "lr", "grad_norm", "tokens", "targets", "documents", "density", "operations")


class Stopped(Exception):
    """Raised inside Trainer where training cannot go on behind a step."""

    def __init__(self, step: int, why: str) -> None:
        super().__init__(f"{why}: stopped before it was saved; a lower --lr, or cleaner data")
        self.step = step


class Steps(Protocol):
    """What is known of steps beforehand."""

    def step(self, number: int) -> list[Row]:
        """Return the windows of a step, counted from 1."""
        ...


class Log:
    """The files of one training; only the main process writes."""

    def __init__(
        self,
        folder: Path,
        windows: Steps,
        shape: Shape | None,
        main: bool,
        tell: Callable[[str], None],
        base: Path,
        card: dict[str, Any],
    ) -> None:
        self.folder, self.windows, self.shape, self.main = folder, windows, shape, main
        self.tell, self.base, self.card = tell, base, card
        self.steps = int(card["steps"])
        self.saving: int | None = None
        self.under: Any = None
        self._told = self._before = self._start = time.monotonic()
        self._began = 0

    def begin(self, step: int) -> None:
        """Cut the log behind the step that is resumed, so that it goes on as if it had never stopped."""
        self._began, self._told = step, 0.0
        self._before = self._start = time.monotonic()
        if not self.main:
            return
        path = self.folder / LOG
        rows = list(csv.reader(path.read_text("utf-8").splitlines())) if path.is_file() else []
        kept = [row for row in rows[1:] if len(row) == len(COLUMNS) and row[0].isdigit() and int(row[0]) <= step]
        write_whole(path, [_lines([COLUMNS, *kept])])

    def row(self, step: int, logs: dict[str, Any]) -> None:
        """Write a step's row; Stopped where its loss is not finite."""
        loss = float(logs["loss"])
        norm = logs.get("grad_norm")
        if not math.isfinite(loss) or (norm is not None and not math.isfinite(float(norm))):
            what = f"the loss is {loss}" if not math.isfinite(loss) else f"the norm of the gradient is {norm}"
            raise Stopped(step, f"step {step}: {what}")
        if not self.main:
            return
        rows = self.windows.step(step)
        tokens, lengths = sum(row.ids.size for row in rows), np.concatenate([row.lengths for row in rows])
        density = float((lengths.astype(np.float64) ** 2).sum() / sum(float(row.ids.size) ** 2 for row in rows))
        operations = self.shape.linear(tokens) + self.shape.products(lengths) if self.shape else ""
        targets = sum(int((row.labels != NO_TARGET).sum()) for row in rows)
        values = (step, repr(loss), repr(float(logs["learning_rate"])), "" if norm is None else repr(float(norm)))
        self._append(LOG, (*values, tokens, targets, len(lengths), f"{density:.4f}", operations))
        self._speed(step, loss, tokens)

    def _speed(self, step: int, loss: float, tokens: int) -> None:
        now = time.monotonic()
        seconds, self._before = now - self._before, now
        if not (self.folder / SPEED).is_file():
            self._append(SPEED, ("step", "seconds", "tokens_per_second", "peak_bytes"))
        self._append(SPEED, (step, f"{seconds:.3f}", f"{tokens / seconds:.1f}", peak_bytes()))
        if now - self._told >= 5 or step == self.steps:
            self._told = now
            each = (now - self._start) / (step - self._began)
            left = timedelta(seconds=round(each * (self.steps - step)))
            self.tell(f"step {step}/{self.steps}: loss {loss:.4f}, {tokens / seconds:,.0f} tokens/s, {left} left")

    def _append(self, name: str, row: Any) -> None:
        with write_errors(self.folder / name), (self.folder / name).open("a", newline="", encoding="utf-8") as file:
            file.write(_lines([row]))

    def save(self, step: int, model: Any) -> None:
        """Write the tokenizer's files and the card, before Trainer writes the rest of the checkpoint of a step."""
        if not all(bool(weight.isfinite().all()) for weight in map(_local, model.parameters())):
            raise Stopped(step, f"step {step}: a weight is not finite")
        card = self.card | {"step": step}
        if self.under is not None:
            self.under.verify()
            card["rope_applied"] = self.under.as_json()
        if self.main:
            complete(self.folder / f"checkpoint-{step}", self.base, card)

    def callback(self) -> Any:
        """Return the callback that Trainer calls."""
        from transformers import TrainerCallback

        log = self

        class Written(TrainerCallback):  # type: ignore[misc]
            def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                log.begin(state.global_step)

            def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
                if logs and "loss" in logs:
                    log.row(state.global_step, logs)

            def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
                log.saving = None
                if control.should_save:
                    log.saving = state.global_step
                    log.save(state.global_step, model)

            def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                log.saving = None

        return Written()


def _local(weight: Any) -> torch.Tensor:
    """Return the part of a weight that this process holds."""
    part: torch.Tensor = weight.to_local() if hasattr(weight, "to_local") else weight
    return part.detach()


def peak_bytes() -> int:
    """Return the most memory so far: of the GPU where there is one, else of the process."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _lines(rows: Any) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    return out.getvalue()
