"""`anchoreval train`: trains a model under attention variants and a RoPE level; the same command again goes on.

One variant and seed is trained here; of a list each is a process of its own, one after the other.
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anchoreval.cli import options as shared
from anchoreval.cli.console import note, say
from anchoreval.cli.options import Option
from anchoreval.errors import AnchorEvalError

if TYPE_CHECKING:
    from anchoreval.training.recipes import RecipeCard, Training

#: What a recipe states and a flag of the same name overrides.
_OF_RECIPES = ("length", "rope", "steps", "batch_tokens", "save_every")


def flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command."""
    shared.add(parser, "model", required=False, about="a card of models/, a folder or a hub id (default: the recipe's)")
    shared.add(parser, own=_OWN)
    shared.add(parser, "output", required=True, default=None, about="holds DIR/VARIANT-ROPE-SEED")


def positive_number(text: str) -> float:
    """Return a finite number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not (0 < value < math.inf):
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is no number above 0, such as 5e6")
    return value


def seed(text: str) -> int:
    """Return a whole number from 0."""
    if not (text.isascii() and text.isdigit() and len(text) <= 9):
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is no seed: a whole number from 0, of 9 digits at most")
    return int(text)


_OWN = {
    "data": Option("what `data pack` wrote (default: the recipe's)", kind=Path, metavar="STORE"),
    "variant": Option(
        "full, intra-doc, intra-doc-reset, anchor, anchor-tag, intra-doc-interleaved, anchor-interleaved",
        metavar="NAME,NAME", required=True,
    ),
    "recipe": Option("numbers out of models/recipes/; other flags override them", metavar="NAME"),
    "length": Option("tokens of a window", kind=shared.length, metavar="N"),
    "rope": Option("RoPE level: bf16, fp32, bf16-table, ...", metavar="LEVEL,LEVEL"),
    "rope_theta": Option("base of plain RoPE: 5e6", kind=positive_number, metavar="N"),
    "rope_type": Option(
        "keep: a static type (llama3, yarn) as it is; default: plain RoPE with --rope-theta",
        choices=("keep", "default"),
    ),
    "steps": Option("steps of the optimizer", kind=shared.positive, metavar="N"),
    "batch_tokens": Option("tokens of a step, over all processes", kind=shared.length, metavar="N"),
    "lr": Option("learning rate (default: 2e-5)", kind=positive_number, metavar="N"),
    "save_every": Option("steps between checkpoints (default: 100)", kind=shared.positive, metavar="N"),
    "seed": Option("of the order of documents", 0, seed),
    "seeds": Option("seeds 0 to N-1, one after the other", kind=shared.positive, metavar="N"),
    "document_start": Option(
        "none: no anchor in front of documents, of the variants that need none", "anchor", choices=("anchor", "none")
    ),
    "report_to": Option("tensorboard, wandb, ...: what else Trainer reports to", "", metavar="NAME,NAME"),
    "deterministic": Option("the same bits again on a GPU, more slowly (a CPU gives them anyway)", False),
}  # fmt: skip


def main(options: argparse.Namespace) -> int:
    """Train; print the folders of the trained models on stdout."""
    from anchoreval.training.recipes import recipe_of

    if options.seeds is not None and "seed" in options.given:
        raise AnchorEvalError("--seed and --seeds: one of them names the seeds")
    recipe = None if options.recipe is None else recipe_of(options.recipe)
    trainings = list(_asked(options, recipe))
    model, data = _model(options, recipe), _data(options, recipe)
    if len(trainings) > 1:
        if "RANK" in os.environ:
            raise AnchorEvalError("several variants, levels or seeds: torchrun trains one of them, name one")
        _generate(options, recipe, model, data)
        return _children(options, trainings)
    from anchoreval.training.loop import How, train

    training = trainings[0]
    _generate(options, recipe, model, data)
    report = tuple(filter(None, options.report_to.split(",")))
    save_every = options.save_every or (recipe.save_every if recipe else 100)
    how = How(options.output, save_every, recipe.keep if recipe else 5, report, options.deterministic)
    folder = train(model, data, training, how, note)
    if int(os.environ.get("RANK", "0")) == 0:
        say(str(folder))
    return 0


def _asked(options: argparse.Namespace, recipe: RecipeCard | None) -> Iterator[Training]:
    """Every training that is asked for, each checked as far as no model is needed."""
    from anchoreval.training.attention import level_of
    from anchoreval.training.recipes import Hyper, Training
    from anchoreval.training.variants import starts_of, variant_of

    given: dict[str, Any] = {
        name: getattr(options, name) or (getattr(recipe, name) if recipe else None) for name in _OF_RECIPES
    }
    del given["save_every"]
    if missing := [f"--{name.replace('_', '-')}" for name, value in given.items() if value is None]:
        raise AnchorEvalError(f"{', '.join(missing)} must be given, or --recipe NAME that states them")
    hyper = recipe.hyper if recipe else Hyper()
    if options.lr is not None:
        hyper = Hyper(**{name: getattr(hyper, name) for name in Hyper.__dataclass_fields__} | {"lr": options.lr})
    theta = options.rope_theta or (_theta(options, recipe) if recipe else None)
    for variant in options.variant.split(","):
        starts_of(variant_of(variant), options.document_start)
        for rope in given["rope"].split(",") if not given["rope"].startswith("rope:") else [given["rope"]]:
            level_of(rope)
            for number in range(options.seeds) if options.seeds else [options.seed]:
                training = Training(
                    variant=variant,
                    rope=rope,
                    length=given["length"],
                    steps=given["steps"],
                    batch_tokens=given["batch_tokens"],
                    seed=number,
                    theta=theta,
                    rope_type=options.rope_type,
                    document_start=options.document_start,
                    hyper=hyper,
                    recipe=options.recipe,
                )
                assert training.windows_per_step
                yield training


def _theta(options: argparse.Namespace, recipe: RecipeCard) -> float | None:
    """Return the theta that the recipe states for models of this one's theta; None if it states none."""
    from anchoreval.training.checkpoints import config_of, folder_of_model

    if not recipe.theta:
        return None
    config = config_of(folder_of_model(_model(options, recipe), weights=False))
    own = (config.get("rope_parameters") or {}).get("rope_theta", config.get("rope_theta"))
    return recipe.theta.get(int(own)) if isinstance(own, int | float) else None


def _model(options: argparse.Namespace, recipe: RecipeCard | None) -> str:
    model = options.model or (recipe.model if recipe else None)
    if model is None:
        raise AnchorEvalError("--model names the checkpoint to start from: a card of models/, a folder or a hub id")
    return str(model)


def _data(options: argparse.Namespace, recipe: RecipeCard | None) -> Path:
    if options.data is not None:
        return Path(options.data)
    if recipe is None or recipe.corpus_tokens is None:
        how = "anchoreval data pack --data FILE --tokenizer M --output STORE makes one"
        raise AnchorEvalError(f"--data STORE must be given: {how}{f' ({recipe.data})' if recipe else ''}")
    return Path(options.output) / "store"


def _generate(options: argparse.Namespace, recipe: RecipeCard | None, model: str, data: Path) -> None:
    """Write the generated text of a recipe, once for all of its trainings."""
    if options.data is not None or recipe is None or recipe.corpus_tokens is None or data.is_dir():
        return
    from anchoreval.tokenizer import load_tokenizer
    from anchoreval.training.checkpoints import folder_of_model
    from anchoreval.training.store import pack
    from anchoreval.training.tiny.examples import generated

    if int(os.environ.get("RANK", "0")) != 0:
        raise AnchorEvalError(f"{data} is not there yet: run the command once in one process, which writes it")
    folder = folder_of_model(model)
    note(f"generating {recipe.corpus_tokens:,} tokens of text in {data}")
    pack(generated(folder, recipe.corpus_tokens, recipe.length), load_tokenizer(folder), data)


def _children(options: argparse.Namespace, trainings: list[Training]) -> int:
    """Train each in a process of its own, one after the other; the first exit code that is not 0 ends the list."""
    from anchoreval.records.command import words_of

    given = {name: getattr(options, name) for name in ("model", "output", *_OWN)} | {"seeds": None}
    for number, training in enumerate(trainings, 1):
        note(f"{number} of {len(trainings)}: {training.name}")
        own = {"variant": training.variant, "rope": training.rope, "seed": training.seed}
        words = [sys.executable, "-m", "anchoreval", "train", *words_of(given | own)]
        code = subprocess.run(words, check=False).returncode
        if code:
            note(f"anchoreval: {training.name} ended with exit code {code}; the same command goes on there")
            return code if code > 0 else 1
    return 0
