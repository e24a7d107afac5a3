"""Make prompts without a model, for the flags of `samples`, `show` and `bench samples`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from anchoreval.cli import options as shared

if TYPE_CHECKING:
    from anchoreval.runs.prompts import Prompts
    from anchoreval.texts.sources import HaystackKind


def haystack_of(options: argparse.Namespace) -> HaystackKind:
    """Return the haystack that is asked for, else that of the model card whose tokenizer is used."""
    from anchoreval.cards import load_models

    card = load_models().get(options.tokenizer)
    return options.haystack or (card.haystack if card else "published")


def prompts_of(
    options: argparse.Namespace, tasks: str, limit: int | None, lengths: Sequence[int] | None = None
) -> Prompts:
    """Return the prompts that the flags ask for, made with the tokenizer alone."""
    from anchoreval.model import Model, tokenizer_of
    from anchoreval.runs.prompts import Prompts
    from anchoreval.runs.spec import Spec

    run_spec = Spec.of(
        tasks,
        settings=shared.chosen_settings(options),
        lengths=lengths,
        limit=limit,
        seed=options.seed,
        template=options.template,
        template_args=shared.template_args(options),
        haystack=haystack_of(options),
        data_dir=options.data_dir,
        text=options.text,
        wordlists=options.wordlists,
        context=not options.no_context,
    )
    return Prompts(run_spec, Model.of_tokenizer(tokenizer_of(options.tokenizer)))
