"""What a training follows from: asked for once, written beside the weights, and the same when it is resumed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from anchoreval.errors import LengthError
from anchoreval.training.variants import Start

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
    return [f"{key} {_short(flat[1].get(key))} there, {_short(flat[0][key])} asked" for key in keys]


def _short(value: Any) -> str:
    return str(value)[:16]
