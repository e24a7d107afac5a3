"""Recall of a value from a JSON object of random uuids: HELMET's json_kv with generated objects of any length.

The instruction, two demonstrations and the order, object first, are those of HELMET (princeton-nlp/HELMET at 4526dfb,
data.py). The object is written as in nelson-liu/lost-in-the-middle, where HELMET took the task from. HELMET's own
objects have 50 to 1,800 pairs and the answer at one of six depths. Here the depth is drawn (filling.depth), the
demonstrations are two other pairs, and one more pair, whose key and value are cut short, fills the rest of the length.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from anchoreval.schema import Json, Role, Sample, Segment
from anchoreval.suites.recipe import Recipe, options, sample_of
from anchoreval.suites.ruler.niah import uuid4
from anchoreval.texts.filling import depth, most, too_short

INSTRUCTION = "\n\nExtract the value corresponding to the specified key in the JSON object below.\n\n"
CUE = "Corresponding value:"
SHOTS = 2
UUID = 36  # characters


@dataclass(frozen=True, slots=True)
class PairsTask:
    """The `args` of a task card: none."""


def generate(recipe: Recipe) -> Iterator[Sample]:
    """Yield samples whose object has as many pairs as fit; raise LengthError if three pairs do not fit."""
    options(recipe, PairsTask)
    for index in range(recipe.count):
        yield _sample(recipe, index)


def _sample(recipe: Recipe, index: int) -> Sample:
    rng = Random(f"{recipe.seed}-json_kv-{index}")
    place, shots = depth(recipe.seed, "json_kv", index), [rng.random() for _ in range(SHOTS)]
    own = [_pair(rng) for _ in range(SHOTS + 1)]
    drawn: list[str] = []

    def lines(pairs: int) -> list[str]:
        while len(drawn) < pairs:
            drawn.append(_pair(rng))
        found = drawn[: pairs - SHOTS - 1]
        for share, pair in zip(shots, own[:SHOTS], strict=True):
            found.insert(int(share * (len(found) + 1)), pair)
        found.insert(int(place * (len(found) + 1)), own[-1])
        return found

    def tokens(found: list[str]) -> int:
        return recipe.tokenizer.count("".join(segment.text for segment in _segments(recipe, found, own)))

    room = recipe.room
    each = recipe.tokenizer.count("".join(own)) / len(own)
    pairs = most(lambda count: tokens(lines(count)), room, SHOTS + 1, int(room / each) - 1)
    if pairs is None:
        raise too_short(recipe.length, tokens(lines(SHOTS + 1)) + recipe.reserved)
    found = lines(pairs)
    at, last = rng.randrange(pairs + 1), _pair(rng)

    def with_last(characters: int) -> list[str]:
        return [*found[:at], f'"{_key(last)[:characters]}": "{_value(last)[:characters]}"', *found[at:]]

    kept = most(lambda count: tokens(with_last(count)), room, 1, UUID // 2, UUID)
    found = with_last(kept) if kept else found
    return sample_of(recipe, index, _segments(recipe, found, own), _value(own[-1]), _facts(recipe, found, own[-1]))


def _pair(rng: Random) -> str:
    """Return a key and its value, both random uuids, as JSON."""
    return f'"{uuid4(rng.getrandbits(128))}": "{uuid4(rng.getrandbits(128))}"'


def _key(pair: str) -> str:
    return pair.split('"')[1]


def _value(pair: str) -> str:
    return pair.split('"')[3]


def _object(pairs: list[str]) -> list[str]:
    """Return the lines of the object with their opening and closing characters."""
    last = len(pairs) - 1
    return [f"{' ' if at else '{'}{pair}{'}' if at == last else f',{chr(10)}'}" for at, pair in enumerate(pairs)]


def _segments(recipe: Recipe, found: list[str], own: list[str]) -> list[Segment]:
    shots = "".join(f"Key: {_key(pair)}\n{CUE} {_value(pair)}\n\n" for pair in own[:SHOTS])
    query = f"{INSTRUCTION}{shots}Key: {_key(own[-1])}"
    line: Role = "line"
    return [
        Segment("preamble", recipe.wrap.opening),
        *(Segment(line, text) for text in _object(found)),
        Segment("query", query + (recipe.wrap.closing or "\n")),
        Segment("answer_prefix", CUE),
    ]


def _facts(recipe: Recipe, found: list[str], gold: str) -> dict[str, Json]:
    """Return the number of pairs, and the answer's place: as a share of the pairs, and in tokens of the prompt."""
    at = found.index(gold)
    before = recipe.wrap.opening + "".join(_object(found)[:at])
    return {
        "pairs": len(found),
        "depths": [round(at / (len(found) - 1), 4)],
        "token_positions": [recipe.tokenizer.count(before)],
    }
