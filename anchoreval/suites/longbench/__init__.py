"""LongBench and LongBench-E: prompts, records, scores and averages."""

from anchoreval.suites import Generator, Suite
from anchoreval.suites.longbench import generate
from anchoreval.suites.longbench.averages import AVERAGES
from anchoreval.suites.longbench.records import LONGBENCH, states
from anchoreval.suites.longbench.scoring import SCORERS

SUITE = Suite(
    generators={"longbench": Generator(generate.generate, context_free=True, prose_free=True)},
    scorers=SCORERS,
    averages=AVERAGES,
    files=(LONGBENCH,),
    states=states,
)
