"""Small tasks of lm-eval's kinds, written as a user writes them: a folder of YAML with its rows beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

TINY = Path(__file__).parents[2] / "models" / "anchor-tiny"
PLACES = ("the old mill", "a quiet harbour", "the stone bridge", "a small garden", "the north road", "an empty hall")
ROWS = """
import datasets

ROWS = {rows!r}


def of(kind, **_):
    made = datasets.Dataset.from_list(ROWS[kind])
    return {{"test": made, "train": made}}


def choices(**given):
    return of("choices")


def pairs(**given):
    return of("pairs")


def texts(**given):
    return of("texts")


def questions(**given):
    return of("questions")


def of_row(doc):
    return [doc["one"], doc["other"]]
"""
TASKS = {
    "own_choices": """
custom_dataset: !function rows.choices
output_type: multiple_choice
doc_to_text: "{{query}}"
doc_to_target: "{{label}}"
doc_to_choice: "{{endings}}"
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
""",
    "own_pairs": """
custom_dataset: !function rows.pairs
output_type: multiple_choice
doc_to_text: "{{label}}"
doc_to_target: "{{ending}}"
doc_to_choice: !function rows.of_row
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
""",
    "own_texts": """
custom_dataset: !function rows.texts
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: word_perplexity, aggregation: weighted_perplexity, higher_is_better: false}]
""",
    "own_questions": """
custom_dataset: !function rows.questions
output_type: generate_until
doc_to_text: "{{text}}"
doc_to_target: "{{answer}}"
generation_kwargs: {do_sample: false, temperature: 0.0, max_gen_toks: 24, until: ["\\n", "."]}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
""",
}


def sentences(start: int, count: int) -> str:
    return " ".join(
        f"On day {start + i} the carrier of {PLACES[(start + i) % 6]} wrote {7 * i + start} letters to {PLACES[i % 6]}."
        for i in range(count)
    )


def rows() -> dict[str, list[dict[str, Any]]]:
    """Contexts and endings of many lengths, endings of one token and of a whole sentence among them."""
    choices = [
        {
            "query": f"{sentences(i, 1 + 2 * (i % 3))} The next morning they met at",
            "endings": [f" {place}" for place in PLACES[i % 3 :][:3]] + [" it", f" {PLACES[0]}, and {sentences(i, 1)}"],
            "label": i % 3,
        }
        for i in range(4)
    ]
    choices += [{**choices[0], "query": f"{choices[0]['query']} "}]  # a blank at the end, which goes to the endings
    pairs = [
        {
            "one": f"{sentences(i, 1)} The carrier",
            "other": f"{sentences(i, 1)} The letters",
            "ending": " came home late.",
            "label": i % 2,
        }
        for i in range(3)
    ]
    texts = [{"text": sentences(i, 1 + 3 * i)} for i in range(2)]
    asked = "\nQuestion: Which number of letters was written on day {}? Answer:"
    questions = [{"text": sentences(i, 2 + i) + asked.format(i), "answer": str(i)} for i in range(3)]
    return {"choices": choices, "pairs": pairs, "texts": texts, "questions": questions}


def write_folder(folder: Path) -> Path:
    """The four tasks and their rows."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rows.py").write_text(ROWS.format(rows=json.loads(json.dumps(rows()))))
    for name, text in TASKS.items():
        (folder / f"{name}.yaml").write_text(f"task: {name}{text}test_split: test\ntraining_split: train\n")
    return folder


def answers(samples: list[dict[str, Any]]) -> list[Any]:
    """What a model answered to every row, in order: texts, or (log-probability, greedy)."""
    return [[response[0] for response in sample["resps"]] for sample in sorted(samples, key=lambda s: s["doc_id"])]
