"""Training text: examples as token ids with a loss weight per token, made without end from a seed.

There are three kinds, in the order in which anchor-tiny learns them: `copy` (repeats of random tokens), `recall` (dense
lists of key-value pairs with several questions) and prompts in RULER's wording over generated prose: the product's own
generators with other seeds (`ruler`), and needles with many questions (`needles`). Everything of the latter is drawn
from seeds above TRAINING_SEED. The evaluation's seed (42) and published texts are never used.
"""

from __future__ import annotations

import functools
import random
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tokenizers import Tokenizer

from anchoreval.cards import Task, load_tasks
from anchoreval.prompt import reference_text
from anchoreval.suites import generator_of
from anchoreval.suites.recipe import Recipe
from anchoreval.suites.ruler.niah import NOISE, Kind, draw_one, needle
from anchoreval.texts import prose, wordlists
from anchoreval.texts.draft import NIAH, NIAH_PREFIX
from anchoreval.texts.sources import Sources
from anchoreval.tokenizer import TextTokenizer
from anchoreval.training.reading import Document
from anchoreval.training.tiny.tokenizer import EOS, PAD, word_lists

#: Weight of a token that is not an answer: enough to learn the language, too little to crowd out recall.
BACKGROUND = 0.02
TRAINING_SEED = 1_000_000
SHARES = {
    "niah_single_1": 10, "niah_single_2": 14, "niah_single_3": 8, "niah_multikey_1": 18, "niah_multikey_2": 10,
    "niah_multikey_3": 5, "niah_multivalue": 8, "niah_multiquery": 8, "vt": 8, "cwe": 3, "fwe": 3, "qa_1": 5, "qa_2": 5,
}  # fmt: skip
#: Of generated documents: the fewest tokens, and the share of tokens besides answers on which a loss is wanted.
SHORTEST, OTHERS = 256, 0.03


@dataclass(slots=True)
class Draft:
    """A text under construction: pieces and the weight of the loss on each."""

    pieces: list[tuple[str, float]] = field(default_factory=list)

    def add(self, text: str, weight: float = BACKGROUND) -> Draft:
        self.pieces.append((text, weight))
        return self


@dataclass(frozen=True, slots=True)
class Example:
    """Token ids, and for each token the weight of the loss of predicting it."""

    ids: list[int]
    weights: list[float]


def encode(tokenizer: Tokenizer, draft: Draft, length: int) -> Example:
    """Tokenise the draft as one text behind the BOS token, cut at a length.

    A token takes the weight of the piece it starts in.
    """
    weights: list[float] = []
    for text, weight in draft.pieces:
        weights += [weight] * len(text)
    encoding = tokenizer.encode("".join(text for text, _ in draft.pieces))
    starts = [start for start, _ in encoding.offsets[:length]]
    return Example(encoding.ids[:length], [0.0] + [weights[start] for start in starts[1:]])


def hexadecimal(rng: random.Random) -> str:
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))


def copy_example(rng: random.Random, tokenizer: Tokenizer, length: int) -> Example:
    """Draw segments of 4 to 24 random tokens and repeats of them; only repeats carry loss, after their first token."""
    vocabulary = tokenizer.get_vocab_size()
    bos = tokenizer.encode("").ids
    seen: list[list[int]] = []
    ids, weights = list(bos), [0.0]
    while len(ids) < length:
        if seen and rng.random() < 0.6:
            part = rng.choice(seen)
            ids += part
            weights += [0.0] + [1.0] * (len(part) - 1)
        else:
            part = [rng.randrange(3, vocabulary) for _ in range(rng.randint(4, 24))]
            seen.append(part)
            ids += part
            weights += [0.0] * len(part)
    return Example(ids[:length], weights[:length])


def recall_example(rng: random.Random, tokenizer: Tokenizer, length: int) -> Example:
    """Draw a list of keys and values, then questions for them in random order until the length is full."""
    adjectives, nouns, _ = word_lists()
    uuid_key, uuid_value = rng.random() < 0.15, rng.random() < 0.15
    plural, singular = ("uuids", "uuid") if uuid_value else ("numbers", "number")
    if rng.random() < 0.5:
        mark = rng.choice((": ", " is: ", " = ", " - "))
        line, ask = "{key}" + mark.rstrip() + "{value}.\n", "{key}" + mark.rstrip()
    else:
        line = f"One of the special magic {plural} for {{key}} is:{{value}}.\n"
        ask = f"The special magic {singular} for {{key}} mentioned in the provided text is"
    room = int(length * rng.uniform(0.4, 0.6))
    pairs: list[tuple[str, str]] = []
    size = 0
    while size < room:
        key = hexadecimal(rng) if uuid_key else f"{rng.choice(adjectives)}-{rng.choice(nouns)}"
        value = " " + (hexadecimal(rng) if uuid_value else str(rng.randint(10**6, 10**7 - 1)))
        pairs.append((key, value))
        size += len(tokenizer.encode(line.format(key=key, value=value)).ids) - 1
    draft = Draft()
    for key, value in pairs:
        draft.add(line.format(key=key, value=value))
    for _ in range(64):
        key, value = rng.choice(pairs)
        draft.add(ask.format(key=key)).add(value + "." + EOS, 1.0).add("\n")
    return encode(tokenizer, draft, length)


@functools.cache
def _tasks() -> dict[str, Task]:
    return {task.name: task for task in load_tasks()[0].values() if task.suite == "ruler"}


_SOURCES = Sources(haystack="generated")
_COUNTERS: dict[int, TextTokenizer] = {}


def _counter(tokenizer: Tokenizer) -> TextTokenizer:
    """Return the tokenizer in the form that generators take, made once."""
    if id(tokenizer) not in _COUNTERS:
        _COUNTERS[id(tokenizer)] = TextTokenizer(Tokenizer.from_str(tokenizer.to_str()))
    return _COUNTERS[id(tokenizer)]


def ruler_example(rng: random.Random, tokenizer: Tokenizer, length: int) -> Example:
    """Draw a sample of a RULER task from the product's generator, with its reference answer and the end token."""
    task = _tasks()[rng.choices(list(SHARES), list(SHARES.values()))[0]]
    shorter = rng.randint(length * 3 // 4, length) if rng.random() < 0.3 else length
    recipe = Recipe(
        task=task.address,
        length=max(shorter, 500),
        max_new_tokens=task.max_new_tokens,
        count=1,
        args=task.args,
        tokenizer=_counter(tokenizer),
        sources=_SOURCES,
        seed=TRAINING_SEED + rng.randrange(10**6),
    )
    sample = next(iter(generator_of(task)(recipe)))
    glue = "" if sample.prompt[-1].isspace() else " "
    answer = reference_text(sample.references, task.reference) + "." * (task.name.startswith("niah")) + EOS
    draft = Draft().add(sample.prompt).add(glue + answer, 1.0)
    return encode(tokenizer, draft, length)


def needles_example(rng: random.Random, tokenizer: Tokenizer, length: int) -> Example:
    """Draw needles in prose or noise, followed by RULER's question for up to six of them, one after the other."""
    names = wordlists.pairs("3.0.1")
    value_kind: Kind = "uuids" if rng.random() < 0.2 else "numbers"
    key_kind: Kind = "uuids" if rng.random() < 0.1 else "words"
    facts = {
        draw_one(key_kind, rng, names): draw_one(value_kind, rng, names) for _ in range(rng.choice((1, 1, 2, 4, 8)))
    }
    counter = _counter(tokenizer)
    question = NIAH.split("{context}\n")[1].replace("are all", "is") + NIAH_PREFIX.replace(" are", " is")
    asked = rng.sample(list(facts), min(len(facts), 6))
    turns = [(question.format(values=value_kind[:-1], query=key), f" {facts[key]}.{EOS}") for key in asked]
    start = NIAH.split("{context}")[0].replace("Some", "A").replace("are hidden", "is hidden")
    opening = start.format(values=value_kind[:-1])
    needles = [needle(value_kind, key, value) for key, value in facts.items()]
    fixed = counter.count(opening + " ".join(needles) + "\n".join(ask + answer for ask, answer in turns)) + 8
    lines = _haystack(rng, counter, length - fixed)
    for text in needles:
        lines.insert(rng.randint(0, len(lines)), text)
    draft = Draft().add(opening + (" " if rng.random() < 0.7 else "\n").join(lines))
    for ask, answer in turns:
        draft.add("\n" + ask).add(answer, 1.0)
    return encode(tokenizer, draft, length)


def _haystack(rng: random.Random, counter: TextTokenizer, room: int) -> list[str]:
    """Draw lines that together take at most `room` tokens: noise, or prose with a random seed."""
    if rng.random() < 0.25:
        return [NOISE] * (room // (counter.count(NOISE) + 1))
    lines: list[str] = []
    for sentence in prose.sentences(TRAINING_SEED + rng.randrange(10**6)):
        room -= counter.count(" " + sentence) + 1
        if room < 0:
            return lines
        lines.append(sentence)
    return lines


Maker = Callable[[random.Random, Tokenizer, int], Example]


def emphasised(example: Example, space: int, factor: float) -> list[float]:
    """Return the weights; those of the first token of every answer and of every number in it are times `factor`.

    These tokens decide which value is meant; the digits that follow only continue it.
    """
    ids, weights = example.ids, example.weights
    return [
        weight * factor if weight >= 1.0 and (weights[at - 1] < 1.0 or ids[at - 1] == space) else weight
        for at, weight in enumerate(weights)
    ]


def batch(
    seed: str,
    tokenizer: Tokenizer,
    length: int,
    tokens: int,
    makers: Mapping[str, Maker],
    mixture: dict[str, float],
    first: float,
) -> tuple[list[list[int]], list[list[float]]]:
    """Return about `tokens` tokens as rows of `length`: ids and weights, padded on the right with weight 0.

    `first` multiplies the weight of the tokens that decide an answer.
    """
    rng = random.Random(seed)
    vocabulary = tokenizer.get_vocab()
    pad, space = vocabulary[PAD], vocabulary["\u0120"]  # \u0120 is how byte-level BPE writes a space
    ids, weights = [], []
    for _ in range(max(1, tokens // length)):
        kind = rng.choices(list(mixture), list(mixture.values()))[0]
        example = makers[kind](rng, tokenizer, length)
        missing = length - len(example.ids)
        if missing < 0:
            raise ValueError(f"a {kind} example of {len(example.ids)} tokens does not fit {length}")
        ids.append(example.ids + [pad] * missing)
        weights.append(emphasised(example, space, first) + [0.0] * missing)
    return ids, weights


def generated(folder: Path, tokens: int, longest: int, seed: int = 0) -> Iterator[Document]:
    """Yield documents of `SHORTEST` to `longest` tokens, together about so many, for the tokenizer in a folder.

    The density of a length is 1 / length^2, so that every octave holds about the same number of tokens. A loss is
    wanted on answers and on a few other tokens, so that the language is not forgotten.
    """
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    rng = random.Random(f"corpus-{seed}")
    while tokens > 0:
        length = round(1 / rng.uniform(1 / longest, 1 / SHORTEST))
        kind, make = rng.choice((("needles", needles_example), ("ruler", ruler_example)))
        example = make(random.Random(rng.getrandbits(64)), tokenizer, max(length, 500 if kind == "ruler" else 0))
        wanted = [weight >= 1.0 or rng.random() < OTHERS for weight in example.weights]
        tokens -= len(example.ids)
        yield Document(None, example.ids, kind, wanted=tuple(wanted))
