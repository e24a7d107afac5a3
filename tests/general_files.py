"""Small folders of lm-eval's data sets: the fields and types of the published rows, every text invented."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

Row = dict[str, Any]
_NOUNS = ["kettle", "ladder", "lantern", "harbour", "violin", "compass", "orchard", "bakery", "glacier", "bicycle"]
_VERBS = ["lifts", "paints", "counts", "mends", "borrows", "measures", "hides", "follows", "carries", "drops"]
_PLACES = ["in the yard", "under a bridge", "near the mill", "behind the barn", "by the river", "on the roof"]


def _clause(rng: random.Random) -> str:
    return f"{rng.choice(_VERBS)} the {rng.choice(_NOUNS)} {rng.choice(_PLACES)}"


def hellaswag(rng: random.Random, index: int) -> Row:
    first = f"A man {_clause(rng)}. He [title] {_clause(rng)}."
    second = rng.choice(["the man", "", "then he"])
    return {
        "ind": index, "activity_label": rng.choice(["Mending things", "Sailing"]), "ctx_a": first, "ctx_b": second,
        "ctx": f"{first} {second}", "endings": [f"{_clause(rng)}{'  again' * (i % 2)}." for i in range(4)],
        "source_id": f"invented~{index}", "split": "val", "split_type": "indomain", "label": str(rng.randrange(4)),
    }  # fmt: skip


def arc(rng: random.Random, index: int) -> Row:
    labels = ["A", "B", "C", "D"][: 3 + index % 2]
    texts = [f"It {_clause(rng)}" for _ in labels]
    return {
        "id": f"invented_{index}", "question": f"What does a {rng.choice(_NOUNS)} do {rng.choice(_PLACES)}?",
        "choices": {"text": texts, "label": labels}, "answerKey": rng.choice(labels),
    }  # fmt: skip


def winogrande(rng: random.Random, index: int) -> Row:
    one, other = rng.sample(_NOUNS, 2)
    sentence = f"The {one} did not fit the {other} {rng.choice(_PLACES)} because the _ was too large{'.' * (index % 2)}"
    return {"sentence": sentence, "option1": one, "option2": other, "answer": str(rng.randrange(2) + 1)}


def mmlu(rng: random.Random, index: int) -> Row:
    question = f" Which {rng.choice(_NOUNS)} {_clause(rng)}?"
    return {
        "question": question, "subject": "anatomy", "choices": [_clause(rng) for _ in range(4)], "answer": index % 4
    }  # fmt: skip


def gsm8k(rng: random.Random, _: int) -> Row:
    a, b = rng.randrange(2, 900), rng.randrange(2, 900)
    question = f"Ada has {a} {rng.choice(_NOUNS)}s and buys {b} more. How many has she?"
    return {"question": question, "answer": f"She has {a}+{b}=<<{a}+{b}={a + b}>>{a + b}.\n#### {a + b:,}"}


def lambada(rng: random.Random, _: int) -> Row:
    noun = rng.choice(_NOUNS)
    return {"text": f"She {_clause(rng)}. He {_clause(rng)}. In the end she looked for the {noun}"}


def truthfulqa(rng: random.Random, index: int) -> Row:
    choices = [f"It {_clause(rng)}." for _ in range(4 + index % 3)]
    many = [1, 1] + [0] * (len(choices) - 2)
    one = [1] + [0] * (len(choices) - 1)
    question = f"What does a {rng.choice(_NOUNS)} do?"
    return {
        "question": question, "mc1_targets": {"choices": choices, "labels": one},
        "mc2_targets": {"choices": choices, "labels": many},
    }  # fmt: skip


def piqa(rng: random.Random, index: int) -> Row:
    return {
        "goal": f"how to use a {rng.choice(_NOUNS)}",
        "sol1": _clause(rng),
        "sol2": _clause(rng),
        "label": index % 2,
    }


def bbh(rng: random.Random, _: int) -> Row:
    return {
        "input": f"If you {_clause(rng)}, do you return to the starting point?\nOptions:\n- Yes\n- No",
        "target": rng.choice(["Yes", "No"]),
    }


#: lm-eval's task -> how a row is made, rows by split.
TASKS: dict[str, tuple[Callable[[random.Random, int], Row], dict[str, int]]] = {
    "hellaswag": (hellaswag, {"train": 30, "validation": 12}),
    "arc_easy": (arc, {"test": 12}),
    "arc_challenge": (arc, {"train": 40, "test": 12}),
    "winogrande": (winogrande, {"train": 30, "validation": 12}),
    "mmlu_anatomy": (mmlu, {"dev": 5, "test": 12}),
    "mmlu_virology": (mmlu, {"dev": 5, "test": 6}),
    "gsm8k": (gsm8k, {"train": 20, "test": 12}),
    "lambada_openai": (lambada, {"test": 12}),
    "truthfulqa_mc2": (truthfulqa, {"validation": 12}),
    "piqa": (piqa, {"validation": 12}),
    "bbh_cot_fewshot_navigate": (bbh, {"test": 12}),
}


#: Tasks of a group have rows of one form: the first word of a name -> a task of that form.
ALIKE = {"mmlu": "mmlu_anatomy", "bbh": "bbh_cot_fewshot_navigate", "truthfulqa": "truthfulqa_mc2"}


def write_folder(folder: Path, names: Iterable[str] = TASKS) -> Path:
    """`folder` with `general/<task>/<split>.jsonl` of the named tasks; the same bytes every time."""
    for name in names:
        make, sizes = TASKS[name] if name in TASKS else TASKS[ALIKE[name.split("_")[0]]]
        (folder / "general" / name).mkdir(parents=True, exist_ok=True)
        for split, count in sizes.items():
            rng = random.Random(f"{name} {split}")
            rows = (json.dumps(make(rng, index)) + "\n" for index in range(count))
            (folder / "general" / name / f"{split}.jsonl").write_text("".join(rows), "utf-8")
    return folder
