"""General benchmarks, as lm-eval's task definitions ask them."""

from anchoreval.suites import Generator, Scorer, Suite, gold_is_likeliest
from anchoreval.suites.general import generate, rows
from anchoreval.suites.general.harness import lm_eval, other_release, refuse, require

SUITE = Suite(
    generators={"lm_eval": Generator(generate.generate, release=other_release, prose_free=True, explained=False)},
    scorers={
        "lm_eval": Scorer(lm_eval, packages=require, refuse=refuse, heavy=True),
        "likeliest": Scorer(gold_is_likeliest, needs=("gold",)),
    },
    states=rows.states,
    fetch=rows.fetch,
)
