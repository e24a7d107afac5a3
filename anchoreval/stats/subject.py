"""What is compared: an arm, on the prompts of one form, of a model that an engine computes.

Two models, two forms of prompts or two engines are compared as two arms are. A label says of a subject what tells it
from those that it stands beside, and leaves out what they share.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from anchoreval.schema import original_of

_MARK = 8  # digits of a hash that a label shows


@dataclass(frozen=True, slots=True)
class Subject:
    """An arm of a model in a form of prompts on an engine; what a run does not say of it is empty.

    `weights` is the SHA-256 of the model's, `outside` those of the sources of what an arm has from outside: two hashes
    under one name are two subjects. `run` is the name or path of the one that computed it, empty where a board puts
    several together.
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
        """The subject that this one is the placebo of; None where it is none."""
        own = original_of(self.arm)
        return None if own is None else replace(self, arm=own)

    def facet(self, name: str) -> str:
        """One of its attributes as a label says it."""
        value = getattr(self, name)
        if name == "outside":
            return "source " + " and ".join(sha256[:_MARK] for sha256 in value) if value else ""
        hashed = name == "weights" or (name == "run" and "/" not in value)
        return str(value[:_MARK] if hashed else value)


#: What a label may say, in its order, and what subjects must share for a difference in it to tell them apart.
_FACETS: dict[str, tuple[str, ...]] = {
    "model": (), "weights": ("model",), "form": (), "engine": (), "dtype": (), "kernel": (), "outside": ("arm",),
    "run": ("arm", "model", "weights", "form", "engine", "dtype", "kernel", "outside"),
}  # fmt: skip


def labels(subjects: Iterable[Subject]) -> dict[Subject, str]:
    """Return what to call each: its arm, and in brackets what it does not share with the others: `bf16 (tiny, vllm)`.

    Where all of it is the same, the run.
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
