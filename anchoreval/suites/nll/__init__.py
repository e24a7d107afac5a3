"""The suite `nll`: windows of the user's texts, scored token by token."""

from anchoreval.suites import Generator, Scorer, Setting, Suite
from anchoreval.suites.nll import generate

SUITE = Suite(
    generators={
        "nll": Generator(
            generate.generate,
            in_files=generate.size,
            left_out=generate.too_short,
            prose_free=True,
            own_texts="texts of the user's own; scores are 100 / perplexity, log-probabilities nats per token, more is "
            "better",
            one_document=True,
            explained=False,
        )
    },
    scorers={"token_probability": Scorer(generate.token_probability)},
    settings={"windows": Setting("nll: windows of each text (default: all)")},
)
