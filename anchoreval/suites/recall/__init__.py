"""In-context recall: keys and values, passkeys, examples."""

from anchoreval.suites import Generator, Scorer, Suite
from anchoreval.suites.recall import icl, kv, passkey
from anchoreval.suites.recall.scoring import first_integer, helmet_label, helmet_substring

_OWN = "prompts of this package"
SUITE = Suite(
    generators={
        "recall_kv": Generator(kv.generate, own_texts=_OWN),
        "recall_icl": Generator(icl.generate, own_texts=_OWN),
        "passkey": Generator(passkey.generate, own_texts=_OWN),
    },
    scorers={
        "helmet_substring": Scorer(helmet_substring),
        "helmet_label": Scorer(helmet_label),
        "first_integer": Scorer(first_integer),
    },
)
