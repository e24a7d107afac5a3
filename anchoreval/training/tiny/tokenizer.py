"""The tokenizer of anchor-tiny: byte-level BPE of 4,096 tokens, digits and the letters of capital runs single.

It is trained on text that this package generates (prose, documents, word lists, task wording), not on benchmark text.
"""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from anchoreval.texts import prose

VOCABULARY = 4096
BOS, EOS, PAD = "<|bos|>", "<|eos|>", "<|pad|>"
SINGLE = r"\d|[A-Z](?=[A-Z])|(?<=[A-Z])[A-Z]"  # digits and the letters of capital runs: copied one by one
WORDING = (
    "Some special magic numbers are hidden within the following text. Make sure to memorize it.",
    "I will quiz you about the uuids afterwards. A special magic uuid is hidden. What are all the special magic numbers",  # noqa: E501
    "mentioned in the provided text? The special magic uuids mentioned in the provided text are",
    "Memorize and track the chain(s) of variable assignment hidden in the following text. VAR X = VAR Y",
    "Question: Find all variables that are assigned the value in the text above. Answer: According to the chain(s) of",
    "variable assignment in the text above, variables are assigned the value, they are:",
    "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.",
    "Below is a numbered list of words. In these words, some appear more often than others. Memorize the ones that",
    "appear most often. Answer: The top words that appear most often in the list are: the most common words in the above",  # noqa: E501
    "Read the following coded text and track the frequency of each coded word. Find the three most frequently appeared",
    "coded words. Do not provide any explanation. Please ignore the dots. Answer: According to the coded text above,",
    "Answer the question based on the given documents. Only give me the answer and do not output any other words.",
    "The following are given documents. Document:",
)


@functools.cache
def word_lists() -> tuple[list[str], list[str], list[str]]:
    """Return the adjectives, nouns and verbs of wonderwords, one sorted list each."""
    folder = resources.files("wonderwords") / "assets"
    names = ("adjectivelist.txt", "nounlist.txt", "verblist.txt")
    adjectives, nouns, verbs = (sorted(set(filter(None, (folder / name).read_text().splitlines()))) for name in names)
    return adjectives, nouns, verbs


def corpus(seed: int) -> Iterator[str]:
    """Yield lines to learn merges from: prose, quiz documents, keys in needles, task wording, numbered words."""
    yield from itertools.islice(prose.sentences(seed), 40_000)
    for hops in (1, 2):
        quiz = prose.quiz(seed, hops)
        yield from quiz.documents
        yield from (question.text for question in quiz.questions)
    rng = random.Random(seed)
    adjectives, nouns, verbs = word_lists()
    for _ in range(30_000):
        key = f"{rng.choice(adjectives)}-{rng.choice(nouns)}"
        yield f"One of the special magic numbers for {key} is: {rng.randint(1, 99)}."
    for _ in range(500):
        yield from WORDING
    for index, word in enumerate(adjectives + nouns + verbs):
        yield f"{index % 400}. {word} {word}"


def build(seed: int = 0) -> Tokenizer:
    """Train the tokenizer, which puts the BOS token in front of every text it encodes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SINGLE), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(seed), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return tokenizer


def save(tokenizer: Tokenizer, folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json in Hugging Face format."""
    from transformers import PreTrainedTokenizerFast

    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, pad_token=PAD, model_max_length=8192
    ).save_pretrained(str(folder))
