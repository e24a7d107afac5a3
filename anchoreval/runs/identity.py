"""What decides the answers of a run: its files and what follows from them; what changed against the runs beside it.

Versions, processor, threads, GPU and parallel size change last bits only and are no part of it: they stand in the
header's `environments`, once each, and records name theirs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from anchoreval.backends import BACKENDS
from anchoreval.cards import find_model
from anchoreval.errors import AnchorEvalError, RunError
from anchoreval.model import folder_of, hashes_of, reads
from anchoreval.prompt import anchor_token
from anchoreval.records.header import HEADER, Header, read_header
from anchoreval.records.run import Run
from anchoreval.runs.loop import Cell, Makeable, Plan, recipe_of
from anchoreval.schema import Json
from anchoreval.suites import POOLS
from anchoreval.tokenizer import TextTokenizer
from anchoreval.training.checkpoints import CARD

#: Of an identity what was asked for; the rest follows from files, and from how many samples are asked.
_ASKED = (
    "tasks",
    "lengths",
    "arms",
    "seed",
    "template",
    "template_args",
    "anchor",
    "document_tokens",
    "documents",
    "until",
)
#: Names under `files`, which are looked up in the checkpoint: plain, below its folder, no pattern.
_FILE = re.compile(r"([\w-][\w.+@=-]*/)*[\w-][\w.+@=-]*")
_TEXTS = ("haystack", "wordlists", "context")
#: Of what a backend says of itself the settings that were asked for.
_SETTINGS = ("engine", "mode", "dtype", "kernel", "prefill", "realisation", "settings", "address", "api", "seed")


def decided_by(
    plan: Plan, made: Makeable, described: Mapping[str, Json], tokenizer: TextTokenizer, folder: Path
) -> dict[str, Json]:
    """The part of a run's identity that follows from its files; `folder` holds the tokenizer, as a rule the checkpoint.

    The anchor token and the end tokens stand there as they were read. `cut` is where prompts are cut that no length was
    asked for, `less` where the window takes a token from answers, `shuffled` where a rule that stops cells has samples
    in another order than their own, `pools` what of the number of samples the samples follow from.
    """
    cells = [(cell.task, cell.length, cell.asked) for cell in made.cells]
    mixed = [f"{cell.task.address}@{cell.length}" for cell in made.cells if cell.shuffled]
    cut = {task.address: length for task, length, _ in cells if task.length_of == "prompt" and not plan.lengths}
    less = [f"{cell.task.address}@{cell.length}" for cell in made.cells if _less_for_room(cell)]
    pools = {
        f"{task.address}@{length}": POOLS[task.generator](recipe_of(task, length, asked, plan, tokenizer))
        for task, length, asked in cells
        if task.generator in POOLS
    }
    return {
        **read_by(plan, described, tokenizer, folder),
        **({"cut": cut} if cut else {}),
        **({"less": less} if less else {}),
        **({"shuffled": mixed} if mixed else {}),
        **({"pools": known} if (known := {name: size for name, size in pools.items() if size is not None}) else {}),
    }


def read_by(plan: Plan, described: Mapping[str, Json], tokenizer: TextTokenizer, folder: Path) -> dict[str, Json]:
    """What of `decided_by` follows from the files of the model alone."""
    return {
        "files": files_of(described, plan.template, folder),
        "eos_token_ids": described.get("eos_token_ids"),
        "anchor_token": list(anchor_token(tokenizer)) if plan.anchor == "auto" else None,
    }


def _less_for_room(cell: Cell) -> bool:
    """Whether the answers of a cell have less room for want of positions, as its first sample says."""
    return cell.task.length_of == "prompt" and "budget_less" in cell.facts


def files_of(described: Mapping[str, Json], template: str, folder: Path) -> dict[str, str]:
    """SHA-256 by name of every file that is read to answer: the loader's as the backend says, and the others."""
    return hashes_of(folder, _reads(described, template)) | dict(described.get("files_sha256") or {})


def _reads(described: Mapping[str, Json], template: str) -> tuple[str, ...]:
    server = described.get("server") or {}
    engine = BACKENDS.get(str(described.get("engine")))
    return reads(engine is not None and engine.loads_checkpoint, template, server.get("api") == "chat")


def environment_of(described: Mapping[str, Json]) -> dict[str, Json]:
    """One entry of a header's `environments`, of what a backend says of itself; what it does not know is left out."""
    said = dict(described.get("environment") or {"versions": described.get("versions") or {}})
    versions = {"anchoreval": metadata.version("anchoreval")} | said.pop("versions", {})
    whole = {"versions": {name: text for name, text in versions.items() if text is not None}} | said
    return {name: value for name, value in whole.items() if value is not None}


def tell_beside(folder: Path, header: Header, tell: Callable[[str], None]) -> None:
    """Say what a new run in `folder` differs by from the newest one beside it that was asked for the same.

    An unfinished run of an older format is named too: it cannot be gone on with. Runs that cannot be read are none.
    """
    asked = _asked(header)
    beside = [other for path in sorted(folder.parent.glob(f"*/{HEADER}")) if (other := _same(path, asked))]
    for old in [other for other in beside if other.get("schema") != header["schema"] and not other.get("finished")]:
        if old.get("limit") == header["limit"]:
            tell(f"run {old.run} was begun in an older format and is left unfinished as it is: a new run begins")
    for newest in sorted((other for other in beside if other.get("schema") == header["schema"]), key=_created)[-1:]:
        before, now = newest.identity, header.identity
        if changed := [*_changed(before.get("files") or {}, now["files"]), *_others(before, now)]:
            tell(f"{' and '.join(changed)} since run {newest.run}: a new run begins")


def _created(header: Header) -> str:
    return str(header.get("created"))


def _same(path: Path, asked: str) -> Header | None:
    """The header at `path`, None where it was asked for something else or cannot be read."""
    try:
        other = read_header(path)
    except RunError:
        return None
    return other if other.run and _asked(other) == asked else None


def _asked(header: Header) -> str:
    """What a header says was asked for, as text."""
    server, sources = header.part("backend", "server"), header.part("identity", "sources")
    settings = {name: header.backend.get(name, server.get(name)) for name in _SETTINGS}
    texts = {name: sources.get(name) for name in _TEXTS}
    return json.dumps([{name: header.identity.get(name) or None for name in _ASKED}, texts, settings], sort_keys=True)


def _changed(before: Mapping[str, str], now: Mapping[str, str]) -> Iterator[str]:
    """Files that are not what they were, in words."""
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name):
            yield f"{name} {'is new' if name not in before else 'is gone' if name not in now else 'changed'}"


def _others(before: Mapping[str, Json], now: Mapping[str, Json]) -> Iterator[str]:
    """What else two identities of the same files differ by, in words."""
    if before.get("files") != now.get("files"):
        return
    pools = before.get("pools") or {}
    names = [name for name, size in (now.get("pools") or {}).items() if size != pools.get(name)]
    if names:
        yield f"the first samples of {', '.join(names)} are others where so many are asked for: they changed"
    if before.get("less") != now.get("less"):
        yield "the positions that the model has, and with them the room for an answer, changed"
    if before.get("sources") != now.get("sources"):
        yield "the source texts changed"


def changed_files(run: Run) -> Iterator[tuple[str, bool]]:
    """What of a run's files is not as it was, in words, and whether that is a difference: else they were not found."""
    said = run.header.identity.get("files")
    if said is None:
        return
    described, template = run.header.backend, str(run.header.get("template"))
    place = str(run.header.at("tokenizer", "path") or run.header.model["path"])
    try:
        checkpoint = find_model(place)[1].checkpoint
        folder = folder_of(checkpoint, weights=False, download=False)
    except AnchorEvalError as error:
        yield f"the files of {place} were not compared with those of the run: {error}", False
        return
    if (odd := next((name for name in said if not _FILE.fullmatch(name)), None)) is not None:
        yield f"identity: files: {odd[:80]!r} is no name of a file of a checkpoint", True
        return
    now = hashes_of(folder, tuple(dict.fromkeys([*_reads(described, template), *said])))
    for what in _changed(said, now):
        name = what.partition(" ")[0]
        elsewhere = "--" in name or (what.endswith("is gone") and not Path(checkpoint).expanduser().is_dir())
        yield (f"{name} is not in {folder}: not compared", False) if elsewhere else (f"{what} since", True)


def training_card(folder: Path) -> dict[str, Any] | None:
    """The training card beside the weights, as `train` writes it; None where there is none that can be read."""
    try:
        card = json.loads((folder / CARD).read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return card if isinstance(card, dict) else None
