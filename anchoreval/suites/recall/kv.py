"""Recall of a value from a JSON object of random uuids: HELMET's json_kv with generated objects of any length.

The instruction, two demonstrations and the order, object first, are those of HELMET (princeton-nlp/HELMET at 4526dfb,
data.py). The object is written as in nelson-liu/lost-in-the-middle, where HELMET took the task from. HELMET's own
objects have 50 to 1,800 pairs and the answer at one of six depths. Here the depth is drawn (filling.depth), the
demonstrations are two other pairs, and one more pair, whose key and value are cut short, fills the rest of the length.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from anchoreval.schema import Json, Sample, Segment
from anchoreval.suites.recipe import NoArgs, Recipe, options, sample_of
from anchoreval.suites.ruler.niah import uuid4
from anchoreval.texts.filling import depth, most

INSTRUCTION = "\n\nExtract the value corresponding to the specified key in the JSON object below.\n\n"
CUE = "Corresponding value:"
SHOTS = 2
UUID = 36  # characters
Pair = tuple[str, str]


def generate(recipe: Recipe) -> Iterator[Sample]:
    """Yield samples whose object has as many pairs as fit; raise LengthError if three pairs do not fit."""
    options(recipe, NoArgs)
    for index in range(recipe.count):
        yield _sample(recipe, index)


def _sample(recipe: Recipe, index: int) -> Sample:
    rng = Random(f"{recipe.seed}-json_kv-{index}")
    place, shares = depth(recipe.seed, "json_kv", index), [rng.random() for _ in range(SHOTS)]
    *shots, gold = (_pair(rng) for _ in range(SHOTS + 1))
    shown = "".join(f"Key: {key}\n{CUE} {value}\n\n" for key, value in shots)
    drawn: list[Pair] = []

    def among(count: int) -> list[Pair]:
        """Return `count` pairs: the one that is asked for and the demonstrations at their depths among others."""
        while len(drawn) < count:
            drawn.append(_pair(rng))
        pairs = drawn[: count - SHOTS - 1]
        for share, pair in zip((*shares, place), (*shots, gold), strict=True):
            pairs.insert(int(share * (len(pairs) + 1)), pair)
        return pairs

    def segments(pairs: list[Pair]) -> list[Segment]:
        last = len(pairs) - 1
        lines = []
        for at, pair in enumerate(pairs):
            lines.append(f"{' ' if at else '{'}{_json(pair)}" + ("}" if at == last else ",\n"))
        return [
            Segment("preamble", recipe.wrap.opening),
            *(Segment("line", text) for text in lines),
            Segment("query", f"{INSTRUCTION}{shown}Key: {gold[0]}{recipe.wrap.closing or chr(10)}"),
            Segment("answer_prefix", CUE),
        ]

    each = recipe.tokenizer.count("".join(map(_json, (*shots, gold)))) / (SHOTS + 1)
    guess = int(recipe.room / each) - 1
    count = recipe.most_units(lambda count: recipe.tokens_of(segments(among(count))), SHOTS + 1, guess)
    pairs = among(count)
    at, (key, value) = rng.randrange(count + 1), _pair(rng)

    def with_last(characters: int) -> list[Pair]:
        return [*pairs[:at], (key[:characters], value[:characters]), *pairs[at:]]

    kept = most(lambda count: recipe.tokens_of(segments(with_last(count))), recipe.room, 1, UUID // 2, UUID)
    pairs = with_last(kept) if kept else pairs
    prompt, number = segments(pairs), pairs.index(gold)
    facts: dict[str, Json] = {  # the answer's place is a share of the pairs, and tokens of the prompt
        "pairs": len(pairs),
        "depths": [round(number / (len(pairs) - 1), 4)],
        "token_positions": [recipe.tokens_of(prompt[: number + 1])],
    }
    return sample_of(recipe, index, prompt, gold[1], facts)


def _pair(rng: Random) -> Pair:
    """Draw a key and its value, both uuids."""
    return uuid4(rng.getrandbits(128)), uuid4(rng.getrandbits(128))


def _json(pair: Pair) -> str:
    return f'"{pair[0]}": "{pair[1]}"'
