"""BABILong: facts of bAbI hidden in books."""

from anchoreval.suites import Generator, Scorer, Suite
from anchoreval.suites.babilong import generate, published
from anchoreval.suites.babilong.scoring import babilong, babilong_corrected
from anchoreval.suites.babilong.stories import BABI

_NEEDS = ("question", "labels")
SUITE = Suite(
    generators={
        "babilong": Generator(generate.generate),
        "babilong_published": Generator(published.generate, published=True, prose_free=True),
    },
    scorers={
        "babilong": Scorer(babilong, needs=_NEEDS),
        "babilong_corrected": Scorer(babilong_corrected, needs=_NEEDS),
    },
    files=(BABI,),
    states=published.states,
)
