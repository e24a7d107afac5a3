"""LongBench and LongBench-E: prompts, records, scores and averages."""

from anchoreval.suites import Generator, Suite
from anchoreval.suites.longbench import generate
from anchoreval.suites.longbench.scoring import AVERAGES, SCORERS

SUITE = Suite(
    generators={"longbench": Generator(generate.generate, context_free=True, prose_free=True)},
    scorers=SCORERS,
    averages=AVERAGES,
    files=(generate.LONGBENCH,),
    states=generate.states,
)
