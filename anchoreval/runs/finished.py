"""Whether the run that is asked for lies there finished, so that none of its prompts is made again.

Header, seal and records say it. What follows from prompts alone (`FROM_PROMPTS`) is taken from the header where all
that it follows from is the same: the rest of the identity, which is computed anew with the hashes of every file, the
number of samples, the positions that the model has, this package's version, and the source texts that were read. Where
that cannot be decided, a run is none of these, and its first prompts are made to see whether it goes on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from anchoreval.backends import Described
from anchoreval.errors import RunError
from anchoreval.records.folder import RunFolder
from anchoreval.records.header import HEADER, Header, fingerprint, read_header
from anchoreval.runs.identity import environment_of, read_by
from anchoreval.runs.loop import Plan
from anchoreval.schema import SCORED
from anchoreval.texts.download import sha256_of
from anchoreval.texts.sources import RULER_FILES, Sources
from anchoreval.tokenizer import TextTokenizer

FROM_PROMPTS = ("sources", "pools")  # of an identity, where no task cuts its prompts


@dataclass(frozen=True, slots=True)
class Finished:
    """A run folder whose header may be that of what is asked for."""

    path: Path
    header: Header

    def is_asked_for(
        self, plan: Plan, engine: Described, tokenizer: TextTokenizer, folder: Path, window: int | None
    ) -> bool:
        """Whether it is; `folder` holds the model's files, `window` are the positions that the model has."""
        if self.header.model.get("window") != window or not _same_texts(self.header, plan.sources):
            return False
        before = self.header["identity"]
        kept = {name: before[name] for name in FROM_PROMPTS if name in before}
        now = plan.identity(engine, tokenizer) | kept | read_by(plan, engine.describe(), tokenizer, folder)
        return bool(fingerprint(now) == fingerprint(before) == self.header.run)

    def is_whole(self, plan: Plan, engine: Described) -> bool:
        """Whether every record is there with an answer; RunError where the run is not what it was when it finished."""
        header = Header(self.header | {"environments": [environment_of(engine.describe())]})
        asked = sum(self.header.asked.values()) * len(plan.arms)
        with RunFolder(self.path, header) as disk:
            answered = sum(record.outcome in SCORED for record in disk.done.values())
            return answered == len(disk.done) > 0 and (plan.until is not None or answered == asked)


def finished_beside(folder: Path, plan: Plan) -> list[Finished]:
    """The finished runs in `folder` that may be what is asked for; none that cannot be read."""
    if any(task.length_of == "prompt" for task in plan.tasks):
        return []
    return list(_finished(sorted(folder.glob(f"*/{HEADER}")), plan))


def _finished(paths: Sequence[Path], plan: Plan) -> Iterator[Finished]:
    for path in paths:
        try:
            header = read_header(path)
            if _may_be(header, plan):
                yield Finished(path.parent, header)
        except (RunError, AttributeError, KeyError, TypeError):
            continue


def _may_be(header: Header, plan: Plan) -> bool:
    """Whether as many samples of the same tasks and arms were asked for, by this version, and all were made."""
    whole = header.get("finished") and header.get("seal") and header["version"] == metadata.version("anchoreval")
    same = header["limit"] == plan.limit and header.tasks == [task.address for task in plan.tasks]
    alone = plan.single & {task for task, _ in header.unmakeable}  # of which each is an error
    return bool(whole and same and not alone) and header.arms == [arm.name for arm in plan.arms]


def _same_texts(header: Header, sources: Sources) -> bool:
    """Whether texts were chosen alike, and every file of them that was read is found again and has not changed."""
    said, files = header.part("identity", "sources"), header.part("source_files")
    chosen = sources.describe()
    if {name: said.get(name) for name in ("context", *chosen)} != {"context": None} | chosen:
        return False
    if not files.keys() <= {source.file for source in RULER_FILES}:
        return False
    for name, row in files.items():
        found = next((place / name for place in sources.places() if (place / name).is_file()), None)
        if found is None or sha256_of(found) != row["sha256"]:
            return False
    return True
