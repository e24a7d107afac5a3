"""Several models in one call: each is its own run, as when it is asked for alone, one after the other in one process.

What would be refused of any of them is refused before the first is computed.
"""

from __future__ import annotations

import contextlib
import fnmatch
import glob
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from anchoreval.backends import capabilities_of, waves
from anchoreval.cards import load_models
from anchoreval.errors import AnchorEvalError, ModelError
from anchoreval.model.checkpoint import find_checkpoint
from anchoreval.records.run import Run
from anchoreval.runs.identity import training_card
from anchoreval.stats.contrasts import Trained
from anchoreval.training.checkpoints import unfinished

if TYPE_CHECKING:
    from anchoreval.runs.evaluate import Evaluation

Tell = Callable[[str], None]
_GLOB = re.compile(r"[*?\[]")


def models_named(asked: str | Sequence[str]) -> list[str]:
    """Return the models that a text or a list names: cards, folders, hub ids, and globs of cards and folders.

    A text is separated at commas, unless it is a folder as it is. A glob takes folders with a model or the traces of a
    training in them, numbers in ascending order. Raise ModelError if a glob matches nothing, or if nothing is named.
    """
    parts = [asked] if isinstance(asked, str) else list(asked)
    if isinstance(asked, str) and not _is_folder(asked):
        parts = [part.strip() for part in asked.split(",") if part.strip()]
    models = dict.fromkeys(model for part in parts for model in _matches(part))
    if not models:
        raise ModelError("--model names no model: a card of models/, a folder or a hub id")
    return list(models)


def _matches(part: str) -> list[str]:
    if not _GLOB.search(part) or _is_folder(part):
        return [part]
    folders = [path for path in glob.glob(str(Path(part).expanduser())) if _holds_model(Path(path))]
    matches = fnmatch.filter(load_models(), part) or sorted(folders, key=_numbers)
    if not matches:
        raise ModelError(f"--model {part}: no card and no folder with a model matches")
    return matches


def _is_folder(text: str) -> bool:
    try:
        return Path(text).expanduser().is_dir()
    except (OSError, RuntimeError, ValueError):
        return False


def _holds_model(folder: Path) -> bool:
    return (folder / "config.json").is_file() or (folder.is_dir() and unfinished(folder) is not None)


def _numbers(text: str) -> list[tuple[int, str]]:
    """Return a key that sorts `a-2` in front of `a-10`."""
    return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", text)]


def evaluate_each(models: Sequence[str], ask: Callable[[str, Tell], Evaluation], tell: Tell) -> list[Run]:
    """Return the run of every model, in order; `ask` checks what is asked of one, and gets where its notices go.

    Raise AnchorEvalError, with the model, for whatever would be refused of any of them, before anything is computed:
    models, lengths and samples, and arms, which are tried on one model of every architecture.
    """
    asked: dict[str, Evaluation] = {}
    for model in models_named(models):
        with _named(model):
            asked[model] = ask(model, partial(_tell_of, model, tell))
            require_whole(asked[model])
    for line in _unlike(asked):
        tell(line)
    tokenized, tried = set[object](), set[str]()
    for model, evaluation in asked.items():
        prompts = evaluation.prompts
        with _named(model):
            if (key := (prompts.model.tokenizer.sha256, prompts.model.window)) not in tokenized:
                prompts.cells()
                tokenized.add(key)
            shape = repr(sorted((name, repr(value)) for name, value in prompts.model.config.items()))
            if tried and shape not in tried:
                _try_arms(evaluation)
            tried.add(shape)
    runs = []
    for number, (model, evaluation) in enumerate(asked.items(), 1):
        tell(f"model {number} of {len(asked)}: {model}")
        runs.append(evaluation.run())
    return runs


def require_whole(evaluation: Evaluation) -> None:
    """Raise ModelError if a checkpoint is torn, of a training that has not ended, or without weights."""
    model = evaluation.prompts.model
    if why := unfinished(Path(model.checkpoint).expanduser()):
        raise ModelError(f"{model.asked}: {why}")
    if capabilities_of(evaluation.opening.backend).loads_checkpoint:
        find_checkpoint(model.checkpoint, adapters=True)


def _unlike(asked: Mapping[str, Evaluation]) -> Iterator[str]:
    """Yield, in words, why some samples of the models are no pairs, and which models are half trained."""
    models = {name: evaluation.prompts.model for name, evaluation in asked.items()}
    first = next(iter(models))
    for name, model in models.items():
        if model.tokenizer.sha256 != models[first].tokenizer.sha256:
            yield (
                f"{name} has another tokenizer than {first}: scores are compared where the texts are the same, "
                "log-probabilities per token are not"
            )
    longest = max((n for each in asked.values() for n in each.prompts.spec.lengths or ()), default=0)
    for name, model in models.items():
        if model.window is not None and model.window < longest:
            yield f"{name} has {model.window} positions: beyond them there are no pairs with the other models"
        trained = None if model.reader else Trained.of(training_card(model.folder) or {})
        if trained and trained.step < trained.steps:
            yield f"{name} is half trained: step {trained.step_words}"


def _tell_of(model: str, tell: Tell, line: str) -> None:
    tell(_about(model, line))


def _about(model: str, line: str) -> str:
    """Return the line with the model in front, unless it names it."""
    named = re.search(rf"(?<![\w/.-]){re.escape(model)}(?![\w-])", line)
    return line if named else f"{model}: {line}"


@contextlib.contextmanager
def _named(model: str) -> Iterator[None]:
    """Let errors inside the block name the model."""
    try:
        yield
    except AnchorEvalError as error:
        error.args = (_about(model, str(error)),)
        raise


def _try_arms(evaluation: Evaluation) -> None:
    """Open the model and install every arm once, as its run will."""
    engine = evaluation.open()
    try:
        for arms in waves(evaluation.opening.backend, evaluation.prompts.spec.arms):
            for arm in arms:
                with engine.under(arm):
                    pass
    finally:
        engine.close()
