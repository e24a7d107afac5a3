"""Training text of anchor-tiny: examples as token ids with a loss weight per token, made without end from a seed.

There are three kinds, in the order in which they are learned: `copy` (repeats of random tokens), `recall` (dense lists
of key-value pairs with several questions) and `ruler` (prompts in RULER's wording over generated prose; ruler.py).
"""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from tokenizers import Tokenizer

from anchoreval.training.tiny.tokenizer import EOS, PAD, word_lists

BACKGROUND = (
    0.02  # weight of a token that is not an answer: enough to learn the language, too little to crowd out recall
)


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


def encode(tokenizer: Tokenizer, draft: Draft) -> Example:
    """Tokenise the draft as one text behind the BOS token; a token takes the weight of the piece it starts in."""
    weights: list[float] = []
    for text, weight in draft.pieces:
        weights += [weight] * len(text)
    encoding = tokenizer.encode("".join(text for text, _ in draft.pieces))
    starts = [start for start, _ in encoding.offsets]
    return Example(encoding.ids, [0.0] + [weights[start] for start in starts[1:]])


def number(rng: random.Random) -> str:
    return str(rng.randint(10**6, 10**7 - 1))


def hexadecimal(rng: random.Random) -> str:
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))


def words(rng: random.Random, lists: Sequence[Sequence[str]]) -> str:
    return f"{rng.choice(lists[0])}-{rng.choice(lists[1])}"


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


def _short_form(rng: random.Random) -> tuple[str, str]:
    """Draw the forms of a line of a key-value list and of the question for it, without further wording."""
    mark = rng.choice((": ", " is: ", " = ", " - "))
    return "{key}" + mark.rstrip() + "{value}.\n", "{key}" + mark.rstrip()


def recall_example(rng: random.Random, tokenizer: Tokenizer, length: int) -> Example:
    """Draw a list of keys and values, then questions for them in random order until the length is full."""
    lists = word_lists()
    uuid_key, uuid_value = rng.random() < 0.15, rng.random() < 0.15
    plural, singular = ("uuids", "uuid") if uuid_value else ("numbers", "number")
    if rng.random() < 0.5:
        line, ask = _short_form(rng)
    else:
        line = f"One of the special magic {plural} for {{key}} is:{{value}}.\n"
        ask = f"The special magic {singular} for {{key}} mentioned in the provided text is"
    room = int(length * rng.uniform(0.4, 0.6))
    pairs: list[tuple[str, str]] = []
    size = 0
    while size < room:
        key = hexadecimal(rng) if uuid_key else words(rng, lists)
        value = " " + (hexadecimal(rng) if uuid_value else number(rng))
        pairs.append((key, value))
        size += len(tokenizer.encode(line.format(key=key, value=value)).ids) - 1
    draft = Draft()
    for key, value in pairs:
        draft.add(line.format(key=key, value=value))
    for _ in range(64):
        key, value = rng.choice(pairs)
        draft.add(ask.format(key=key)).add(value + "." + EOS, 1.0).add("\n")
    example = encode(tokenizer, draft)
    return Example(example.ids[:length], example.weights[:length])


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
