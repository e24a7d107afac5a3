"""A suite from outside the package: questions about a row of coloured boxes that fills a length.

anchoreval run --model anchor-tiny --tasks examples/boxes/boxes.yaml --lengths 1024 --arms bf16,fp32 --limit 10
anchoreval verify runs/anchor-tiny/* --tasks examples/boxes/boxes.yaml
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal

from anchoreval.schema import Json, Sample, Score, Segment
from anchoreval.suites import Average, Generator, Recipe, Scorer, Suite
from anchoreval.suites.recipe import options, sample_of
from anchoreval.texts.filling import most, too_short

COLOURS = ("red", "blue", "green", "white", "black", "yellow")
QUESTIONS = {
    "first": "What colour is the first box?",
    "last": "What colour is the last box?",
    "numbered": "What colour is box {number}?",
    "striped": "What is the number of the striped box?",
    "count": "How many boxes are there?",
}


@dataclass(frozen=True, slots=True)
class BoxTask:
    """The `args` of a task in the card."""

    ask: Literal["first", "last", "numbered", "striped", "count"]


def generate(recipe: Recipe) -> Iterator[Sample]:
    """Yield samples; each follows from seed, task, length and its index alone."""
    ask = options(recipe, BoxTask).ask
    for index in range(recipe.count):
        rng = Random(f"boxes-{recipe.seed}-{recipe.task}-{recipe.length}-{index}")
        colours = [rng.choice(COLOURS) for _ in range(recipe.length)]  # more than ever fit
        share = rng.random()

        def segments(boxes: int, share: float = share, colours: list[str] = colours) -> list[Segment]:
            at = int(share * boxes)
            rows = [f"Box {number} is {colour}.\n" for number, colour in enumerate(colours[:boxes], 1)]
            if ask == "striped":
                rows[at] = rows[at].replace("is ", "is striped, ")
            question = QUESTIONS[ask].format(number=at + 1)
            return [
                Segment("preamble", recipe.wrap.opening + "Here is a row of boxes.\n\n"),
                Segment("document", "".join(rows)),
                Segment("query", f"\n{question}" + (recipe.wrap.closing or "\n")),
                Segment("answer_prefix", "Answer:"),
            ]

        def tokens(boxes: int) -> int:
            return recipe.tokenizer.count("".join(segment.text for segment in segments(boxes)))

        boxes = most(tokens, recipe.room, 1, recipe.room // 8)
        if boxes is None:
            raise too_short(recipe.length, tokens(1) + recipe.reserved)
        at = int(share * boxes)
        answers = {"first": colours[0], "last": colours[boxes - 1], "numbered": colours[at], "striped": str(at + 1)}
        facts: dict[str, Json] = {"boxes": boxes}
        if ask in ("numbered", "striped"):
            facts["depths"] = [round(at / max(1, boxes - 1), 4)]
        yield sample_of(recipe, index, segments(boxes), answers.get(ask, str(boxes)), facts)


def first_word(answer: str, references: Sequence[str], _: Mapping[str, Json] = {}) -> Score:
    """Return 1 if the first word of the answer is a reference, whatever its case and the marks around it, else 0."""
    words = answer.lower().split()
    return Score(float(bool(words) and words[0].strip(".,:;!?\"'") in references))


SUITE = Suite(
    generators={"boxes": Generator(generate)},
    scorers={"first_word": Scorer(first_word)},
    averages={
        "boxes_mean": Average(
            "Boxes",
            "the mean over five tasks; the ends of the row count half",
            {"boxes/first": 1, "boxes/last": 1, "boxes/numbered": 2, "boxes/striped": 2, "boxes/count": 2},
        )
    },
)
