"""What a generator is asked for: task, length, number of samples, sources and tokenizer."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from anchoreval.errors import CardError
from anchoreval.schema import Json, Sample, Segment, Tokenizer, Wrap
from anchoreval.texts.filling import Fitted, most, too_short

if TYPE_CHECKING:
    from anchoreval.texts.sources import Sources

Options = TypeVar("Options")
BASE = Wrap()  # no chat template


@dataclass(frozen=True, slots=True)
class Recipe:
    """One task at one length, in tokens of the model; `args` are the card's.

    `outside` is the number of tokens that the model is fed beside the prompt's text: an anchor, a server's own chat
    template. The length holds them, the prompt and `max_new_tokens`. `uncounted` is the number of tokens that the
    length of a published benchmark does not hold, so that its prompts stay as they were published
    (`LengthRule` of runs.prompts says what counts). `front` is the anchor token, text and id, if one is put in front.
    A prompt may take `room` tokens; the `reserved` ones of the length are not for the prompt.
    """

    task: str
    length: int
    max_new_tokens: int
    count: int
    args: Mapping[str, Json]
    tokenizer: Tokenizer
    sources: Sources
    wrap: Wrap = BASE
    seed: int = 42
    outside: int = 0
    uncounted: int = 0
    front: tuple[str, int] | None = None
    reserved: int = field(init=False)
    room: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "reserved", self.max_new_tokens + self.outside - self.uncounted)
        object.__setattr__(self, "room", self.length - self.reserved)

    def tokens_of(self, segments: Iterable[Segment]) -> int:
        """Return the tokens of a prompt of these segments."""
        return self.tokenizer.count("".join(segment.text for segment in segments))

    def most_units(self, tokens: Callable[[int], int], least: int, guess: int) -> int:
        """Return the most units (`least` or more) that fit the room, as `texts.filling.most` finds them.

        Raise LengthError if `least` units do not fit.
        """
        units = most(tokens, self.room, least, guess)
        if units is None:
            raise too_short(self.length, tokens(least) + self.reserved)
        return units

    def counted(self, prompt: int) -> int:
        """Return `prompt` tokens plus the answer budget, as published benchmarks count: the fact `tokens`."""
        return prompt + self.max_new_tokens

    def tokens(self, prompt: int) -> int:
        """Return the tokens that the model is fed with a prompt of `prompt` tokens, plus the answer budget."""
        return self.counted(prompt) + self.outside

    def sample(
        self, index: int, segments: tuple[Segment, ...], references: tuple[str, ...], facts: Mapping[str, Json]
    ) -> Sample:
        """Return sample `index` of the task at the length."""
        return Sample(self.task, self.length, index, segments, references, self.max_new_tokens, facts)

    def fitted(self, index: int, text: Fitted, unit: str, facts: Mapping[str, Json]) -> Sample:
        """Return sample `index`, a text that fits the room; `unit` is what its haystack was counted in."""
        tokens = text.tokens + self.max_new_tokens
        facts = {"tokens": tokens, "units": text.units, "unit": unit, "fit": text.how, **facts}
        segments, references = text.draft.segments(), text.draft.references
        return Sample(self.task, self.length, index, segments, references, self.max_new_tokens, facts)


Make = Callable[[Recipe], Iterator[Sample]]


class CardArgs(NamedTuple):
    """The arguments that a task's card gives to its generator."""

    task: str
    args: Mapping[str, Json]


@dataclass(frozen=True, slots=True)
class NoArgs:
    """The `args` of a card whose generator takes none."""


def options(asked: Recipe | CardArgs, kind: type[Options]) -> Options:
    """Return the card's `args` as an instance of the dataclass `kind`.

    Raise CardError that names the task, the argument and its possible values.
    """
    task, args = asked.task, asked.args
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(kind)
    for name, value in args.items():
        if name not in fields:
            raise CardError(f"{task}: args: unknown argument {name!r} (known: {', '.join(fields)})")
        hint, where = hints[name], f"{task}: args.{name}: {value!r} is"
        if typing.get_origin(hint) is typing.Literal:
            if value not in typing.get_args(hint):
                raise CardError(f"{where} not one of {', '.join(map(str, typing.get_args(hint)))}")
        elif hint is str:
            if not isinstance(value, str):
                raise CardError(f"{where} not text")
        elif isinstance(value, bool) or not isinstance(value, (int, float) if hint is float else hint):
            raise CardError(f"{where} not {'a number' if hint is float else 'a whole number'}")
        elif value <= 0:
            raise CardError(f"{where} not positive")
    required = [name for name, field in fields.items() if field.default is field.default_factory is dataclasses.MISSING]
    missing = [name for name in required if name not in args]
    if missing:
        raise CardError(f"{task}: args: missing {', '.join(missing)}")
    return kind(**args)


def sample_of(
    recipe: Recipe, index: int, segments: Sequence[Segment], reference: str, facts: dict[str, Json]
) -> Sample:
    """Return the finished sample without empty segments; its facts include `tokens` (Recipe.counted)."""
    kept = tuple(segment for segment in segments if segment.text)
    tokens = recipe.counted(recipe.tokens_of(kept))
    return recipe.sample(index, kept, (reference,), {"tokens": tokens, **facts})
