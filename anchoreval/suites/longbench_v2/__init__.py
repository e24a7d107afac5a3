"""LongBench v2: multiple-choice questions over long files."""

from anchoreval.suites import Generator, Scorer, Setting, Suite
from anchoreval.suites.longbench_v2 import generate
from anchoreval.suites.longbench_v2.scoring import same_letter

SUITE = Suite(
    generators={
        "longbench_v2": Generator(generate.generate, follow_up=generate.follow_up, context_free=True, prose_free=True),
        "longbench_v2_choices": Generator(generate.generate_letters, prose_free=True),
    },
    scorers={"same_letter": Scorer(same_letter)},
    settings={
        "prompting": Setting("longbench_v2: the prompt (default: zero_shot)", ("zero_shot", "cot", "no_context"))
    },
    files=(generate.LONGBENCH_V2,),
    states=generate.states,
)
