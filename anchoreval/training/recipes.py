"""Training recipes as strict cards of `models/recipes/`: numbers, and where each of them is from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from anchoreval.cards import Strict, folder, load_card
from anchoreval.errors import UnknownName
from anchoreval.training.spec import Hyper, Schedule

_ANCHORS, _MIXES = "anchors", "mixes"
Positive = Annotated[int, Field(gt=0)]


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
