"""Read cards: the strict YAML files of `tasks/` and `models/`, as frozen objects.

Unknown keys, repeated keys and wrong types are refused with file, entry and key. Numbers in YAML are plain integers or
decimals; nothing is inherited across files.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from anchoreval.cards.packaged import Package, packaged_folder
from anchoreval.cards.strict_yaml import one_line, read_yaml
from anchoreval.errors import CardError, ModelError, UnknownName

BETWEEN = r"[,\s]+"  # names in one text
LengthOf = Literal["sample", "prompt", "natural"]


class Strict(BaseModel):
    """A frozen object. An unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class TaskEntry(Strict):
    """One task of a suite card. `reference` says how the reference answer is written out, for its log-probability.

    `samples` and `scorer` default to the suite's. `settings` are added to the suite's.
    """

    generator: str
    args: dict[str, Any] = Field(default_factory=dict)
    max_new_tokens: Annotated[int, Field(ge=0)]
    samples: Annotated[int, Field(gt=0)] | None = None
    scorer: str | None = None
    reference: Literal["comma", "space", "numbered", "first"] = "comma"
    settings: list[str] = Field(default_factory=list)


class Defaults(Strict):
    """What every task of a suite shares. `length_of` says what a length means.

    `sample`: the length of the whole input plus the answer, to be filled. `prompt`: the length at which a longer prompt
    is cut; such a suite is run at one of its lengths, the longest that the model has room for. `natural`: prompts keep
    their own length; such a suite has no lengths, and the lengths asked for do not concern it.
    """

    samples: Annotated[int, Field(gt=0)]
    lengths: list[Annotated[int, Field(gt=0)]]
    length_of: LengthOf = "sample"
    scorer: str

    @model_validator(mode="after")
    def _lengths_where_there_are_any(self) -> Self:
        if bool(self.lengths) == (self.length_of == "natural"):
            raise ValueError("lengths: [] goes with length_of: natural, and with nothing else")
        return self


class SuiteCard(Strict):
    """A file of `tasks/`, or a card from outside the package.

    `settings` are the generator arguments that a run may choose (`with_settings`). `module` is the Python file beside a
    card from outside that makes and judges its samples.
    """

    about: str
    source: str
    license: str
    version: int
    defaults: Defaults
    sets: dict[str, list[str]] = Field(default_factory=dict)
    settings: list[str] = Field(default_factory=list)
    module: str | None = None
    tasks: dict[str, TaskEntry]


class ModelCard(Strict):
    """A file of `models/`: a checkpoint and the flags that it is meant to run with.

    `checkpoint` is a hub id, or a folder beside the card. `package` replaces it if the weights ship inside a Python
    package; `find_model` then fills in the folder that is made from them.
    """

    about: str
    checkpoint: str = ""
    package: Package | None = None
    max_length: Annotated[int, Field(gt=0)] | None = None
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    template: Literal["base", "chat"] = "base"
    haystack: Literal["published", "generated"] = "published"
    license: str | None = None

    @model_validator(mode="after")
    def _one_place_of_weights(self) -> Self:
        if bool(self.checkpoint) == (self.package is not None):
            raise ValueError("a model has one place: checkpoint, or package")
        return self


class Origin(Strict):
    """The SHA-256 of a card from outside the package, and of the module beside it, if it has one."""

    card: str
    module: str | None = None


class Task(Strict):
    """A task with everything that can change a score. Its suite's defaults are filled in.

    `outside` is where a task from outside the package comes from.
    """

    suite: str
    name: str
    version: int
    generator: str
    args: dict[str, Any]
    scorer: str
    reference: Literal["comma", "space", "numbered", "first"]
    max_new_tokens: int
    samples: int
    lengths: tuple[int, ...]
    length_of: LengthOf = "sample"
    settings: tuple[str, ...] = ()
    outside: Origin | None = None

    @property
    def address(self) -> str:
        """`suite/task`."""
        return f"{self.suite}/{self.name}"


Card = TypeVar("Card", bound=BaseModel)


def load_card(path: Path, kind: type[Card]) -> Card:
    """Return a card as `kind`, read again if its file has changed; CardError names the file, the entry and the key."""
    file = path.stat() if path.is_file() else None
    card = _read(path, kind, file and (file.st_mtime_ns, file.st_size))
    assert isinstance(card, kind)
    return card


@cache
def _read(path: Path, kind: type[Strict], _: tuple[int, int] | None) -> Strict:
    content = read_yaml(path)
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = " > ".join(str(part) for part in first["loc"]) or "top level"
        raise CardError(f"{path}: {one_line(where)}: {one_line(first['msg'].lower())}") from error


def folder(kind: str) -> Path:
    """Return the folder of a kind of cards (`tasks`, `models`): inside an installed wheel, or beside the package."""
    installed = Path(__file__).parents[1] / "_cards" / kind
    return installed if installed.is_dir() else Path(__file__).parents[2] / kind


def tasks_of(path: Path) -> tuple[list[Task], Mapping[str, list[str]]]:
    """Return the tasks of a suite card, and its sets by name."""
    card, suite = load_card(path, SuiteCard), path.stem
    tasks = [
        Task(
            suite=suite,
            name=name,
            version=card.version,
            generator=entry.generator,
            args=entry.args,
            scorer=entry.scorer or card.defaults.scorer,
            reference=entry.reference,
            max_new_tokens=entry.max_new_tokens,
            samples=entry.samples or card.defaults.samples,
            lengths=tuple(card.defaults.lengths),
            length_of=card.defaults.length_of,
            settings=(*card.settings, *entry.settings),
        )
        for name, entry in card.tasks.items()
    ]
    for set_name, members in card.sets.items():
        for member in members:
            if member not in card.tasks:
                raise CardError(f"{path}: sets > {set_name}: {member!r} is no task of this card")
    return tasks, card.sets


def load_tasks(where: Path | None = None) -> tuple[dict[str, Task], dict[str, tuple[str, ...]]]:
    """Return all tasks by address, and the named sets (suites among them) as tuples of addresses."""
    tasks: dict[str, Task] = {}
    sets: dict[str, tuple[str, ...]] = {}
    for path in sorted((where or folder("tasks")).glob("*.yaml")):
        suite_tasks, suite_sets = tasks_of(path)
        tasks |= {task.address: task for task in suite_tasks}
        sets[path.stem] = tuple(task.address for task in suite_tasks)
        sets |= {name: tuple(f"{path.stem}/{member}" for member in members) for name, members in suite_sets.items()}
    return tasks, sets


def select_tasks(names: str, where: Path | None = None) -> tuple[list[Task], frozenset[str]]:
    """Return the tasks that `names` stand for, and which of them were named singly.

    A name is a suite, a set, a task, a glob, or a range such as `babilong/qa1..qa10`. Names stand between commas or
    spaces. Tasks come in the order of asking, each task once. Raise UnknownName, with the nearest suite or task, for
    any other name.
    """
    return pick(names, *load_tasks(where))


def pick(names: str, tasks: Mapping[str, Task], sets: Mapping[str, Sequence[str]]) -> tuple[list[Task], frozenset[str]]:
    """Return what `select_tasks` returns, of these tasks and sets."""
    chosen: dict[str, Task] = {}
    single: set[str] = set()
    for name in re.split(BETWEEN, names.strip()):
        matches = list(sets.get(name, ())) or fnmatch.filter(tasks, name) or _range(name)
        if unknown := [each for each in matches if each not in tasks] or [name] * (not matches):
            raise UnknownName("task", unknown[0], [*sets, *tasks])
        if name in tasks:
            single.add(name)
        chosen |= {address: tasks[address] for address in matches}
    return list(chosen.values()), frozenset(single)


def with_settings(tasks: Sequence[Task], settings: Mapping[str, Any]) -> list[Task]:
    """Return the tasks with `settings` as arguments of their generators, as far as their suites offer these settings.

    Raise CardError for a setting that none of the tasks has.
    """
    for name in settings:
        if not any(name in task.settings for task in tasks):
            having = sorted({task.suite for task in load_tasks()[0].values() if name in task.settings})
            owners = f"{' and '.join(having) or 'no suite'} {'have' if len(having) > 1 else 'has'} it"
            raise CardError(f"--{name.replace('_', '-')} is no setting of the chosen tasks: {owners}")
    chosen = [{name: value for name, value in settings.items() if name in task.settings} for task in tasks]
    return [task.model_copy(update={"args": task.args | args}) for task, args in zip(tasks, chosen, strict=True)]


def _range(name: str) -> list[str]:
    """Return the names from `suite/qa1` to `suite/qa10` for `suite/qa1..qa10` (or `..10`); none for any other text."""
    match = re.fullmatch(r"(.*?/(\D*))(\d{1,4})\.\.(?:\1|\2)?(\d{1,4})", name)
    return [f"{match[1]}{number}" for number in range(int(match[3]), int(match[4]) + 1)] if match else []


def load_models(where: Path | None = None) -> dict[str, ModelCard]:
    """Return all model cards by name."""
    return {path.stem: load_card(path, ModelCard) for path in sorted((where or folder("models")).glob("*.yaml"))}


def find_model(name: str, where: Path | None = None) -> tuple[str, ModelCard]:
    """Return display name and card of `name`: a card of `models/`, a local folder, or a hub id (`owner/name`)."""
    place = where or folder("models")
    cards = {file.stem: file for file in sorted(place.glob("*.yaml"))}
    if name in cards:
        card = load_card(cards[name], ModelCard)
        if card.package:
            return name, card.model_copy(update={"checkpoint": str(packaged_folder(name, card.package))})
        beside = place / card.checkpoint
        return name, card.model_copy(update={"checkpoint": str(beside)}) if beside.is_dir() else card
    path = _place(name) if name else None
    if path is not None and path.is_dir():
        return path.resolve().name, ModelCard(about=f"local checkpoint {path}", checkpoint=str(path))
    if path and name.count("/") == 1 and not name.startswith((".", "/", "~")) and not Path(name.split("/")[0]).is_dir():
        return name.split("/")[1], ModelCard(about=f"hub checkpoint {name}", checkpoint=name)
    if path is not None and path.is_file():
        how = "name the folder of a checkpoint; a .gguf is served by --backend openai, or is the package of a card"
        raise ModelError(f"{name} is a file, no model: {how}")
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or (path and path.suffix in (".gguf", ".safetensors")):
        kind = "file" if path and path.suffix in (".gguf", ".safetensors") else "folder"
        raise ModelError(f"{name[:200]}: there is no such {kind} (a hub id is OWNER/NAME, a card has no slash)")
    raise UnknownName("model (no card, folder or hub id of that name)", name, cards)


def _place(name: str) -> Path | None:
    """Return a name as a path; None if it cannot be a path (an unknown user, too long, a NUL)."""
    try:
        path = Path(name).expanduser()
        path.stat()
    except FileNotFoundError:
        return path
    except (OSError, RuntimeError, ValueError):
        return None
    return path
