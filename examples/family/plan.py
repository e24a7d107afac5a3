"""What the family is: arms, sizes, the question, and the order in which a machine with little time takes the work."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from anchoreval.schema import Json

QUESTION = """Is the gain of anchor attention over intra-document attention larger where training computes RoPE in BF16
than where it computes RoPE in fp32? The effect is (anchor - intra-doc) at bf16 minus the same at fp32, in nats per
token of the answers at the longest length, models of equal tokens, each evaluated at the level that it was trained
at; one paired difference per seed, a t interval over seeds. In exact arithmetic intra-doc and intra-doc-reset are one
function: their difference at fp32 is the floor, and an effect counts only above it. Under bf16-angle positions
themselves are rounded, so there reset must help; if it does not, this family can show nothing, and that is said first.
The other differences from intra-doc at fp32 are corrected together by Holm's method."""


@dataclass(frozen=True, slots=True)
class Arm:
    """A way to train. `goes_on`: also trained to the operations of `full`; `corpus`: what a seed draws documents of."""

    variant: str
    rope: str = "fp32"
    goes_on: bool = False
    corpus: str = "short"

    @property
    def name(self) -> str:
        """`anchor-bf16`; text with more long documents is named, as in `long-anchor-fp32`."""
        return f"{'' if self.corpus == 'short' else f'{self.corpus}-'}{self.variant}-{self.rope}"


CORE = (
    Arm("intra-doc", goes_on=True),
    Arm("anchor", goes_on=True),
    Arm("intra-doc", "bf16", goes_on=True),
    Arm("anchor", "bf16", goes_on=True),
    Arm("intra-doc-reset", goes_on=True),
    Arm("full"),
)
CONTROL = (Arm("intra-doc", "bf16-angle"), Arm("intra-doc-reset", "bf16-angle"))
MORE = (Arm("anchor-tag"), Arm("intra-doc-interleaved"), Arm("anchor-interleaved"))
LONG = tuple(Arm(variant, corpus="long") for variant in ("intra-doc", "anchor", "intra-doc-reset", "full"))
ALL = (*CORE, *CONTROL, *MORE, *LONG)


@dataclass(frozen=True, slots=True)
class Sizes:
    """The numbers that are not the recipe's. Masked arms reach the counted operations of `full` at `equal_time` steps.

    `upsample` makes the corpus `long` out of `long_tokens`: documents under its first number are kept with the
    probability of its second.
    """

    recipe: str = "variants-cpu"
    equal_tokens: int = 16
    equal_time: int = 36
    lengths: tuple[int, ...] = (512, 2048, 8192)
    questions: int = 36
    upsample: tuple[int, float] = (4096, 0.1)
    long_tokens: int = 900_000
    control_seeds: int = 3
    more_seeds: int = 2
    long_seeds: int = 1
    first_token_tokens: int = 2048
    ruler_samples: int = 4
    nll_texts: int = 4

    def facts(self) -> dict[str, Json]:
        """Return them as JSON."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


@dataclass(frozen=True, slots=True)
class Job:
    """One model: an arm of a seed after so many steps. `extras`: also RULER, loss by position, both RoPE levels."""

    arm: Arm
    seed: int
    steps: int
    extras: bool = False

    @property
    def name(self) -> str:
        """`anchor-bf16-seed0-step16`."""
        return f"{self.arm.name}-seed{self.seed}-step{self.steps}"


def jobs(sizes: Sizes, seeds: int) -> Iterator[Job]:
    """Yield all models in the order of their worth: three whole seeds, what is measured for few, then the others."""
    for seed in range(min(seeds, 3)):
        yield from core(sizes, seed)
    yield from (Job(job.arm, job.seed, job.steps, extras=True) for job in core(sizes, 0))
    for seed in range(3, seeds):
        yield from core(sizes, seed)
    for seed in range(min(seeds, sizes.long_seeds)):
        yield from (Job(arm, seed, sizes.equal_tokens) for arm in LONG)
    for seed in range(min(seeds, sizes.more_seeds)):
        yield from (Job(arm, seed, sizes.equal_tokens) for arm in MORE)


def core(sizes: Sizes, seed: int) -> Iterator[Job]:
    """Yield the models of a seed: those of equal tokens first."""
    control = CONTROL if seed < sizes.control_seeds else ()
    yield from (Job(arm, seed, sizes.equal_tokens) for arm in (*CORE, *control))
    yield from (Job(arm, seed, sizes.equal_time) for arm in CORE if arm.goes_on)


def header(sizes: Sizes, created: str, **facts: Any) -> dict[str, Json]:
    """Return what is written before the first step, and never again."""
    arms = [{"name": arm.name, "goes_on": arm.goes_on} for arm in ALL]
    return {"question": " ".join(QUESTION.split()), "arms": arms, "sizes": sizes.facts(), "created": created, **facts}
