"""The identity of a run: everything that decides its answers; the header that holds it; what changed since older runs.

Versions, processor, threads, GPU and parallel size change only last bits, and are no part of the identity. The header
lists each such environment once under `environments`, and each record names its own.
"""

from __future__ import annotations

import datetime
import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from anchoreval.arms.arm import Arm
from anchoreval.backends import BACKENDS, Described, waves
from anchoreval.errors import AnchorEvalError, RunError
from anchoreval.files import content_of
from anchoreval.files.strict_json import parse
from anchoreval.model import Model
from anchoreval.model.checkpoint import ADAPTER, hashes_of
from anchoreval.prompt import anchor_token, first_token
from anchoreval.records.header import HEADER, SCHEMA, TWICE, UNUSED_TEMPLATE, Header, fingerprint, read_header
from anchoreval.records.run import Run
from anchoreval.runs.prompts import Cells, Prompts
from anchoreval.runs.rounds import rule_of
from anchoreval.schema import Json
from anchoreval.suites import generator_of, scorer_of
from anchoreval.training.checkpoints import CARD

#: The parts of an identity that a user asked for. The rest follows from files and from the number of samples.
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
#: Files that a tokenizer is read from, ours or that of transformers.
_OF_TOKENIZERS = (
    "config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model",
)  # fmt: skip
_OF_TEMPLATES = ("chat_template.jinja", "chat_template.json", "additional_chat_templates/*.jinja")
_OF_LOADERS = ("generation_config.json", ADAPTER)
#: A valid name under `files`: a plain path below the checkpoint's folder, no pattern.
_FILE = re.compile(r"([\w-][\w.+@=-]*/)*[\w-][\w.+@=-]*")
_TEXTS = ("haystack", "wordlists", "context")
#: The parts of a backend's description that a user asked for.
_SETTINGS = ("engine", "mode", "dtype", "kernel", "realisation", "settings", "address", "api", "seed")


def decided_by(prompts: Prompts, cells: Cells, described: Mapping[str, Json]) -> dict[str, Json]:
    """Return the part of a run's identity that follows from files.

    That is what `read_by` returns, with these parts if they are not empty:

    `cut`       task -> the length at which its prompts are cut, if no length was asked for
    `less`      cells whose answer budget is a token smaller because of the model's window
    `shuffled`  cells whose samples are in another order than their own, under a stopping rule
    `pools`     cell -> the part of the number of samples that the samples themselves depend on
    """
    addressed = [(cell, "@".join(map(str, cell.place))) for cell in cells]
    pools = {
        at: pool(prompts.recipe(cell.task, cell.length, cell.asked))
        for cell, at in addressed
        if (pool := generator_of(cell.task).pool)
    }
    cut = {cell.task.address: cell.length for cell in cells if cell.task.length_of == "prompt"}
    parts: dict[str, Json] = {
        "cut": {} if prompts.spec.lengths else cut,
        "less": [at for cell, at in addressed if cell.task.length_of == "prompt" and "budget_less" in cell.facts],
        "shuffled": [at for cell, at in addressed if cell.shuffled],
        "pools": {at: size for at, size in pools.items() if size is not None},
    }
    return read_by(prompts, described) | {name: part for name, part in parts.items() if part}


def read_by(prompts: Prompts, described: Mapping[str, Json]) -> dict[str, Json]:
    """Return the part of `decided_by` that follows from the model's files alone: hashes, end tokens, anchor token."""
    names = _reads(described, prompts.spec.template)
    return {
        "files": hashes_of(prompts.model.folder, names) | dict(described.get("files_sha256") or {}),
        "eos_token_ids": described.get("eos_token_ids"),
        "anchor_token": list(anchor_token(prompts.model.tokenizer)) if prompts.spec.anchor == "auto" else None,
    }


def header_of(prompts: Prompts, cells: Cells, engine: Described, unused_template: bool) -> Header:
    """Return the header of a new run: asked, applied, versions, sources. It is written before the first answer.

    Each arm is installed once as a test, so that UnsupportedArm is raised before anything is computed.
    `unused_template` is True if the model has a chat template, and prompts are raw text although nobody asked for that.
    """
    spec, model, tokenizer, described = prompts.spec, prompts.model, prompts.model.tokenizer, engine.describe()
    identity = prompts.identity(engine.fingerprint) | decided_by(prompts, cells, described)
    incomparable = prompts.incomparable(cells)
    named = {"sha256": "weights_sha256", "parameters": "parameters", "dtype": "dtype"}
    named |= {"adapter": "adapter"} if described.get("adapter") else {}
    asked: dict[str, Any] = {"name": model.name, "path": model.asked, "about": model.card.about}
    asked["window"] = model.window
    trained = model.reader is None and (model.folder / CARD).is_file()
    asked |= {"trained": training_card(model.folder)} if trained else {}
    read = {"read_by_transformers": tokenizer.reading.words} if tokenizer.reading else {}
    read |= {"path": model.reader} if model.reader else {}
    first = first_token(tokenizer, spec.template, spec.template_args, spec.anchor)
    applied: dict[Arm, dict[str, Json]] = {}
    for arm in itertools.chain(*waves(str(described["engine"]), spec.arms)):  # each wave starts the engine again
        with engine.under(arm) as facts:
            applied[arm] = {"name": arm.name, "asked": arm.asked(), "applied": dict(facts)}
    header = {
        "schema": SCHEMA,
        "version": metadata.version("anchoreval"),
        "run": fingerprint(identity),
        "created": now(),
        "identity": identity,
        "model": asked | {key: described[name] for key, name in named.items()},
        "backend": {name: value for name, value in described.items() if name != "environment"},
        "environments": [environment_of(described)],
        "tokenizer": {"sha256": tokenizer.sha256} | first | read,
        "arms": [applied[arm] for arm in spec.arms],
        "tasks": [task.address for task in spec.tasks],
        "scorers": {task.address: task.scorer for task in spec.tasks},
        "scorer_packages": {name: text for cell in cells for name, text in scorer_of(cell.task).packages().items()},
        "lengths": sorted({cell.length for cell in cells} | {row["length"] for row in cells.unmakeable}),
        "asked": cells.rows,
        "unmakeable": cells.unmakeable,
        "limit": spec.limit,
        "group": spec.group,
        "sources": identity["sources"],
        "comparable": not incomparable,
        "incomparable": incomparable,
        **{name: identity[name] for name in TWICE if name in identity},
        **({UNUSED_TEMPLATE: True} if unused_template else {}),
        **({"until": rule_of(spec.until)} if spec.until else {}),
    }
    return Header(json.loads(json.dumps(header)))  # as it is read again


def now() -> str:
    """Return the time in UTC in the format of headers: ISO 8601, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _reads(described: Mapping[str, Json], template: str) -> tuple[str, ...]:
    """Return the names, or globs, of the files besides the weights that decide an answer.

    These are the tokenizer's files; those of chat templates if one is rendered here or is used to count tokens; and
    those of the loader if the engine has one.
    """
    server, engine = described.get("server") or {}, BACKENDS.get(str(described.get("engine")))
    rendered = template != "base" or server.get("api") == "chat"
    loads = engine is not None and engine.loads_checkpoint
    return (*_OF_TOKENIZERS, *(_OF_TEMPLATES if rendered else ()), *(_OF_LOADERS if loads else ()))


def environment_of(described: Mapping[str, Json]) -> dict[str, Json]:
    """Return one entry of a header's `environments` from a backend's description, without the unknown values."""
    environment = dict(described.get("environment") or {"versions": described.get("versions") or {}})
    versions = {"anchoreval": metadata.version("anchoreval")} | environment.pop("versions", {})
    filled = {"versions": {name: text for name, text in versions.items() if text is not None}} | environment
    return {name: value for name, value in filled.items() if value is not None}


def tell_beside(folder: Path, header: Header, tell: Callable[[str], None]) -> None:
    """Tell how a new run in `folder` differs from the newest run beside it that was asked for the same.

    An unfinished run of an older format is named too, since it cannot be resumed. Runs that cannot be read are skipped.
    """
    beside = [other for path in sorted(folder.parent.glob(f"*/{HEADER}")) if (other := _same(path, header))]
    for old in [other for other in beside if other.get("schema") != header["schema"] and not other.get("finished")]:
        if old.get("limit") == header["limit"]:
            tell(f"run {old.run} was begun in an older format and is left unfinished as it is: a new run begins")
    alike = [other for other in beside if other.get("schema") == header["schema"]]
    for newest in sorted(alike, key=lambda other: other.created)[-1:]:
        before, now = newest.identity, header.identity
        changed = [*_changed(before.get("files") or {}, now["files"]), *_others(before, now)]
        then, today = newest.backend.get("prefill"), header.backend.get("prefill")
        if then != today:
            chunk = newest.at("backend", "prefill", "chunk_tokens")
            resumes = f" (--chunk-tokens {chunk} resumes it)" if chunk else ""
            changed.append(
                f"how prompts are prefilled changed from {then} in version {newest.get('version')} to {today}{resumes}"
            )
        if changed:
            tell(f"{' and '.join(changed)} since run {newest.run}: a new run begins")


def _same(path: Path, header: Header) -> Header | None:
    """Return the header at `path`, or None if it was asked for something else than `header` or cannot be read."""
    try:
        other = read_header(path)
    except RunError:
        return None
    return other if other.run and _asked(other) == _asked(header) else None


def _asked(header: Header) -> str:
    """Return as JSON text what a header says was asked for."""
    server, sources = header.part("backend", "server"), header.part("identity", "sources")
    settings = {name: header.backend.get(name, server.get(name)) for name in _SETTINGS}
    texts = {name: sources.get(name) for name in _TEXTS}
    asked: dict[str, Any] = {name: header.identity.get(name) or None for name in _ASKED}
    asked["tasks"] = [{**task, "outside": bool(task.get("outside"))} for task in header.cards.values()]
    return json.dumps([asked, texts, settings], sort_keys=True)


def _changed(before: Mapping[str, str], now: Mapping[str, str]) -> Iterator[str]:
    """Yield a phrase for each file that is new, gone or changed."""
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name):
            yield f"{name} {'is new' if name not in before else 'is gone' if name not in now else 'changed'}"


def _others(before: Mapping[str, Json], now: Mapping[str, Json]) -> Iterator[str]:
    """Yield a sentence for each other difference of two identities that have the same files."""
    if before.get("files") != now.get("files"):
        return
    pools = before.get("pools") or {}
    names = [name for name, size in (now.get("pools") or {}).items() if size != pools.get(name)]
    if names:
        yield f"the first samples of {', '.join(names)} are others where so many are asked for: they changed"
    if before.get("less") != now.get("less"):
        yield "the positions that the model has, and with them the room for an answer, changed"
    if before.get("releases") != now.get("releases"):
        yield "the release of lm-eval, whose definitions make the prompts, changed"
    if before.get("sources") != now.get("sources"):
        yield "the source texts changed"
    if before.get("tasks") != now.get("tasks"):
        yield "the card or the module of a suite from outside the package changed"


def changed_files(run: Run) -> Iterator[tuple[str, bool]]:
    """Yield (phrase, differs) for each file of a run that changed (True) or could not be compared (False)."""
    hashes = run.header.identity.get("files")
    if hashes is None:
        return
    described, template = run.header.backend, str(run.header.get("template"))
    place = str(run.header.tokenizer.get("path") or run.header.model["path"])
    try:
        model = Model.of(place, download=False)
        folder = model.folder
    except AnchorEvalError as error:
        yield f"the files of {place} were not compared with those of the run: {error}", False
        return
    if (odd := next((name for name in hashes if not _FILE.fullmatch(name)), None)) is not None:
        yield f"identity: files: {odd[:80]!r} is no name of a file of a checkpoint", True
        return
    now = hashes_of(folder, tuple(dict.fromkeys([*_reads(described, template), *hashes])))
    for change in _changed(hashes, now):
        name = change.partition(" ")[0]
        elsewhere = "--" in name or (change.endswith("is gone") and not Path(model.checkpoint).expanduser().is_dir())
        yield (f"{name} is not in {folder}: not compared", False) if elsewhere else (f"{change} since", True)


def training_card(folder: Path) -> dict[str, Any] | None:
    """Return the training card beside the weights, as `train` writes it; None where there is none that can be read."""
    try:
        card = parse(content_of(folder / CARD))
    except (RunError, ValueError):
        return None
    return card if isinstance(card, dict) else None
