"""Classification from examples in the context: HELMET's ICL protocol over generated texts.

From HELMET (princeton-nlp/HELMET at 4526dfb, data.py) are the prompt, the balanced rounds (every label comes once, in
random order, before any comes again) and the labels. Labels are integers in a random order drawn for each sample, so
that only the examples show what a label means. The texts are not HELMET's, which takes questions from TREC, BANKING77,
CLINC150 and NLU. Here a text is a question about things of one place of the generated prose, and a label stands for a
place, which is not named. The places are drawn for each sample.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

from anchoreval.errors import CardError
from anchoreval.schema import Json, Sample, Segment
from anchoreval.suites.recipe import Recipe, options, sample_of
from anchoreval.texts.filling import new, topped_up
from anchoreval.texts.prose import ADJECTIVES, PEOPLE, REASONS, TIMES, TOPICS, TRANSITIVE
from anchoreval.texts.wordlists import read_lists

INSTRUCTION = (
    "Use the provided mapping from the text to label to assign a label to the text. "
    'Only output "label: {label}" and nothing else. \n\n'
)
CUE = "label:"
LEAST_THINGS = 3
FRAMES = read_lists(Path(__file__).with_suffix(".txt"))["frames"]


@dataclass(frozen=True, slots=True)
class LabelsTask:
    """The `args` of a task card: how many labels there are."""

    labels: int = 12


def lexicons() -> dict[str, list[str]]:
    """Return the things of each place that share no word with other places' things or the cue.

    Places with fewer than LEAST_THINGS such things are left out.
    """
    known = Counter(word for things in TOPICS.values() for word in {*" ".join(things).split()})
    known["label"] += 1
    distinct = {
        place: [thing for thing in things if all(known[word] == 1 for word in thing.split())]
        for place, things in TOPICS.items()
    }
    return {place: things for place, things in distinct.items() if len(things) >= LEAST_THINGS}


def generate(recipe: Recipe) -> Iterator[Sample]:
    """Yield samples with as many examples as fit; raise LengthError if one example for each label does not fit."""
    task = options(recipe, LabelsTask)
    if not 1 < task.labels <= len(lexicons()):
        raise CardError(f"{recipe.task}: args.labels: {task.labels} is not one of 2..{len(lexicons())}")
    for index in range(recipe.count):
        yield _Maker(recipe, task.labels, index).sample()


class _Maker:
    """Draws one sample; `classes` are the places by number, `names` the label of each."""

    def __init__(self, recipe: Recipe, labels: int, index: int) -> None:
        self.recipe, self.index, self.labels = recipe, index, labels
        self.rng = rng = Random(f"{recipe.seed}-icl_labels-{index}")
        things = lexicons()
        self.things = [things[place] for place in rng.sample(sorted(things), labels)]
        self.names = rng.sample(range(labels), labels)
        self.seen: set[str] = set()
        self.asked = rng.randrange(labels)
        self.question = self.text(self.asked)
        self.order: list[int] = []
        self.drawn: list[str] = []

    def text(self, of: int) -> str:
        """Return a new question about things of class `of`, different from all before."""

        def drawn() -> str:
            rng = self.rng
            a, b = rng.sample(self.things[of], 2)
            past, plain = rng.choice(TRANSITIVE)
            frame = rng.choice(FRAMES)
            a, b = (f"{rng.choice(ADJECTIVES)} {each}" if rng.random() < 0.4 else each for each in (a, b))
            person, time, reason = rng.choice(PEOPLE), rng.choice(TIMES), rng.choice(REASONS)
            return frame.format(a=a, b=b, past=past, plain=plain, person=person, time=time, reason=reason)

        text = new(drawn, lambda text: text not in self.seen, "questions about things of a place")
        self.seen.add(text)
        return text

    def example(self, of: int) -> str:
        """Return a text of class `of` with its label."""
        return f"{self.text(of)}\n{CUE} {self.names[of]}"

    def examples(self, count: int) -> list[str]:
        """Return the first `count` examples of balanced rounds."""
        while len(self.drawn) < count:
            self.order += self.rng.sample(range(self.labels), self.labels)
            self.drawn += [self.example(of) for of in self.order[len(self.drawn) :]]
        return self.drawn[:count]

    def segments(self, examples: list[str]) -> list[Segment]:
        """Return the prompt with these examples."""
        recipe = self.recipe
        return [
            Segment("preamble", recipe.wrap.opening + INSTRUCTION),
            *(Segment("document", f"{text}\n\n") for text in examples),
            Segment("query", self.question + (recipe.wrap.closing or "\n")),
            Segment("answer_prefix", CUE),
        ]

    def sample(self) -> Sample:
        """Return the sample with as many examples as fit."""
        recipe, least = self.recipe, self.labels

        def tokens(examples: list[str]) -> int:
            return recipe.tokens_of(self.segments(examples))

        each = recipe.tokenizer.count("\n\n".join(self.examples(least))) / least
        count = recipe.most_units(lambda units: tokens(self.examples(units)), least, int(recipe.room / each))
        lines = self.examples(count)
        examples = topped_up(
            lines, range(count), lambda at: self.example(self.order[at]), tokens, recipe.room, recipe.tokenizer
        )
        gold = [at for at in range(count) if self.order[at] == self.asked]
        facts: dict[str, Json] = {"texts": "generated", "examples": count, "labels": self.labels}
        facts |= {"gold_examples": len(gold), "nearest_gold": round(gold[-1] / max(1, count - 1), 4)}
        return sample_of(recipe, self.index, self.segments(examples), str(self.names[self.asked]), facts)
