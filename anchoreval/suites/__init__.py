"""How samples are made: one generator per kind of task, looked up by the name that a task card gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from anchoreval.errors import LengthError, TooLong
from anchoreval.schema import Json, Sample
from anchoreval.suites.babilong import generate as babilong_samples
from anchoreval.suites.babilong import published as babilong_published
from anchoreval.suites.general import generate as general_samples
from anchoreval.suites.general import harness as lm_eval_harness
from anchoreval.suites.longbench import generate as longbench_samples
from anchoreval.suites.longbench_v2 import generate as longbench_v2_samples
from anchoreval.suites.niah import generate as niah_samples
from anchoreval.suites.nll import generate as nll
from anchoreval.suites.recall import icl as recall_icl
from anchoreval.suites.recall import kv as recall_kv
from anchoreval.suites.recall import passkey
from anchoreval.suites.recipe import Generator, Recipe
from anchoreval.suites.ruler import niah as ruler_niah
from anchoreval.suites.ruler import qa as ruler_qa
from anchoreval.suites.ruler import vt as ruler_vt
from anchoreval.suites.ruler import words as ruler_words
from anchoreval.suites.ruler_balanced import niah as balanced_niah
from anchoreval.suites.ruler_balanced import qa as balanced_qa
from anchoreval.suites.ruler_balanced import vt as balanced_vt
from anchoreval.suites.ruler_balanced import words as balanced_words
from anchoreval.suites.ruler_balanced.balanced import Sampler, one_by_one

ATTEMPTS = 32  # lengths tried to find the smallest possible one


def _explained(generator: Generator) -> Generator:
    """Wrap a generator so that its LengthError names the task and the smallest length that works, or the longest."""

    def generate(recipe: Recipe) -> Iterator[Sample]:
        try:
            yield from generator(recipe)
        except TooLong as error:
            hint = f"the longest is about {error.longest}" if error.longest else "try a shorter one"
            said = f"{recipe.task} cannot be made at {recipe.length} tokens: {error}; {hint}"
            raise TooLong(said, error.longest) from None
        except LengthError as error:
            smallest = _smallest(generator, recipe, error.smallest)
            hint = f"the smallest is {smallest}" if smallest else "try a longer one"
            raise LengthError(f"{recipe.task} cannot be made at {recipe.length} tokens: {hint}", smallest) from None

    return generate


def _smallest(generator: Generator, recipe: Recipe, guess: int | None) -> int | None:
    """Return the first length from `guess` upwards that works, or None if no length was found."""
    for _ in range(ATTEMPTS):
        if guess is None:
            return None
        try:
            for _sample in generator(replace(recipe, length=guess)):
                pass
            return guess
        except TooLong:
            return None
        except LengthError as error:
            guess = max(guess + 1, error.smallest or 0)
    return None


SAMPLERS: dict[str, Callable[[Recipe], Sampler]] = {  # generators whose samples can be made alone
    "balanced_niah": balanced_niah.sampler,
    "balanced_vt": balanced_vt.sampler,
    "balanced_cwe": balanced_words.common_sampler,
    "balanced_fwe": balanced_words.coded_sampler,
    "balanced_qa": balanced_qa.sampler,
}
GENERATORS: dict[str, Generator] = {
    "ruler_niah": _explained(ruler_niah.generate),
    "ruler_vt": _explained(ruler_vt.generate),
    "ruler_cwe": _explained(ruler_words.generate_common),
    "ruler_fwe": _explained(ruler_words.generate_coded),
    "ruler_qa": _explained(ruler_qa.generate),
    "longbench": _explained(longbench_samples.generate),
    "longbench_v2": _explained(longbench_v2_samples.generate),
    "longbench_v2_choices": _explained(longbench_v2_samples.generate_letters),
    "lm_eval": general_samples.generate,
    "niah": _explained(niah_samples.generate),
    "babilong": _explained(babilong_samples.generate),
    "babilong_published": _explained(babilong_published.generate),
    "recall_kv": _explained(recall_kv.generate),
    "recall_icl": _explained(recall_icl.generate),
    "passkey": _explained(passkey.generate),
    "nll": nll.generate,
    **{name: _explained(one_by_one(sampler)) for name, sampler in SAMPLERS.items()},
}
#: The number of samples at a length under the arguments of a task, if it is not the card's number.
SIZES: dict[str, Callable[[str, Mapping[str, Json]], int]] = {"niah": niah_samples.size}
#: The number of samples at a length, if files decide it, and notices on files that are left out.
IN_FILES: dict[str, Callable[[Recipe], int]] = {"nll": nll.size}
LEFT_OUT: dict[str, Callable[[Recipe], list[str]]] = {"nll": nll.too_short}
#: The part of the number of samples that the samples depend on; None: the first samples are always the same.
POOLS: dict[str, Callable[[Recipe], int | None]] = {"ruler_qa": ruler_qa.pool}
#: The release of another package whose definitions make the prompts; None for the one that identities do not name.
RELEASES: dict[str, Callable[[], str | None]] = {"lm_eval": lm_eval_harness.other_release}
#: Functions that make the second prompt of a sample (`Sample.then`) from the answer to the first.
FOLLOW_UPS: dict[str, Callable[[Recipe, Sample, str], Sample]] = {"longbench_v2": longbench_v2_samples.follow_up}
CONTEXT_FREE = frozenset({"longbench", "longbench_v2"})  # can make a prompt without its context
#: These read files only: neither a seed nor the kind of haystack changes a prompt.
PROSE_FREE = frozenset({"longbench", "longbench_v2", "longbench_v2_choices", "babilong_published", "lm_eval", "nll"})
#: Generators without published scores -> the origin of their prompts.
OWN_TEXTS: dict[str, str] = {
    **dict.fromkeys(("recall_kv", "recall_icl", "passkey", *SAMPLERS), "prompts of this package"),
    "nll": "texts of the user's own; scores are 100 / perplexity, log-probabilities nats per token, more is better",
}
#: Each sample is one document, so attention and positions that act on several documents have no meaning.
ONE_DOCUMENT = frozenset({"nll"})
#: Haystacks, as a sample's facts name them, that are made of words: another source text does not change them.
MADE_OF_WORDS = frozenset({"noise", "needle", "coded words"})

__all__ = [
    "CONTEXT_FREE", "FOLLOW_UPS", "GENERATORS", "IN_FILES", "LEFT_OUT", "MADE_OF_WORDS", "ONE_DOCUMENT", "OWN_TEXTS",
    "POOLS", "PROSE_FREE", "RELEASES", "SIZES", "Generator", "Recipe",
]  # fmt: skip
