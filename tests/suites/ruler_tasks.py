"""The thirteen tasks with their generators and arguments, as the suite card has them."""

from __future__ import annotations

from typing import Any

from anchoreval.schema import Sample, Tokenizer, Wrap
from anchoreval.suites import Recipe, generators
from anchoreval.suites.recipe import BASE
from anchoreval.texts.sources import Sources

TASKS: dict[str, tuple[str, dict[str, Any], int]] = {
    "niah_single_1": ("ruler_niah", {"haystack": "noise"}, 128),
    "niah_single_2": ("ruler_niah", {"haystack": "essay"}, 128),
    "niah_single_3": ("ruler_niah", {"haystack": "essay", "value_type": "uuids"}, 128),
    "niah_multikey_1": ("ruler_niah", {"haystack": "essay", "keys": 4}, 128),
    "niah_multikey_2": ("ruler_niah", {"haystack": "needle"}, 128),
    "niah_multikey_3": (
        "ruler_niah",
        {"haystack": "needle", "key_type": "uuids", "value_type": "uuids"},
        128,
    ),
    "niah_multivalue": ("ruler_niah", {"haystack": "essay", "values": 4}, 128),
    "niah_multiquery": ("ruler_niah", {"haystack": "essay", "queries": 4}, 128),
    "vt": ("ruler_vt", {"chains": 1, "hops": 4}, 30),
    "cwe": ("ruler_cwe", {"common_repeats": 30, "uncommon_repeats": 3, "common_words": 10}, 120),
    "fwe": ("ruler_fwe", {"alpha": 2.0}, 50),
    "qa_1": ("ruler_qa", {"questions": "squad"}, 32),
    "qa_2": ("ruler_qa", {"questions": "hotpot"}, 32),
}


def recipe(
    task: str,
    length: int,
    count: int,
    tokenizer: Tokenizer,
    sources: Sources,
    wrap: Wrap = BASE,
    seed: int = 42,
) -> Recipe:
    _, args, budget = TASKS[task]
    return Recipe(f"ruler/{task}", length, budget, count, args, tokenizer, sources, wrap, seed)


def samples(
    task: str, length: int, count: int, tokenizer: Tokenizer, sources: Sources, wrap: Wrap = BASE
) -> list[Sample]:
    return list(generators()[TASKS[task][0]](recipe(task, length, count, tokenizer, sources, wrap)))
