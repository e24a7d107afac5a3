"""Prompts without a model, as the flags of `samples`, `show` and `bench samples` ask for them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from anchoreval.prompt import Template
    from anchoreval.runs.loop import Plan
    from anchoreval.texts.sources import Sources
    from anchoreval.tokenizer import TextTokenizer


def sources_of(options: argparse.Namespace) -> Sources:
    """The sources that the flags ask for; without --haystack those of the model card whose tokenizer is used."""
    from anchoreval.cards import load_models
    from anchoreval.texts.sources import Sources

    card = load_models().get(options.tokenizer)
    haystack = options.haystack or (card.haystack if card else "published")
    return Sources(options.data_dir, haystack, options.wordlists, context=not options.no_context)


def plan_of(options: argparse.Namespace, tasks: str, limit: int | None, lengths: list[int] | None = None) -> Plan:
    """The plan of the prompts alone."""
    from anchoreval.cards import select_tasks, with_settings
    from anchoreval.cli.options import chosen_settings, template_args
    from anchoreval.runs.loop import Plan, sized

    chosen, single = select_tasks(tasks)
    chosen = sized(with_settings(chosen, chosen_settings(options)))
    template: Template = options.template
    given, sources = template_args(options), sources_of(options)
    sizes = tuple(lengths) if lengths else None
    return Plan(tuple(chosen), sizes, (), limit, options.seed, template, sources, single, template_args=given)


def tokenizer_of(name: str) -> TextTokenizer:
    """The tokenizer of a model card, a folder, a tokenizer.json or a hub id."""
    from anchoreval.cards import find_model
    from anchoreval.model import folder_of
    from anchoreval.tokenizer import load_tokenizer

    if Path(name).expanduser().is_file():
        return load_tokenizer(name)
    return load_tokenizer(folder_of(find_model(name)[1].checkpoint, weights=False))
