"""RULER: its thirteen tasks, made and scored as upstream does."""

from anchoreval.suites import Generator, Scorer, Suite
from anchoreval.suites.ruler import niah, qa, vt, words
from anchoreval.suites.ruler.scoring import AVERAGES, match_all, match_any
from anchoreval.texts.sources import RULER_FILES

SUITE = Suite(
    generators={
        "ruler_niah": Generator(niah.generate, published=True),
        "ruler_vt": Generator(vt.generate, published=True),
        "ruler_cwe": Generator(words.generate_common, published=True),
        "ruler_fwe": Generator(words.generate_coded, published=True),
        "ruler_qa": Generator(qa.generate, pool=qa.pool, published=True),
    },
    scorers={"match_all": Scorer(match_all), "match_any": Scorer(match_any)},
    averages=AVERAGES,
    files=RULER_FILES,
)
