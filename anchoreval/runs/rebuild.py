"""`Remake`: make the prompts of a run again from its header, without the model and without the records.

If that is impossible (another tokenizer, missing source texts, a task card that changed since), an error names the
cause. A sample id never stands for another prompt than the run's.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from anchoreval.cards import Origin, Task, load_tasks
from anchoreval.cards.strict_yaml import one_line
from anchoreval.errors import AnchorEvalError, CardError, ModelError, RunError, SourceError
from anchoreval.model import Model, tokenizer_of
from anchoreval.prompt import anchor_token, template_text
from anchoreval.records.header import HEADER
from anchoreval.records.parts import HeaderParts
from anchoreval.records.run import Run
from anchoreval.runs.prompts import Prompts, Spec
from anchoreval.schema import Request, Sample
from anchoreval.suites import generator_of
from anchoreval.suites.outside import named
from anchoreval.texts.sources import TEXTS
from anchoreval.tokenizer import TextTokenizer

#: Fields of a task card that may change, as the header has its own values, and one that is compared as hashes.
NOT_IN_THE_PROMPT = {"samples", "lengths", "outside"}


class Remake:
    """The samples and requests of a run, made from its header alone.

    `data_dir` is the folder with the published source texts, `tokenizer` a folder or tokenizer.json to use instead of
    the checkpoint that the header names, `text` the file or folder of texts that were scored. Raise ModelError,
    SourceError, CardError or RunError with a one-line message.
    """

    def __init__(
        self,
        run: Run,
        data_dir: str | Path | None = None,
        tokenizer: str | Path | None = None,
        text: str | Path | None = None,
    ) -> None:
        self.run, self._place = run, run.path / HEADER
        self.header = run.parts
        identity = self.header.identity
        self.tasks = _tasks(run, run.header["identity"]["tasks"])
        try:
            arms = self.header.parsed_arms()
        except RunError as error:
            raise RunError(f"{self._place}: {error}") from error
        model = Model.of_tokenizer(_tokenizer(run, self.header, tokenizer), self.header.model.window)
        self.spec = Spec.of(
            self.tasks.values(),
            lengths=identity.lengths,
            arms=arms,
            limit=self.header.limit,
            seed=identity.seed,
            template=identity.template,
            template_args=identity.template_args,
            anchor=identity.anchor,
            haystack=identity.sources.haystack,
            data_dir=data_dir,
            text=text,
            wordlists="2.2.0" if identity.sources.wordlists.endswith(" 2.2.0") else "3.0.1",
            context=identity.sources.context is None,
            document_tokens=identity.document_tokens,
            group=self.header.group,
            served=identity.form == "server",
            length_rule=identity.length_rule,
        )
        self.prompts, self.tokenizer = Prompts(self.spec, model), model.tokenizer
        if identity.template_text is not None and identity.template_text != template_text(self.prompts.wrap):
            raise ModelError(
                f"the chat template of {tokenizer or self.header.model.path} is not the one that the run {run.path} "
                "was made with: name a folder that holds that one with --tokenizer PATH"
            )

    def samples(self, task: str | None = None, length: int | None = None) -> Iterator[Sample]:
        """Yield every sample that was asked for, cell by cell in the order of the plan.

        `task` and `length` select cells. Each cell is begun when its turn comes.
        """
        for cell in self.header.asked:
            if task not in (None, cell.task) or length not in (None, cell.length):
                continue
            if cell.task not in self.tasks:
                raise RunError(f"{self._place}: asked: {cell.task} is no task of this run's identity")
            if generator_of(self.tasks[cell.task]).in_files and self.spec.sources.text is None:
                names = [name.removeprefix(f"{TEXTS}/") for name in self._expected if name.startswith(f"{TEXTS}/")]
                files = f"{names[0]}, {len(names)} files in all" if names else str(self.header.identity.sources.texts)
                raise SourceError(f"{self.run.path} scores {files}: name their file or folder with --text")
            samples = self.prompts.samples(self.tasks[cell.task], cell.length, cell.samples)
            for number, sample in enumerate(samples):
                if number == 0:
                    self._check_sources()
                yield sample

    def request(self, sample: Sample) -> Request:
        """Return the sample as it was sent: token ids with documents."""
        return self.prompts.request(self.tasks[sample.task], sample)

    def second(self, sample: Sample, answer: str) -> tuple[Sample, Request]:
        """Return the second prompt of a two-step sample, as text and as sent, given the answer to the first."""
        return self.prompts.second(self.tasks[sample.task], sample, answer)

    def _check_sources(self) -> None:
        """Raise SourceError if a source file is not the one that the run read, or if other texts are to be scored."""
        for name, used in self.spec.sources.files().items():
            expected = self._expected.get(name)
            if expected is not None and expected not in (used["sha256"], "published" if used["published"] else None):
                raise SourceError(
                    f"{name} has sha256 {used['sha256']}, the run {self.run.path} was made with {expected}: "
                    f"name the folder of that file with {'--text' if name.startswith(TEXTS) else '--data-dir'}"
                )
        if self.spec.sources.text is None:
            return
        texts, asked = self.spec.sources.describe().get(TEXTS), self.header.identity.sources.texts
        if texts not in (None, asked):
            other = {name for name in self._expected if name.startswith(f"{TEXTS}/")} ^ self.spec.sources.files().keys()
            named = f": {min(other)} is not in both" if other else ""
            problem = f"the texts in {self.spec.sources.text} are {texts}, those of the run {self.run.path} are {asked}"
            raise SourceError(f"{problem}{named}: name the file or folder of those with --text")

    @cached_property
    def _expected(self) -> dict[str, str]:
        """Source file -> its SHA-256 in the run, or `published`."""
        asked: dict[str, str] = {}
        for said in (self.run.header["identity"]["sources"], self.run.header.get("sources", {})):
            files = {name: str(text) for name, text in said.items() if name not in ("haystack", "wordlists")}
            asked |= {name: text.removeprefix("not the published file: sha256 ") for name, text in files.items()}
        return asked | {name: str(row["sha256"]) for name, row in self.header.source_files.items() if "sha256" in row}

    @property
    def document_tokens(self) -> int | None:
        """The size in tokens of the blocks that documents were cut into; None if they were not cut."""
        return self.spec.document_tokens


def _tokenizer(run: Run, header: HeaderParts, given: str | Path | None) -> TextTokenizer:
    """Return the run's tokenizer: the one `given`, else that of the header's checkpoint, else that of its base.

    Raise ModelError if it is not the one that the run was made with.
    """
    where, base = str(given or header.tokenizer.path or header.model.path), header.model.trained.model
    read, why = tokenizer_of(given) if given else None, None
    places = [] if given else [where, *([base] if base is not None else [])]  # training keeps the tokenizer of a base
    for place in places:
        try:
            read = Model.of(place, download=False).tokenizer  # never downloaded: headers come from strangers
            break
        except AnchorEvalError as error:
            why = error
    if read is None:
        raise ModelError(
            f"the checkpoint {one_line(where)} of {run.path} is not here, and what a header names is not downloaded; "
            f"its tokenizer is enough: --tokenizer PATH, or --tokenizer OWNER/NAME to fetch it from the hub ({why})"
        )
    asked = header.identity.tokenizer
    if read.sha256 != asked:
        raise ModelError(
            f"the tokenizer of {where} has sha256 {read.sha256[:16]}, the run {run.path} was made with {asked[:16]}: "
            "name that one with --tokenizer PATH"
        )
    if header.identity.anchor == "none":
        return read
    anchor = anchor_token(read)
    if anchor != (header.tokenizer.anchor_token, header.tokenizer.anchor_id):
        raise ModelError(
            f"the tokenizer of {where} puts {anchor[0]!r} first, the run {run.path} had "
            f"{header.tokenizer.anchor_token!r}: name a folder with its tokenizer_config.json with --tokenizer PATH"
        )
    return read


def _tasks(run: Run, rows: list[dict[str, Any]]) -> dict[str, Task]:
    """Return tasks by address; raise CardError if today's card would give another prompt or another score."""
    known, tasks = load_tasks()[0], {}
    for row in rows:
        address = f"{row.get('suite')}/{row.get('name')}"
        if origin := row.get("outside"):
            known = {**known, **named(Origin(**origin), address).tasks}
        if address not in known:
            raise CardError(f"{run.path}: no task card has {address} any more, so its prompts cannot be made again")
        today: dict[str, Any] = known[address].model_dump(mode="json")
        args, settings = row.get("args"), known[address].settings
        if isinstance(args, dict):  # what a user can choose
            today["args"] |= {name: args[name] for name in settings if name in args}
        for key in sorted(row.keys() - NOT_IN_THE_PROMPT):
            if row[key] != today.get(key):
                raise CardError(
                    f"{run.path}: {address}: {key}: the run was made with {_brief(row[key])}, "
                    f"the card now says {_brief(today.get(key))}: use the version of anchoreval in its header"
                )
        sizes = {"samples": row.get("samples"), "lengths": tuple(row.get("lengths") or ())}
        tasks[address] = known[address].model_copy(update=sizes | {"args": today["args"]})
    return tasks


def _brief(value: Any) -> str:
    return json.dumps(value)[:80]
