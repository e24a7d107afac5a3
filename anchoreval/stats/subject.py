"""`Subject`: the thing that is compared, which is an arm of a model, with prompts of one form, on one engine.

Two models, two forms of prompts or two engines are compared in the same way as two arms. The label of a subject names
what distinguishes it from the subjects beside it, and leaves out what they share.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from anchoreval.schema import Json, original_of

_MARK = 8  # number of digits of a hash in a label


@dataclass(frozen=True, slots=True)
class Subject:
    """An arm of a model in a form of prompts on an engine; values that a run does not tell are empty.

    `weights` is the SHA-256 of the model's weights, and `outside` holds those of the arm's outside code: two hashes
    under one name are two subjects. `run` is the name or path of the run that computed it; it is empty if a board
    combines several runs.
    """

    arm: str
    model: str = ""
    weights: str = ""
    form: str = ""
    engine: str = ""
    dtype: str = ""
    kernel: str = ""
    outside: tuple[str, ...] = ()
    run: str = ""

    @property
    def original(self) -> Subject | None:
        """The subject that this one is the placebo of; None if it is no placebo."""
        arm = original_of(self.arm)
        return None if arm is None else replace(self, arm=arm)

    def facet(self, name: str) -> str:
        """Return the text of one attribute for a label."""
        value = getattr(self, name)
        if name == "outside":
            return "source " + " and ".join(sha256[:_MARK] for sha256 in value) if value else ""
        hashed = name == "weights" or (name == "run" and "/" not in value)
        return str(value[:_MARK] if hashed else value)


@dataclass(frozen=True, slots=True)
class Trained:
    """How a model was trained, as the card beside its weights says; models that differ in seed alone are one variant.

    `step` is the step of the weights and `steps` the number asked for; `rest` is a hash of everything else that decides
    the weights: data, base, length, RoPE base, batch and hyper-parameters.
    """

    variant: str
    rope: str
    seed: int
    step: int
    steps: int
    rest: str = ""

    @classmethod
    def of(cls, card: Mapping[str, Json]) -> Trained | None:
        """Return what a training card says; None if it lacks one of these facts."""
        variant, rope = card.get("variant"), card.get("rope")
        numbers = [card.get(name) for name in ("seed", "step", "steps")]
        if not (isinstance(variant, str) and isinstance(rope, str) and all(type(each) is int for each in numbers)):
            return None
        seed, step, steps = map(int, numbers)  # type: ignore[arg-type]
        hyper = card.get("hyper")
        constant = isinstance(hyper, Mapping) and hyper.get("schedule") == "constant"
        deciding = _DECIDING if constant else (*_DECIDING, "steps")
        rest = json.dumps({name: card.get(name) for name in deciding}, sort_keys=True, default=str)
        return cls(variant, rope, seed, step, steps, hashlib.sha256(rest.encode()).hexdigest())

    @property
    def name(self) -> str:
        """`anchor-bf16`: the variant with its RoPE level."""
        return f"{self.variant}-{self.rope}"

    @property
    def step_words(self) -> str:
        """The steps, and `8 of 16` for a checkpoint on the way."""
        return f"{self.step:,}" if self.step >= self.steps else f"{self.step:,} of {self.steps:,}"


_DECIDING = (
    "length", "batch_tokens", "theta", "rope_type", "document_start", "hyper", "data_sha256", "base_sha256", "anchor",
)  # fmt: skip

#: Attributes that a label may show, in order -> attributes in which subjects must agree before this one is shown.
_FACETS: dict[str, tuple[str, ...]] = {
    "model": (), "weights": ("model",), "form": (), "engine": (), "dtype": (), "kernel": (), "outside": ("arm",),
    "run": ("arm", "model", "weights", "form", "engine", "dtype", "kernel", "outside"),
}  # fmt: skip


def labels(subjects: Iterable[Subject]) -> dict[Subject, str]:
    """Return a label for each subject: the arm, and in brackets what distinguishes it, such as `bf16 (tiny, vllm)`.

    Subjects that agree in everything else are distinguished by their run.
    """
    beside = dict.fromkeys(subjects)
    values: dict[tuple[object, ...], set[object]] = {}

    def group(one: Subject, name: str) -> set[object]:
        return values.setdefault((name, *(getattr(one, key) for key in _FACETS[name])), set())

    for one in beside:
        for name in _FACETS:
            group(one, name).add(getattr(one, name))
    said = {one: ", ".join(filter(None, (one.facet(name) for name in _FACETS if len(group(one, name)) > 1)))
            for one in beside}  # fmt: skip
    return {one: f"{one.arm} ({words})" if words else one.arm for one, words in said.items()}
