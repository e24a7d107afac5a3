"""`transformers.Trainer`, unsubclassed, as each training here calls it: arguments, folder, resume, failures.

A kill loses the steps since the last whole checkpoint; another training in the same folder is refused.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from anchoreval.errors import MissingExtra, RunError, UnknownName, UnsupportedArm
from anchoreval.training.checkpoints import ASKED, checkpoints, delete, torn
from anchoreval.training.log import Log, Stopped
from anchoreval.training.spec import Hyper, differing

Tell = Callable[[str], None]


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
        raise _not_saved(log, log.saving, error) from error


def _not_saved(log: Log, step: int, error: Exception) -> RunError:
    """Delete a checkpoint that could not be written; return the error that names the one that stands."""
    path = log.folder / f"checkpoint-{step}"
    delete(path)
    whole = next((each.name for _, each in checkpoints(log.folder) if torn(each) is None), None)
    line = " ".join(str(error).split())[:160]
    failed = RunError(f"cannot write {path}: {line}; {f'{whole} is whole' if whole else 'there is no checkpoint yet'}")
    failed.while_running = f"after {step} of {log.steps} steps"
    failed.goes_on = "the same command goes on from there"
    return failed


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
