"""`transformers.Trainer`, unsubclassed, as each training here calls it: arguments, folder, log, resume, failures.

What it leaves beside its weights is written by one callback:

    log.csv     step, loss, learning rate, tokens, targets, documents, density, operations: the same bytes when resumed
    speed.csv   step, seconds, tokens per second, peak memory: of each process that ran

A loss that is not finite stops the training before its step is saved. The card is written into each checkpoint. A kill
loses the steps since the last whole checkpoint; another training in the same folder is refused.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import logging
import math
import resource
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from anchoreval.errors import MissingExtra, RunError, UnknownName, UnsupportedArm
from anchoreval.files import write_errors, write_whole
from anchoreval.training.checkpoints import ASKED, checkpoints, complete, delete, torn
from anchoreval.training.recipes import Hyper, differing
from anchoreval.training.store import Shape
from anchoreval.training.variants import NO_TARGET, Row

Tell = Callable[[str], None]
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
        tell: Tell,
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

        now = time.monotonic()
        seconds, self._before = now - self._before, now
        cuda = torch.cuda.is_available()  # the most memory so far of the GPU, else of the process
        peak = torch.cuda.max_memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        if not (self.folder / SPEED).is_file():
            self._append(SPEED, ("step", "seconds", "tokens_per_second", "peak_bytes"))
        self._append(SPEED, (step, f"{seconds:.3f}", f"{tokens / seconds:.1f}", peak))
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
        held = (weight.to_local() if hasattr(weight, "to_local") else weight for weight in model.parameters())
        if not all(bool(weight.detach().isfinite().all()) for weight in held):  # of what this process holds
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


def _lines(rows: Any) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    return out.getvalue()


def arguments_of(
    folder: Path, steps: int, hyper: Hyper, seed: int, save_every: int, keep: int, **of_device: Any
) -> Any:
    """Return Trainer's own arguments; they set up the processes. MissingExtra without accelerate."""
    if find_spec("accelerate") is None:
        raise MissingExtra("training needs accelerate: pip install 'anchoreval[train]'")
    from transformers import TrainingArguments

    return TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=1,
        max_steps=steps,
        learning_rate=hyper.lr,
        lr_scheduler_type=hyper.schedule if hyper.schedule == "linear" else "constant_with_warmup",
        warmup_steps=hyper.warmup_steps,
        weight_decay=hyper.weight_decay,
        adam_beta1=hyper.beta1,
        adam_beta2=hyper.beta2,
        adam_epsilon=hyper.epsilon,
        max_grad_norm=hyper.clip,
        optim="adamw_torch_fused",
        train_sampling_strategy="sequential",
        remove_unused_columns=False,
        average_tokens_across_devices=True,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_steps=save_every,
        save_total_limit=max(2, keep),
        use_cache=True,  # of the configuration that is saved; the loss asks for none
        disable_tqdm=True,
        seed=seed,
        **of_device,
    )


def fit(
    model: Any,
    arguments: Any,
    windows: Any,
    collate: Callable[[list[Any]], dict[str, Any]],
    log: Log,
    checkpoint: Path | None,
    optimizers: tuple[Any, Any] = (None, None),
) -> Any:
    """Run Trainer from a checkpoint (None: from the start) to its last step; what a save raises is one line."""
    from transformers import PrinterCallback, Trainer

    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=windows,
        data_collator=collate,
        callbacks=[log.callback()],
        optimizers=optimizers,
    )
    trainer.remove_callback(PrinterCallback)
    if arguments.fsdp:
        trainer.accelerator.state.fsdp_plugin.mixed_precision_policy = fsdp_policy()
    try:
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    except Stopped as error:
        stopped = RunError(str(error))
        stopped.while_running = f"at step {error.step} of {log.steps}"
        raise stopped from error
    except Exception as error:
        if log.saving is None or isinstance(error, UnsupportedArm):
            raise
        # Delete the checkpoint that could not be written; name the one that stands.
        path = log.folder / f"checkpoint-{log.saving}"
        delete(path)
        whole = next((each.name for _, each in checkpoints(log.folder) if torn(each) is None), None)
        line = " ".join(str(error).split())[:160]
        stands = f"{whole} is whole" if whole else "there is no checkpoint yet"
        failed = RunError(f"cannot write {path}: {line}; {stands}")
        failed.while_running = f"after {log.saving} of {log.steps} steps"
        failed.goes_on = "the same command goes on from there"
        raise failed from error


def fsdp_policy() -> Any:
    """Return what FSDP2 computes in: bf16 products, float32 sums over ranks, and inputs of layers left as they are.

    accelerate's own policy rounds cos and sin to bf16 at each layer (cast_forward_inputs) and sums gradients in bf16.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy

    return MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)


def require_reports(names: tuple[str, ...]) -> None:
    """Raise UnknownName for what Trainer cannot report to, MissingExtra for what is not installed."""
    from transformers.integrations import get_available_reporting_integrations
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    for name in names:
        if name not in INTEGRATION_TO_CALLBACK:
            raise UnknownName("place to report to", name, INTEGRATION_TO_CALLBACK)
        if name not in get_available_reporting_integrations():
            raise MissingExtra(f"--report-to {name}: it is not installed: pip install {name}")


def require_own(folder: Path, facts: dict[str, Any]) -> None:
    """Raise RunError where the folder is of another training."""
    path = folder / ASKED
    if not path.is_file():
        if checkpoints(folder):
            raise RunError(f"{folder} has checkpoints and no {ASKED}: --output names another folder")
        return
    try:
        stood = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read: {error}: move the folder away") from error
    if others := differing(facts, stood if isinstance(stood, dict) else {}):
        raise RunError(f"{folder} holds another training ({'; '.join(others)}): --output names another folder")


def resumed(folder: Path, steps: int, tell: Tell) -> Path | None:
    """Return the newest whole checkpoint; name torn ones and leave them where Trainer will write over them."""
    for step, path in checkpoints(folder):
        if (why := torn(path)) is None:
            tell(f"{folder.name}: goes on from step {step} of {steps}")
            return path
        tell(f"{path} is torn ({why}): skipped")
    return None


def step_of(checkpoint: Path) -> int:
    """Return the number of steps behind a checkpoint."""
    return int(checkpoint.name.rpartition("-")[2])


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No progress bars of the library inside the block: a training tells where it is by itself."""
    from transformers.utils import logging as of_transformers

    shown, level = of_transformers.is_progress_bar_enabled(), of_transformers.get_verbosity()
    of_transformers.disable_progress_bar()
    of_transformers.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        of_transformers.set_verbosity(level)
        if shown:
            of_transformers.enable_progress_bar()
