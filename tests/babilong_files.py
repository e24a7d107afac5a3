"""bAbI's and BABILong's files in their real form, with stories of our own in bAbI's words."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from random import Random

from anchoreval.suites.babilong.generate import labels
from anchoreval.suites.babilong.stories import file_name

STORIES = 40
_PEOPLE = ("Mary", "John", "Sandra", "Daniel")
_PLACES = ("bathroom", "bedroom", "garden", "hallway", "kitchen", "office")
#: Every task's question, as bAbI puts it: with a space before the tab.
QUESTIONS = {
    "qa1": "Where is Mary? ", "qa2": "Where is the milk? ", "qa3": "Where was the milk before the attic? ",
    "qa4": "What is north of the attic? ", "qa5": "Who gave it away? ", "qa6": "Is Mary in the attic? ",
    "qa7": "How many objects is Mary carrying? ", "qa8": "What is Mary carrying? ", "qa9": "Is Mary in the attic? ",
    "qa10": "Is Mary in the attic? ", "qa11": "Where is Mary? ", "qa12": "Where is Mary? ", "qa13": "Where is Mary? ",
    "qa14": "Where was Mary before the attic? ", "qa15": "What is Gertrude afraid of? ",
    "qa16": "What color is Greg? ", "qa17": "Is the square above the sphere? ", "qa18": "Does the box fit? ",
    "qa19": "How do you go from the attic to the cellar? ", "qa20": "Why did Yann go there? ",
}  # fmt: skip


def answer(data: str, number: int) -> str:
    """A label of the task, for lists sometimes two."""
    if data == "qa8" and number % 3 == 0:
        return "apple,milk"
    return labels(data)[number % len(labels(data))]


def babi_text(data: str, stories: int = STORIES, facts: int = 4) -> str:
    """A file as bAbI writes it: two questions in each story, the second with two supporting lines."""
    rng, lines = Random(data), []
    for number in range(stories // 2):
        place = 0
        for question in range(2):
            for _ in range(facts):
                place += 1
                lines.append(f"{place} {rng.choice(_PEOPLE)} went back to the {rng.choice(_PLACES)}.")
            place += 1
            support = str(place - 1) if not question else f"{place - 2} {place - 1}"
            lines.append(f"{place} {QUESTIONS[data]}\t{answer(data, 2 * number + question)}\t{support}")
    return "\n".join(lines) + "\n"


def write_babi(folder: Path, zipped: bool = False, stories: int = STORIES) -> Path:
    """The training files of all tasks, unpacked or in a zip; returns the source folder."""
    texts = {f"tasks_1-20_v1-2/en-10k/{file_name(data)}": babi_text(data, stories) for data in QUESTIONS}
    if zipped:
        (folder / "babilong").mkdir(parents=True)
        with zipfile.ZipFile(folder / "babilong/tasks_1-20_v1-2.zip", "w") as archive:
            for name, text in texts.items():
                archive.writestr(name, text)
        return folder
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def published_rows(data: str, words: int, count: int = 3) -> list[dict[str, str]]:
    """Samples as they are published, `words` words long or a little more."""
    filler = "The lamp was lit before the ship came in. " * (words // 9)
    return [
        {
            "input": f"{filler}Mary went back to the garden. {filler}Sample {index} ends here.",
            "question": QUESTIONS[data],
            "target": answer(data, index),
        }
        for index in range(count)
    ]


def write_published(folder: Path, names: dict[str, int]) -> Path:
    """Files of all tasks at these published lengths; returns the source folder."""
    for data in QUESTIONS:
        for name, words in names.items():
            path = folder / "babilong/data" / data / f"{name}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(published_rows(data, words)), encoding="utf-8")
    return folder
