"""Training prompts in RULER's wording: the product's own generators with other seeds, and needles with many questions.

Everything is drawn from seeds above TRAINING_SEED. The evaluation's seed (42) and published texts are never used.
"""

from __future__ import annotations

import functools
import random

from tokenizers import Tokenizer

from anchoreval.cards import Task, load_tasks
from anchoreval.prompt import reference_text
from anchoreval.suites import generator_of
from anchoreval.suites.recipe import Recipe
from anchoreval.suites.ruler.niah import NOISE, Kind, draw_one, needle
from anchoreval.texts import prose
from anchoreval.texts.draft import NIAH, NIAH_PREFIX
from anchoreval.texts.sources import Sources
from anchoreval.texts.wordlists import pairs
from anchoreval.tokenizer import TextTokenizer
from anchoreval.training.tiny.examples import Draft, Example, encode
from anchoreval.training.tiny.tokenizer import EOS

TRAINING_SEED = 1_000_000
SHARES = {
    "niah_single_1": 10, "niah_single_2": 14, "niah_single_3": 8, "niah_multikey_1": 18, "niah_multikey_2": 10,
    "niah_multikey_3": 5, "niah_multivalue": 8, "niah_multiquery": 8, "vt": 8, "cwe": 3, "fwe": 3, "qa_1": 5, "qa_2": 5,
}  # fmt: skip


@functools.cache
def _tasks() -> dict[str, Task]:
    return {task.name: task for task in load_tasks()[0].values() if task.suite == "ruler"}


@functools.cache
def _sources() -> Sources:
    return Sources(haystack="generated")


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
        sources=_sources(),
        seed=TRAINING_SEED + rng.randrange(10**6),
    )
    sample = next(iter(generator_of(task)(recipe)))
    glue = "" if sample.prompt[-1].isspace() else " "
    answer = reference_text(sample.references, task.reference) + "." * (task.name.startswith("niah")) + EOS
    draft = Draft().add(sample.prompt).add(glue + answer, 1.0)
    return _cut(encode(tokenizer, draft), length)


def needles_example(rng: random.Random, tokenizer: Tokenizer, length: int) -> Example:
    """Draw needles in prose or noise, followed by RULER's question for up to six of them, one after the other."""
    names = pairs("3.0.1")
    value_kind: Kind = "uuids" if rng.random() < 0.2 else "numbers"
    key_kind: Kind = "uuids" if rng.random() < 0.1 else "words"
    facts = {
        draw_one(key_kind, rng, names): draw_one(value_kind, rng, names) for _ in range(rng.choice((1, 1, 2, 4, 8)))
    }
    counter = _counter(tokenizer)
    question = NIAH.split("{context}\n")[1].replace("are all", "is") + NIAH_PREFIX.replace(" are", " is")
    asked = rng.sample(list(facts), min(len(facts), 6))
    turns = [(question.format(values=value_kind[:-1], query=key), f" {facts[key]}.{EOS}") for key in asked]
    opening = (
        NIAH.split("{context}")[0]
        .replace("Some", "A")
        .replace("are hidden", "is hidden")
        .format(values=value_kind[:-1])
    )
    needles = [needle(value_kind, key, value) for key, value in facts.items()]
    fixed = counter.count(opening + " ".join(needles) + "\n".join(ask + answer for ask, answer in turns)) + 8
    lines = _haystack(rng, counter, length - fixed)
    for text in needles:
        lines.insert(rng.randint(0, len(lines)), text)
    draft = Draft().add(opening + (" " if rng.random() < 0.7 else "\n").join(lines))
    for ask, answer in turns:
        draft.add("\n" + ask).add(answer, 1.0)
    return _cut(encode(tokenizer, draft), length)


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


def _cut(example: Example, length: int) -> Example:
    return Example(example.ids[:length], example.weights[:length])
