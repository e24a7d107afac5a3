"""The prompts of a run made again from its header, without the model: what was asked, sample by sample.

Nothing is taken from the records. What the header cannot give again (another tokenizer, absent source texts, a task
card that has changed since) is an error that names it, never another prompt under the same sample id.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from anchoreval.arms.arm import Arm, parse_arm
from anchoreval.cards import LengthOf, Task, find_model, load_tasks
from anchoreval.cards.strict_yaml import one_line
from anchoreval.errors import AnchorEvalError, CardError, ModelError, RunError, SourceError
from anchoreval.model import folder_of
from anchoreval.prompt import Anchor, Template, anchor_token, template_text, to_request
from anchoreval.prompt.documents import cut_documents
from anchoreval.records.header import HEADER, READ
from anchoreval.records.run import Run
from anchoreval.runs.lengths import Form, RuleName
from anchoreval.runs.loop import Plan, samples_of, second_of
from anchoreval.schema import Request, Sample
from anchoreval.texts.sources import HaystackKind, Sources
from anchoreval.texts.wordlists import WordLists
from anchoreval.tokenizer import TextTokenizer, load_tokenizer

NOT_IN_THE_PROMPT = {"samples", "lengths"}  # of a task card: how many and how long, which the header says itself


class _Part(BaseModel):
    """A part of a header; keys that nothing here reads are let through."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, protected_namespaces=())


class _SourcesSaid(_Part):
    haystack: HaystackKind
    wordlists: str
    context: str | None = None  # said where it was left out


class _TaskSaid(_Part):
    suite: str
    name: str
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
    template: Literal["base", "chat"]
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


class _Asked(_Part):
    dtype: str
    kernel: str


class _ArmSaid(_Part):
    name: str
    asked: _Asked


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


def header_parts(run: Run) -> HeaderParts:
    """The header's parts, each of its type; RunError names the first key that is absent or wrong."""
    try:
        parts = HeaderParts.model_validate(run.header)
    except ValidationError as error:
        first = error.errors()[0]
        where = " > ".join(str(part) for part in first["loc"]) or "top level"
        raise RunError(f"{run.path / HEADER}: {where}: {first['msg'].lower()}") from None
    if parts.identity.version_ not in READ:
        known = " and ".join(map(str, READ))
        raise RunError(f"{run.path / HEADER}: schema {parts.identity.version_}, this version reads {known}")
    return parts


class Remake:
    """The samples and requests of a run, from its header alone.

    `data_dir` is the folder with the published source texts, `tokenizer` a folder or tokenizer.json to use instead of
    the checkpoint that the header names. Errors: ModelError, SourceError, CardError, RunError, one line each.
    """

    def __init__(self, run: Run, data_dir: str | Path | None = None, tokenizer: str | Path | None = None) -> None:
        self.run = run
        self.header = header_parts(run)
        said = self.header.identity
        words = _word_lists(run, said.sources.wordlists)
        self.sources = Sources(data_dir, said.sources.haystack, words, context=said.sources.context is None)
        self.tokenizer = _tokenizer(run, self.header, tokenizer)
        self.tasks = _tasks(run, run.header["identity"]["tasks"])
        template: Template = said.template
        self.plan = Plan(
            tasks=tuple(self.tasks.values()),
            lengths=tuple(said.lengths) if said.lengths else None,
            arms=_arms(run, self.header),
            limit=self.header.limit,
            seed=said.seed,
            template=template,
            sources=self.sources,
            group=self.header.group,
            document_tokens=said.document_tokens,
            template_args=said.template_args,
            anchor=said.anchor,
            served=said.form == "server",
            length_rule=said.length_rule,
        )
        if said.template_text not in (None, template_text(self.plan.wrap(self.tokenizer))):
            raise ModelError(
                f"the chat template of {tokenizer or self.header.model.path} is not the one that the run {run.path} "
                "was made with: name a folder that holds that one with --tokenizer PATH"
            )

    def samples(self, task: str | None = None, length: int | None = None) -> Iterator[Sample]:
        """Every sample that was asked for, in the order of the plan, one task and length after the other.

        `task` and `length` narrow it down. Each (task, length) is begun when its turn comes.
        """
        for cell in self.header.asked:
            if task in (None, cell.task) and length in (None, cell.length):
                yield from self._cell(cell)

    def _cell(self, cell: AskedCell) -> Iterator[Sample]:
        if cell.task not in self.tasks:
            raise RunError(f"{self._place}: asked: {cell.task} is no task of this run's identity")
        task, window = self.tasks[cell.task], self.header.model.window
        made = samples_of(task, cell.length, cell.samples, self.plan, self.tokenizer, window)
        for number, sample in enumerate(made):
            if number == 0:
                self._check_sources()
            yield sample

    def request(self, sample: Sample) -> Request:
        """The sample as token ids with its documents, as it was sent."""
        task, anchor = self.tasks[sample.task], self.plan.anchor
        whole = to_request(sample, self.tokenizer, task.reference, None, anchor=anchor)
        return cut_documents(whole, self.plan.document_tokens)

    def second(self, sample: Sample, answer: str) -> tuple[Sample, Request]:
        """The second prompt of a sample of two steps, as text and as it was sent behind this answer to the first."""
        return second_of(self.tasks[sample.task], self.plan, self.tokenizer, self.header.model.window)(sample, answer)

    def _check_sources(self) -> None:
        """SourceError when a file that was read is not the one that the run read."""
        for name, used in self.sources.files().items():
            asked = self._expected.get(name)
            if asked is not None and asked not in (used["sha256"], "published" if used["published"] else None):
                raise SourceError(
                    f"{name} has sha256 {used['sha256']}, the run {self.run.path} was made with {asked}: "
                    "name the folder of that file with --data-dir"
                )

    @cached_property
    def _expected(self) -> dict[str, str]:
        """SHA-256 of every source file of the run, or `published`, by its name."""
        asked: dict[str, str] = {}
        for said in (self.run.header["identity"]["sources"], self.run.header.get("sources", {})):
            files = {name: str(text) for name, text in said.items() if name not in ("haystack", "wordlists")}
            asked |= {name: text.removeprefix("not the published file: sha256 ") for name, text in files.items()}
        return asked | {name: str(row["sha256"]) for name, row in self.header.source_files.items() if "sha256" in row}

    @property
    def _place(self) -> Path:
        return self.run.path / HEADER


def _word_lists(run: Run, said: str) -> WordLists:
    for version in ("3.0.1", "2.2.0"):
        if said == f"wonderwords {version}":
            return version
    raise RunError(f"{run.path / HEADER}: identity > sources > wordlists: {said!r} is not one this version has")


def _tokenizer(run: Run, header: HeaderParts, given: str | Path | None) -> TextTokenizer:
    """The tokenizer of the run: the one `given`, else that of the header's checkpoint; ModelError for another one."""
    where = str(given or header.tokenizer.path or header.model.path)
    found = _given(given) if given else _of_checkpoint(run, where)
    asked = header.identity.tokenizer
    if found.sha256 != asked:
        raise ModelError(
            f"the tokenizer of {where} has sha256 {found.sha256[:16]}, the run {run.path} was made with {asked[:16]}: "
            "name that one with --tokenizer PATH"
        )
    if header.identity.anchor == "none":
        return found
    anchor = anchor_token(found)
    if anchor != (header.tokenizer.anchor_token, header.tokenizer.anchor_id):
        raise ModelError(
            f"the tokenizer of {where} puts {anchor[0]!r} first, the run {run.path} had "
            f"{header.tokenizer.anchor_token!r}: name a folder with its tokenizer_config.json with --tokenizer PATH"
        )
    return found


def _given(given: str | Path) -> TextTokenizer:
    """The tokenizer that the user names: a file, a folder, a card, or an id of the hub, which is fetched from there."""
    if Path(given).expanduser().exists():
        return load_tokenizer(given)
    return load_tokenizer(folder_of(find_model(str(given))[1].checkpoint, weights=False))


def _of_checkpoint(run: Run, model: str) -> TextTokenizer:
    """The tokenizer that the header names, where it is on this machine: a header is no reason to fetch anything."""
    try:
        return load_tokenizer(folder_of(find_model(model)[1].checkpoint, weights=False, download=False))
    except AnchorEvalError as error:
        raise ModelError(
            f"the checkpoint {one_line(model)} of {run.path} is not here, and what a header names is not downloaded; "
            f"its tokenizer is enough: --tokenizer PATH, or --tokenizer OWNER/NAME to fetch it from the hub ({error})"
        ) from None


def _tasks(run: Run, rows: list[dict[str, Any]]) -> dict[str, Task]:
    """Tasks by address; CardError where the card of today would make another prompt or another score."""
    known, tasks = load_tasks()[0], {}
    for row in rows:
        address = f"{row.get('suite')}/{row.get('name')}"
        if address not in known:
            raise CardError(f"{run.path}: no task card has {address} any more, so its prompts cannot be made again")
        today: dict[str, Any] = known[address].model_dump(mode="json")
        chosen = _chosen(row.get("args"), known[address])
        today["args"] = today["args"] | chosen
        for key in sorted(row.keys() - NOT_IN_THE_PROMPT):
            if row[key] != today.get(key):
                raise CardError(
                    f"{run.path}: {address}: {key}: the run was made with {_brief(row[key])}, "
                    f"the card now says {_brief(today.get(key))}: use the version of anchoreval in its header"
                )
        sizes = {"samples": row.get("samples"), "lengths": tuple(row.get("lengths") or ())}
        tasks[address] = known[address].model_copy(update=sizes | {"args": today["args"]})
    return tasks


def _chosen(args: Any, card: Task) -> dict[str, Any]:
    """Of a task's arguments in a header those that the run may have chosen."""
    return {name: args[name] for name in card.settings if name in args} if isinstance(args, dict) else {}


def _brief(value: Any) -> str:
    return json.dumps(value)[:80]


def _arms(run: Run, header: HeaderParts) -> tuple[Arm, ...]:
    """The arms of the header, in its order; RunError when they are not those of the identity."""
    arms = tuple(parse_arm(arm.name, arm.asked.dtype, arm.asked.kernel) for arm in header.arms)
    if [arm.fingerprint() for arm in arms] != header.identity.arms:
        raise RunError(f"{run.path / HEADER}: arms: not those of its identity")
    return arms
