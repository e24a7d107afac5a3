"""docs/cards.md: the keys of every kind of YAML file, from the models that read them."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from anchoreval.cards import Defaults, ModelCard, SuiteCard, TaskEntry
from anchoreval.cards.packaged import Package
from anchoreval.reports.board.definition import COLUMNS, Definition
from anchoreval.training.recipes import RecipeCard

FILES: dict[str, tuple[type[Any], ...]] = {
    "A suite: `tasks/*.yaml`": (SuiteCard, Defaults, TaskEntry),
    "A model: `models/*.yaml`": (ModelCard, Package),
    "A board: `leaderboards/*.yaml`": (Definition,),
    "A recipe of training: `models/recipes/*.yaml`": (RecipeCard,),
}


def cards() -> str:
    """Return the page."""
    lines = [
        "# Keys of cards",
        "",
        "`make pages` makes this page from the models that read the files. An unknown key, a repeated one or a wrong",
        "kind of value is refused with file, entry and key; nothing is inherited across files.",
    ]
    for title, models in FILES.items():
        lines += ["", f"## {title}"]
        for model in models:
            lines += _table(model)
    lines += ["", "Columns of a board:", "", "| column | what it shows |", "|---|---|"]
    lines += [f"| `{name}` | {about} |" for name, (_, about) in COLUMNS.items()]
    return "\n".join(lines) + "\n"


def _table(model: type[Any]) -> Iterator[str]:
    yield from ("", f"**{model.__name__}.** {inspect.getdoc(model)}", "", "| key | value | default |", "|---|---|---|")
    for name, field in model.model_fields.items():
        default = "must be given" if field.is_required() else f"`{_default(field)}`"
        yield f"| `{name}` | {_kind(field.annotation)} | {default} |"


def _default(field: FieldInfo) -> Any:
    value = field.get_default(call_default_factory=True)
    return {"None": "null", "": '""'}.get(str(value), value)


def _kind(annotation: Any) -> str:
    """Return what a value is, in words."""
    words = {str: "text", int: "whole number", float: "number", bool: "true or false", type(None): "null", Any: "any"}
    if annotation in words:
        return words[annotation]
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"the keys below: {(annotation.__doc__ or '').split('.')[0]}"
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _kind(args[0])
    if origin is list:
        return f"list of {_kind(args[0])}"
    if origin is dict:
        return f"mapping of {_kind(args[0])} to {_kind(args[1])}"
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in args)
    return " or ".join(_kind(part) for part in args)
