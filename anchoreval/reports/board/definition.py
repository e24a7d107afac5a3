"""Strict YAML -> what a leaderboard shows: title, suites, lengths, arms, models, columns, order, baseline, reported.

An unknown or repeated key, an unknown column, or a missing suite or file raises an error of one line, which names the
file, the key and the known values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from anchoreval.cards import Strict, folder, load_card, pick
from anchoreval.errors import AnchorEvalError, CardError, UnknownName
from anchoreval.records.run import Run
from anchoreval.reports.board.reported import Reported, load_reported
from anchoreval.reports.board.view import RunView
from anchoreval.suites import Average, averages
from anchoreval.suites.outside import known_tasks

IDENTITY = ("model", "setting", "arm", "suite")
BY_LENGTH = "by_length"
#: Beside the published averages of the suites (`anchoreval.suites.averages`).
COLUMNS = {
    BY_LENGTH: "one column per length: the mean over the suite's tasks there",
    "mean": "the mean of the columns by length",
    "ruler_effective_length": "the longest length up to which RULER's 13 tasks average at least 85.6",
    "difference": "paired difference to the baseline over all samples of the row, in points",
    "verdict": "what the paired difference says",
    "p_holm": "its p value, corrected by Holm over the suites of an arm; with one suite that of `anchoreval compare`",
    "logprob": "log-probability per token of the reference answer, mean over cells",
    "samples": "scored of asked samples",
    "model_difference": "the paired difference to the same arm of the model or variant `baseline_model`, in points",
    "model_verdict": "what that difference says",
    "trained_as": "the variant that the model was trained as; this and the next three come first by themselves",
    "trained_rope": "the RoPE level that it was trained at",
    "seed": "the seed of its training",
    "steps": "the steps of its training",
}
TRAINED = ("trained_as", "trained_rope", "seed", "steps")
ACROSS = ("model_difference", "model_verdict")
Name = Annotated[str, Field(min_length=1)]


class Definition(Strict):
    """A file of `leaderboards/`. If `lengths`, `arms` or `models` is left out, the board takes all that the runs hold.

    Differences are taken to the arm `baseline`; `margin`, in points, is the largest difference that counts as
    equivalent. `baseline_model` is a model, or a trained variant such as `intra-doc-fp32`, whose seeds are then paired.
    """

    title: Name
    about: str = ""
    suites: Annotated[list[Name], Field(min_length=1)]
    lengths: list[Annotated[int, Field(gt=0)]] | None = None
    arms: list[Name] | None = None
    models: list[Name] | None = None
    baseline: Name
    baseline_model: Name | None = None
    margin: Annotated[float, Field(gt=0, lt=100)] = 1.0
    columns: Annotated[list[Name], Field(min_length=1)]
    order: list[Name] = Field(default_factory=list)
    reported: list[Name] = Field(default_factory=list)

    @model_validator(mode="after")
    def _consistent(self) -> Definition:
        for key in ("suites", "lengths", "arms", "models", "columns", "order", "reported"):
            values = getattr(self, key) or []
            twice = [value for i, value in enumerate(values) if value in values[:i]]
            if twice:
                raise ValueError(f"{key}: {twice[0]!r} is there twice")
        for name in self.columns:
            _known("columns", name, [*COLUMNS, *averages()])
        sortable = [*IDENTITY, *(name for name in self.columns if name != BY_LENGTH)]
        for name in self.order:
            _known("order", name.removeprefix("-"), sortable)
        across = next((name for name in self.columns if name in ACROSS), None)
        if across and self.baseline_model is None:
            raise ValueError(f"baseline_model: {across} needs the model to compare with")
        if self.arms is not None and self.baseline not in self.arms:
            raise ValueError(f"baseline: {self.baseline!r} is not among the arms {', '.join(self.arms)}")
        return self


@dataclass(frozen=True, slots=True)
class Declared:
    """A definition with its name (the file's stem), the tasks of every suite, the reported tables and the averages."""

    name: str
    definition: Definition
    suites: Mapping[str, tuple[str, ...]]
    reported: tuple[Reported, ...]
    averages: Mapping[str, Average]

    @property
    def tasks(self) -> tuple[str, ...]:
        """Return the tasks of all suites, each once."""
        return tuple(dict.fromkeys(task for tasks in self.suites.values() for task in tasks))


WIDE = 5  # lengths
MOST_ACROSS = 20  # models that a board of runs compares with the first


def of_runs(views: Sequence[Run | RunView]) -> Declared:
    """Return the definition of a board of runs: all that they hold, each against its own first arm.

    Their tasks are one suite, so that its pooled difference is that of `compare`.
    """
    tasks = tuple(dict.fromkeys(task for view in views for task in view.tasks))
    suites = {task.partition("/")[0] for task in tasks}
    firsts = {view.arms[0] for view in views if view.arms}
    name = suites.pop() if len(suites) == 1 else "all tasks"
    lengths = sorted({length for view in views for length in view.lengths})
    models = dict.fromkeys((view.model, str(view.header.model.get("sha256"))) for view in views)
    base = _baseline_model(views) if 1 < len(models) <= MOST_ACROSS else None
    over_arms = [] if base and all(len(view.arms) < 2 for view in views) else ["difference", "verdict", "p_holm"]
    title = views[0].model if len(views) == 1 else f"{len(views)} runs"
    means = ["mean"] if len(lengths) > 1 else []
    wide = len(lengths) > WIDE  # the verdict then stands before the lengths, where it is in view
    first = [*means, *over_arms, BY_LENGTH] if wide else [BY_LENGTH, *means, *over_arms]
    columns = [*first, "logprob", "samples"]
    definition = Definition.model_construct(
        title=title, suites=[name], lengths=lengths, baseline=firsts.pop() if len(firsts) == 1 else "",
        columns=[*columns, *(ACROSS if base else ())], baseline_model=base,
        arms=list(dict.fromkeys(arm for view in views for arm in view.arms)),
    )  # fmt: skip
    return Declared("board", definition, {name: tasks}, (), {})


def _baseline_model(views: Sequence[Run | RunView]) -> str:
    """Return the first model, or its variant if several seeds of it are there."""
    trained = views[0].header.trained
    seeds = {other.seed for view in views if (other := view.header.trained) and trained and other.name == trained.name}
    return trained.name if trained and len(seeds) > 1 else views[0].model


def find_definition(name: Path) -> Path:
    """Return the file of a board, from a path or from the name of a board of the package.

    Raise UnknownName with the nearest name, or CardError for a path that does not exist.
    """
    if name.exists():
        return name
    shipped = {path.stem: path for path in folder("leaderboards").glob("*.yaml")}
    if len(name.parts) > 1:
        raise CardError(f"{name}: no such file; boards of the package are named alone: {', '.join(sorted(shipped))}")
    if (stem := name.name.removesuffix(".yaml")) not in shipped:
        raise UnknownName("board (no file and no definition of that name)", name.name, shipped)
    return shipped[stem]


def load_definition(path: Path) -> Declared:
    """Return the board that a file declares; raise CardError with the file and the key."""
    definition = load_card(path, Definition)
    suites: dict[str, tuple[str, ...]] = {}
    for name in definition.suites:
        try:
            suites[name] = tuple(task.address for task in pick(name, *known_tasks())[0])
        except AnchorEvalError as error:
            raise CardError(f"{path}: suites: {error}") from error
    tables = []
    for name in definition.reported:
        try:
            tables.append(load_reported(path.parent / name))
        except CardError as error:
            raise CardError(f"{path}: reported: {error}") from error
    return Declared(path.stem, definition, suites, tuple(tables), averages())


def _known(key: str, name: str, known: list[str]) -> None:
    if name not in known:
        raise ValueError(f"{key}: {UnknownName('column', name, known)}")
