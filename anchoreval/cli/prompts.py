"""Make prompts without a model, for the flags of `samples` and `show`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from anchoreval.cli import options as shared

if TYPE_CHECKING:
    from anchoreval.runs.prompts import Prompts


def prompts_of(
    options: argparse.Namespace, tasks: str, limit: int | None, lengths: Sequence[int] | None = None
) -> Prompts:
    """Return the prompts that the flags ask for, made with the tokenizer alone."""
    from anchoreval.cards import load_models
    from anchoreval.model import Model, tokenizer_of
    from anchoreval.runs.prompts import Prompts, Spec

    card = load_models().get(options.tokenizer)
    run_spec = Spec.of(
        tasks,
        settings={name: getattr(options, name) for name in shared.OF_SUITES},
        lengths=lengths,
        limit=limit,
        seed=options.seed,
        template=options.template or (card.template if card else "base"),
        template_args=options.template_args,
        haystack=options.haystack or (card.haystack if card else "published"),
        data_dir=options.data_dir,
        text=options.text,
        wordlists=options.wordlists,
        context=not options.no_context,
        offline=options.offline,
    )
    return Prompts(run_spec, Model.of_tokenizer(tokenizer_of(options.tokenizer)))
