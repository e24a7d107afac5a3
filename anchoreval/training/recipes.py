"""What a training follows from, and recipes as strict cards of `models/recipes/`, with where each number is from.

A `Training` is asked for once, written beside the weights, and the same when it is resumed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from anchoreval.cards import Strict, folder, load_card
from anchoreval.errors import LengthError, UnknownName
from anchoreval.training.variants import Start

_ANCHORS, _MIXES = "anchors", "mixes"
Positive = Annotated[int, Field(gt=0)]


Schedule = Literal["constant", "linear"]


@dataclass(frozen=True, slots=True)
class Hyper:
    """How weights are updated: the paper's AdamW without warm-up and clipping where nothing else is said."""

    lr: float = 2e-5
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    clip: float = 0.0
    warmup_steps: int = 0
    schedule: Schedule = "constant"


@dataclass(frozen=True, slots=True)
class Training:
    """One variant and one seed. `rope` is a level of arms.rope, `theta` None where the model's own stays."""

    variant: str
    rope: str
    length: int
    steps: int
    batch_tokens: int
    seed: int = 0
    theta: float | None = None
    rope_type: str | None = None
    document_start: Start = "anchor"
    hyper: Hyper = Hyper()
    recipe: str | None = None

    @property
    def name(self) -> str:
        """`anchor-bf16-0`: the folder of this training."""
        return f"{self.variant}-{self.rope.replace(':', '-').replace('=', '').replace(',', '-')}-{self.seed}"

    @property
    def windows_per_step(self) -> int:
        """Windows of one step, over all processes; LengthError where a step is shorter than a window."""
        if self.batch_tokens < self.length or self.batch_tokens % self.length:
            text = f"--batch-tokens {self.batch_tokens} is no multiple of --length {self.length}"
            raise LengthError(f"{text}: a step is whole windows of it")
        return self.batch_tokens // self.length

    def identity(self) -> dict[str, Any]:
        """Return everything that decides the weights after a step; steps too where the schedule counts them."""
        facts = asdict(self) | {"hyper": asdict(self.hyper)}
        del facts["recipe"]
        if self.hyper.schedule == "constant":
            del facts["steps"]
        return facts


def differing(asked: Mapping[str, Any], stood: Mapping[str, Any]) -> list[str]:
    """Return what differs between two identities, in words; hyper-parameters by their own names."""
    flat = [each | dict(each.get("hyper", {})) for each in (dict(asked), dict(stood))]
    keys = [key for key in flat[0] if key != "hyper" and flat[0][key] != flat[1].get(key)]
    return [f"{key} {str(flat[1].get(key))[:16]} there, {str(flat[0][key])[:16]} asked" for key in keys]


class RecipeCard(Strict):
    """A file of `models/recipes/`. `theta`: a model's own base of RoPE -> the base to train with.

    `data` says what it was trained on, in words, or `generated`: `corpus_tokens` of the package's own text. `places`
    says for each number where it stands in `source`; what the source does not state is not here and must be given.
    """

    about: str
    source: str
    model: str | None = None
    length: Positive
    rope: str
    theta: dict[int, float]
    steps: Positive
    batch_tokens: Positive
    lr: float
    weight_decay: float
    beta1: float
    beta2: float
    epsilon: float
    clip: float
    warmup_steps: int
    schedule: Schedule
    save_every: Positive
    keep: Positive
    data: str
    corpus_tokens: Positive | None = None
    places: dict[str, str]

    @property
    def hyper(self) -> Hyper:
        """How weights are updated."""
        return Hyper(**{name: getattr(self, name) for name in Hyper.__dataclass_fields__})


class AnchorsCard(Strict):
    """models/recipes/anchors.yaml: the anchor of model types for which BOS, else EOS, is not always it."""

    anchors: dict[str, str]


class Source(Strict):
    """Documents of one source in a mix: share of all tokens, mean tokens of a document, sigma of its logarithm."""

    share: float
    mean: float
    sigma: float


class MixCard(Strict):
    """A mix of models/recipes/mixes.yaml; of documents `under` a length a share stays; one document without any."""

    about: str
    source: str
    under: int
    keep: float
    documents: dict[str, Source]


class MixesCard(Strict):
    """models/recipes/mixes.yaml: document lengths that attention is timed on."""

    mixes: dict[str, MixCard]


def _folder() -> Path:
    return folder("models") / "recipes"


def load_recipes() -> dict[str, RecipeCard]:
    """Return all recipes by name."""
    paths = sorted(path for path in _folder().glob("*.yaml") if path.stem not in (_ANCHORS, _MIXES))
    return {path.stem: load_card(path, RecipeCard) for path in paths}


def recipe_of(name: str) -> RecipeCard:
    """Return the recipe of a name; UnknownName gives the nearest."""
    path = _folder() / f"{name}.yaml"
    if not path.is_file() or name in (_ANCHORS, _MIXES):
        raise UnknownName("recipe", name, load_recipes())
    return load_card(path, RecipeCard)


def mix_of(name: str) -> MixCard:
    """Return the mix of a name; UnknownName gives the nearest."""
    mixes = load_card(_folder() / f"{_MIXES}.yaml", MixesCard).mixes
    if name not in mixes:
        raise UnknownName("mix of documents", name, mixes)
    return mixes[name]


def anchor_text(model_type: str | None) -> str | None:
    """Return the text of the anchor of a model type, None where it is BOS, or EOS without one."""
    return load_card(_folder() / f"{_ANCHORS}.yaml", AnchorsCard).anchors.get(model_type or "")
