"""Of a run's header what its prompts follow from: every part there and of its type, or the run is not made again."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from anchoreval.arms.arm import Arm, parse_arm
from anchoreval.cards import LengthOf
from anchoreval.prompt import Anchor, Form, Template
from anchoreval.texts.sources import HaystackKind

#: `fed`: a length is everything that the model is fed. `published`: prompt and answer alone, of runs that name none.
RuleName = Literal["fed", "published"]


class _Part(BaseModel):
    """A part of a header; keys that nothing here reads are let through."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, protected_namespaces=())


class _SourcesSaid(_Part):
    haystack: HaystackKind
    wordlists: str
    context: str | None = None  # said where it was left out
    texts: str | None = None  # that are scored


class _TaskSaid(_Part):
    suite: str
    name: str
    generator: str = ""
    scorer: str
    samples: int
    lengths: list[int]
    length_of: LengthOf = "sample"

    @property
    def address(self) -> str:
        """`suite/task`."""
        return f"{self.suite}/{self.name}"


class _Identity(_Part):
    version_: int = Field(alias="schema")
    engine: str
    tokenizer: str
    tasks: list[_TaskSaid]
    lengths: list[int] | None
    arms: list[str]
    limit: int | None = None  # of format 1, and of runs that stop by a rule
    seed: int
    template: Template
    template_args: dict[str, Any] = Field(default_factory=dict)
    template_text: str | None = None  # absent in runs of format 1
    anchor: Anchor = "auto"
    form: Form | None = None  # absent: that of the template
    length_rule: RuleName = "published"
    document_tokens: int | None = None  # absent in runs of the first release, which cut no documents
    until: str | None = None
    shuffled: list[str] = Field(default_factory=list)  # cells of a run that stops by a rule
    sources: _SourcesSaid


class _Model(_Part):
    name: str
    path: str
    window: int | None


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

    def parsed(self) -> Arm:
        """Return the arm; what is from outside is taken as the header has it, and neither looked for nor imported."""
        outside = {one.name: one.sha256 for one in self.asked.outside}
        return parse_arm(self.name, self.asked.dtype, self.asked.kernel, outside)


class AskedCell(_Part):
    """One line of a header's `asked`."""

    task: str
    length: int
    samples: int


class _Left(_Part):
    task: str
    length: int


class VerdictSaid(_Part):
    """An arm's verdict in one cell of a run that stopped by its rule."""

    verdict: str
    pairs: int
    sources: int | None = None  # where several pairs share one
    difference: float | None
    low: float
    high: float


class StoppedCell(_Part):
    """One line of `until > cells`: how many samples were used, and the verdicts by arm."""

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
    path: str | None = None  # where it is not the checkpoint's


class HeaderParts(_Part):
    """Of a run's header, what its prompts follow from."""

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
