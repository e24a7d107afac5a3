"""BABILong as it is published: the samples of RMT-team/babilong, with `input`, `question` and `target` each.

The samples of one task at one published length are a JSON file. It is read from a source folder, or else the same rows
are loaded from the hub at a pinned revision.

The published lengths, 0k to 10M, are in GPT-2's tokens and leave 300 for the rest of the prompt. Here a length is in
tokens of the model under test, as everywhere, and nothing is cut: at a length, the longest file is read whose name
promises no more. If one of its samples does not fit the length, the error names a length that holds it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from anchoreval.errors import SourceError
from anchoreval.schema import Json, Sample
from anchoreval.suites import FileState
from anchoreval.suites.babilong.generate import BabilongTask, labels, prompt_of
from anchoreval.suites.babilong.stories import BABI, NAMES, ZIP, file_name
from anchoreval.suites.babilong.stories import find as find_stories
from anchoreval.suites.files import state_of
from anchoreval.suites.general import harness as lm_eval_tasks
from anchoreval.suites.general.rows import sha256_of_rows
from anchoreval.suites.recipe import Recipe, options
from anchoreval.texts.filling import too_short
from anchoreval.texts.reading import checked_text, json_lines, json_of, text_of
from anchoreval.texts.sources import Sources

DATASET = "RMT-team/babilong"
REVISION = "ee0d588794c7ac098062ee0d247c733d62e94fe2"
ADDRESS = f"https://huggingface.co/datasets/{DATASET}/tree/{REVISION}/data"
SAMPLES = 100  # in every file
FOLDERS = ("", "data", "babilong", "babilong/data")
_FIELDS = ("input", "question", "target")
_THOUSANDS = {
    "0k": 0, "1k": 1, "2k": 2, "4k": 4, "8k": 8, "16k": 16, "32k": 32, "64k": 64, "128k": 128, "256k": 256,
    "512k": 512, "1M": 1000, "10M": 10_000,
}  # fmt: skip
#: The longest published length of a task; 0k for the tasks that are not named here.
_LONGEST = {**{f"qa{n}": "10M" for n in range(1, 6)}, **{f"qa{n}": "1M" for n in range(6, 11)}}


def names(data: str) -> list[str]:
    """Return the names of the lengths at which a task is published, shortest first."""
    last = _THOUSANDS[_LONGEST.get(data, "0k")]
    return [name for name, thousands in _THOUSANDS.items() if thousands <= last]


def name_at(data: str, length: int) -> str:
    """Return the name of the published length that is read at `length` tokens."""
    return [name for name in names(data) if _THOUSANDS[name] * 1000 <= length][-1]


def generate(recipe: Recipe) -> Iterator[Sample]:
    """Yield the samples of a file in order; raise LengthError if one of them does not fit."""
    task = options(recipe, BabilongTask)
    name = name_at(task.data, recipe.length)
    samples = []
    for index, (text, question, target) in enumerate(rows(recipe, task.data, name)):
        segments = prompt_of(task.data, text, question, recipe.wrap)
        tokens = recipe.counted(recipe.tokens_of(segments))
        facts = {"tokens": tokens, "published_length": name, "labels": labels(task.data), "question": question}
        samples.append(recipe.sample(index, segments, (target,), facts))
    needed = max(sample.facts["tokens"] for sample in samples) + recipe.outside - recipe.uncounted
    if needed > recipe.length:
        raise too_short(recipe.length, needed if name_at(task.data, needed) == name else None)
    yield from samples


def find(sources: Sources, data: str, name: str) -> Path | None:
    """Return the path of a task's file in the first source folder that has it, or None."""
    paths = (place / inner / data / f"{name}.json" for place in sources.places() for inner in FOLDERS)
    return next((path for path in paths if path.is_file()), None)


def rows(recipe: Recipe, data: str, name: str) -> list[list[str]]:
    """Return input, question and target of the first `recipe.count` samples of a file, and note it in the sources.

    Raise SourceError if there are fewer.
    """
    file = f"babilong/{data}/{name}.json"
    path = find(recipe.sources, data, name)
    content: Sequence[Json] = of_hub(recipe.sources, data, name) if path is None else parse(path)
    where = str(path or f"{DATASET}/{data}/{name}")
    if len(content) < recipe.count:
        hint = f": --limit {len(content)}" * bool(content)
        raise SourceError(f"{where} has {len(content)} samples, {recipe.count} were asked for{hint}")
    if path:
        recipe.sources.note(file, path, None, folder="babilong")
    else:
        origin: dict[str, Json] = {"dataset": DATASET, "revision": REVISION}
        recipe.sources.note_rows(file, sha256_of_rows(content), len(content), True, folder="babilong", **origin)
    samples = []
    for index in range(recipe.count):
        fields = content[index] if isinstance(content[index], dict) else {}
        place, form = f"{where}: sample {index}", "BABILong's own samples"
        samples.append([checked_text(fields.get(key), place, key, form) for key in _FIELDS])
    return samples


def of_hub(sources: Sources, data: str, name: str) -> Sequence[Json]:
    """Return the hub's rows of a task at a published length; raise SourceError if they cannot be loaded."""
    why = "offline"
    if not sources.offline:
        try:
            with lm_eval_tasks.quiet():
                import datasets

                loaded: Sequence[Json] = datasets.load_dataset(DATASET, name, split=data, revision=REVISION)
            return loaded
        except ModuleNotFoundError:
            why = "that needs pip install datasets"
        except Exception as error:  # datasets and huggingface_hub raise many kinds
            why = lm_eval_tasks.first_line(error)
    looked = " and ".join(map(str, sources.places()))
    raise SourceError(
        f"{data}/{name}.json of BABILong is missing (looked in {looked}; from the hub: {why}), published at {ADDRESS}: "
        "put it there and name the folder with --data-dir"
    )


def parse(path: Path) -> list[Json]:
    """Return the samples of a file, which is a JSON list or has one JSON object in each line."""
    text = text_of(path)
    if text.lstrip().startswith("["):
        return list(json_of(text, str(path)))
    return [row for _, row in json_lines(text.encode().split(b"\n"), path)]


def states(sources: Sources) -> Iterator[FileState]:
    """Yield the state of bAbI's zip or its unpacked files, then of the published samples that are there.

    No hash of those samples is known.
    """
    stories = {data: find_stories(sources, data) for data in NAMES}
    unpacked = {data: path for data, path in stories.items() if path and path.name != ZIP}
    if not unpacked or any(path and path.name == ZIP for path in stories.values()):
        yield state_of(BABI, next((path for path in stories.values() if path and path.name == ZIP), None))
    for data, story_file in unpacked.items():
        yield FileState(file_name(data), "unpinned", f"{story_file}, only {ZIP} has a hash")
    known = [(data, name) for data in NAMES for name in names(data)]
    there = {(data, name): path for data, name in known if (path := find(sources, data, name))}
    for (data, name), path in there.items():
        yield FileState(f"{data}/{name}.json", "unpinned", f"{path}, revision {REVISION[:7]} has no hash")
    if not there:
        yield FileState("qa*/*k.json", "missing", f"published at {ADDRESS}: a run takes them from the hub")
