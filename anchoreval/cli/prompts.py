"""Prompts without a model, as the flags of `samples`, `show` and `bench samples` ask for them."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from anchoreval.cli import options as shared

if TYPE_CHECKING:
    from anchoreval.runs.loop import Plan
    from anchoreval.texts.sources import Sources


def sources_of(options: argparse.Namespace) -> Sources:
    """The sources that the flags ask for; without --haystack those of the model card whose tokenizer is used."""
    from anchoreval.cards import load_models
    from anchoreval.texts.sources import Sources

    card = load_models().get(options.tokenizer)
    haystack = options.haystack or (card.haystack if card else "published")
    context = not options.no_context
    return Sources(options.data_dir, haystack, options.wordlists, context=context, text=options.text)


def plan_of(options: argparse.Namespace, tasks: str, limit: int | None, lengths: list[int] | None = None) -> Plan:
    """The plan of the prompts alone."""
    from anchoreval.cards import select_tasks, with_settings
    from anchoreval.runs.loop import Plan, sized

    chosen, single = select_tasks(tasks)
    chosen = sized(with_settings(chosen, shared.chosen_settings(options)))
    given, sources, sizes = shared.template_args(options), sources_of(options), tuple(lengths) if lengths else None
    return Plan(tuple(chosen), sizes, (), limit, options.seed, options.template, sources, single, template_args=given)
