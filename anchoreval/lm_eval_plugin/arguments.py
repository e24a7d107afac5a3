"""Read `--model_args` and `--metadata` of lm-eval, whose values come as floats or text, into typed arguments."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from anchoreval.arms.arm import DEFAULT_KERNEL, Arm, parse_arm
from anchoreval.backends import BACKENDS
from anchoreval.backends.options import OPTIONS
from anchoreval.errors import AnchorEvalError
from anchoreval.suites import settings as settings_of_suites
from anchoreval.tokenizer.chat_template import read_template_arg

#: Arguments that lm-eval adds for every model. They are ignored: `batch_tokens` and `rows` size the batches.
GIVEN_BY_LM_EVAL = frozenset({"batch_size", "max_batch_size"})
#: Arguments that every backend takes, and arguments that only some take.
OF_ENGINES = ("dtype", "device", "kernel", "trust_remote_code")
OF_SOME = ("chunk_tokens", "batch_tokens", "rows", "realisation")


class BadArgument(AnchorEvalError, ValueError):
    """A model argument that is unknown or has an invalid value."""


@dataclass(frozen=True, slots=True)
class ModelArguments:
    """The model, the arm, and how to compute it. `arm` spells a whole arm and replaces rope, positions, attention."""

    pretrained: str
    tokenizer: str | None = None
    arm: str | None = None
    rope: str | None = None
    positions: str | None = None
    attention: str | None = None
    dtype: str | None = None
    device: str | None = None
    kernel: str | None = None
    max_length: int | None = None
    add_bos_token: bool | None = None
    prefix_token_id: int | None = None
    trust_remote_code: bool | None = None
    chunk_tokens: int | None = None
    batch_tokens: int | None = None
    rows: int | None = None
    realisation: str | None = None
    document_tokens: int | None = None
    more: dict[str, Any] = field(default_factory=dict)  # other options of the backend

    def engine(self) -> dict[str, Any]:
        """Return the given options of the backend."""
        given = {name: value for name in (*OF_ENGINES, *OF_SOME) if (value := getattr(self, name)) is not None}
        return given | self.more

    def as_arm(self, dtype: str) -> Arm:
        """Return the arm, in the model's `dtype`; raise BadArgument if both `arm` and a part of it are given."""
        parts = {name: getattr(self, name) for name in ("rope", "positions", "attention")}
        if self.arm is not None and (given := [name for name, value in parts.items() if value is not None]):
            raise BadArgument(f"model_args: arm={self.arm} says all of it: leave out {', '.join(given)}")
        attention = f"{self.attention}/" if self.attention else ""
        positions = f"+{self.positions}" if self.positions else ""
        spelled = self.arm or f"{attention}{self.rope or 'native'}{positions}"
        return parse_arm(spelled, dtype, self.kernel or DEFAULT_KERNEL)


@dataclass(frozen=True, slots=True)
class PromptArguments:
    """How the prompts of our own tasks are made; the defaults are those of `anchoreval run`.

    `template_args` are a JSON object, or KEY=VALUE pairs separated by `;`, such as `enable_thinking=false`.
    """

    template: Literal["base", "chat"] | None = None
    template_args: dict[str, Any] | None = None
    anchor: Literal["auto", "none"] = "auto"
    haystack: Literal["published", "generated"] | None = None
    data_dir: str | None = None
    wordlists: Literal["3.0.1", "2.2.0"] = "3.0.1"
    no_context: bool = False
    seed: int = 42


Kind = TypeVar("Kind", ModelArguments, PromptArguments)


def model_arguments(given: Mapping[str, Any], engine: str = "hf") -> ModelArguments:
    """Return the arguments of a model on the backend `engine`.

    Raise BadArgument, with the known names, for an unknown argument. Arguments of our tasks' prompts are accepted and
    ignored, because lm-eval passes the arguments of models and tasks to both.
    """
    fields = [each.name for each in dataclasses.fields(ModelArguments) if each.name != "more"]
    given_by_run, options = BACKENDS[engine].takes, OPTIONS.get(engine, {})
    names = [name for name in fields if name not in OF_SOME or name in given_by_run or name in options]
    more = [name for name in options if name not in fields and name not in given_by_run]
    prompts = [each.name for each in dataclasses.fields(PromptArguments)]
    known = {*names, *more, *prompts, *settings_of_suites(), *GIVEN_BY_LM_EVAL}
    if "backend" in given:
        raise BadArgument("model_args: backend= is a word of lm-eval's hf model: the name of the model chooses ours")
    if unknown := sorted(set(given) - known):
        listed = ", ".join([*names, *more, *prompts])
        raise BadArgument(f"model_args: unknown {', '.join(unknown)} (known: {listed})")
    if not given.get("pretrained"):
        raise BadArgument("model_args: pretrained=MODEL is needed: a card of models/, a folder or a hub id")
    others = {name: value for name in more if (value := given.get(name)) is not None}
    for name, value in others.items():  # lm-eval's command line may have made a whole number a float
        others[name] = int(value) if isinstance(value, float) and value.is_integer() else value
    return dataclasses.replace(_read(ModelArguments, given, names), more=others)


def prompt_arguments(metadata: Mapping[str, Any]) -> PromptArguments:
    """Return the prompt arguments in a task's metadata; other metadata of lm-eval is ignored."""
    return _read(PromptArguments, metadata, [each.name for each in dataclasses.fields(PromptArguments)])


def settings(metadata: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
    """Return the settings in a task's metadata, of those that its suite has (`known`)."""
    suites = settings_of_suites()
    given = {name: metadata[name] for name in known if name in suites and metadata.get(name) is not None}
    return {name: _as(suites[name].kind, value, name) for name, value in given.items()}


def _read(kind: type[Kind], given: Mapping[str, Any], names: Collection[str]) -> Kind:
    hints = get_type_hints(kind)
    values = {name: given[name] for name in names if given.get(name) is not None}
    return kind(**{name: _as(hints[name], value, name) for name, value in values.items()})


def _as(hint: Any, value: Any, name: str) -> Any:
    """Return `value` as the type of the field `name`; raise BadArgument if it is no such value.

    lm-eval's command line may have made a whole number a float: -1 becomes -1.0.
    """
    hints = (hint,) if get_origin(hint) is Literal else get_args(hint) or (hint,)
    (kind,) = {kind for kind in hints if kind is not type(None)}
    text, said = str(value), f"model_args: {name}={value!r} is"
    if get_origin(kind) is Literal:
        if text not in get_args(kind):
            raise BadArgument(f"{said} not one of {', '.join(get_args(kind))}")
        return text
    if get_origin(kind) is dict:
        return _template_args(value, said)
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise BadArgument(f"{said} neither True nor False")
        return text.lower() == "true"
    if kind is not int:
        return text
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = 0.5
    if isinstance(value, bool) or not number.is_integer():
        raise BadArgument(f"{said} not a whole number")
    return int(number)


def _template_args(value: Any, said: str) -> dict[str, Any]:
    """Return the arguments of a chat template by name; raise BadArgument for what `--template-args` refuses too."""
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise BadArgument(f"{said} no JSON: {error}") from error
    if isinstance(value, Mapping):
        if not all(isinstance(each, str | int | float | bool | None) for each in value.values()):
            raise BadArgument(f"{said} no object of text, numbers, true, false and null")
        return {str(name): each for name, each in value.items()}
    try:
        return dict(read_template_arg(part.strip()) for part in str(value).split(";") if part.strip())
    except AnchorEvalError as error:
        raise BadArgument(f"{said} none: {error}") from error
