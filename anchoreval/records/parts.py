"""`HeaderParts`: the typed parts of a header that prompts follow from. Without all of them no prompt is made again."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from anchoreval.arms.arm import Arm, parse_arm
from anchoreval.cards import LengthOf, Origin
from anchoreval.errors import AnchorEvalError, RunError
from anchoreval.prompt import Anchor, Form, Template
from anchoreval.texts.sources import HaystackKind

#: `fed`: a length counts everything that the model is fed. `published`: it counts prompt and answer budget only, as in
#: runs whose header names no rule.
RuleName = Literal["fed", "published"]


class _Part(BaseModel):
    """A part of a header; other keys are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, protected_namespaces=())


class _SourcesSaid(_Part):
    haystack: HaystackKind
    wordlists: Literal["wonderwords 3.0.1", "wonderwords 2.2.0"]
    context: str | None = None  # present if prompts were made without their context
    texts: str | None = None  # names the texts that are scored


class TaskSaid(_Part):
    """A task card, as the identity has it."""

    suite: str
    name: str
    generator: str = ""
    scorer: str
    samples: int
    lengths: list[int]
    length_of: LengthOf = "sample"
    outside: Origin | None = None

    @property
    def address(self) -> str:
        """`suite/task`."""
        return f"{self.suite}/{self.name}"


class _Identity(_Part):
    version_: int = Field(alias="schema")
    engine: str
    tokenizer: str
    tasks: list[TaskSaid]
    lengths: list[int] | None
    arms: list[str]
    limit: int | None = None  # only in format 1 and in runs with a stopping rule
    seed: int
    template: Template
    template_args: dict[str, Any] = Field(default_factory=dict)
    template_text: str | None = None  # absent in runs of format 1
    anchor: Anchor = "auto"
    form: Form | None = None  # absent: the form is that of the template
    length_rule: RuleName = "published"
    document_tokens: int | None = None  # absent in runs of the first release, which did not cut documents
    until: str | None = None
    shuffled: list[str] = Field(default_factory=list)  # cells whose samples were shuffled, under a stopping rule
    sources: _SourcesSaid


class _Trained(_Part):
    model: str | None = None


class _Model(_Part):
    name: str
    path: str
    window: int | None
    trained: _Trained = _Trained()  # of a model that was trained here: the card beside its weights


class _OutsideSaid(_Part):
    name: str
    sha256: str


class _Asked(_Part):
    dtype: str
    kernel: str
    outside: list[_OutsideSaid] = Field(default_factory=list)


class _ArmSaid(_Part):
    name: str
    asked: _Asked


class AskedCell(_Part):
    """One row of a header's `asked`."""

    task: str
    length: int
    samples: int


class _Left(_Part):
    task: str
    length: int


class VerdictSaid(_Part):
    """An arm's verdict in one cell of a run with a stopping rule."""

    verdict: str
    pairs: int
    sources: int | None = None  # present if several pairs share a source
    difference: float | None
    low: float
    high: float


class StoppedCell(_Part):
    """One row of `until > cells`: the number of samples used, and the verdicts by arm."""

    task: str
    length: int
    asked: int
    used: int = Field(gt=0)
    arms: dict[str, VerdictSaid]


class _Until(_Part):
    cells: list[StoppedCell] = Field(default_factory=list)  # written when all verdicts are in


class _Anchor(_Part):
    sha256: str
    anchor_token: str | None
    anchor_id: int | None
    path: str | None = None  # present if the tokenizer is not the checkpoint's own


class HeaderParts(_Part):
    """The parts of a run's header that its prompts follow from."""

    run: str
    identity: _Identity
    model: _Model
    tokenizer: _Anchor
    arms: list[_ArmSaid]
    asked: list[AskedCell]
    unmakeable: list[_Left]
    limit: int | None = None
    group: int = Field(gt=0)
    sources: dict[str, Any]
    scorers: dict[str, str]
    backend: dict[str, Any]
    seal: dict[str, Any] | None = None
    source_files: dict[str, dict[str, Any]] = Field(default_factory=dict)
    until: _Until | None = None
    finished: str | None = None
    resumed: int = 0
    workers: int = 0

    def parsed_arms(self) -> tuple[Arm, ...]:
        """Return the arms; outside code is taken from the header by name and hash, and is not imported.

        Raise RunError if an arm is not spelled as this version spells it, or if they are not those of the identity.
        """
        arms = []
        for arm in self.arms:
            outside = {code.name: code.sha256 for code in arm.asked.outside}
            try:
                arms.append(parse_arm(arm.name, arm.asked.dtype, arm.asked.kernel, outside))
            except AnchorEvalError as error:
                raise RunError(f"arms: {error}") from error
        if [arm.fingerprint() for arm in arms] != self.identity.arms:
            raise RunError("arms: not those of its identity")
        return tuple(arms)
