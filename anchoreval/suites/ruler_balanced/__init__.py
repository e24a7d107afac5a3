"""RULER with answers spread evenly over depths and needles."""

from anchoreval.suites import Generator, Suite
from anchoreval.suites.ruler_balanced import niah, qa, vt, words
from anchoreval.suites.ruler_balanced.balanced import one_by_one

_SAMPLERS = {
    "balanced_niah": niah.sampler,
    "balanced_vt": vt.sampler,
    "balanced_cwe": words.common_sampler,
    "balanced_fwe": words.coded_sampler,
    "balanced_qa": qa.sampler,
}
SUITE = Suite(
    generators={
        name: Generator(one_by_one(sampler), own_texts="prompts of this package") for name, sampler in _SAMPLERS.items()
    }
)
