"""Verify a run's header: compare what it states twice, and what follows from the rest of it."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from anchoreval.errors import AnchorEvalError, LengthError
from anchoreval.records.header import TWICE, Header, fingerprint
from anchoreval.records.parts import HeaderParts
from anchoreval.records.run import Run
from anchoreval.runs.lengths import lengths_of
from anchoreval.runs.rebuild import Remake
from anchoreval.runs.verify.rounds import rule_differences
from anchoreval.schema import Json, uses_generated
from anchoreval.suites import IN_FILES


def header_differences(run: Run) -> Iterator[str]:
    """Yield every contradiction in a header; raise RunError if a part is missing or has another type."""
    parts, header, identity = run.parts, run.header, run.header.identity
    if fingerprint(identity) != header.run:
        yield f"run: {header.run} is not the fingerprint {fingerprint(identity)} of its identity"
    for name in (*TWICE, *(["limit"] if "limit" in identity else [])):
        if header.get(name) != identity.get(name):
            yield f"{name}: {header.get(name)} here, {identity.get(name)} in its identity"
    if parts.tokenizer.sha256 != parts.identity.tokenizer:
        yield "tokenizer: sha256 is not that of its identity"
    if header.tasks != list(header.cards):
        yield "tasks: not those of its identity"
    if header.scorers != {address: card.get("scorer") for address, card in header.cards.items()}:
        yield "scorers: not those of its identity"
    if any(header.sources.get(name) != identity["sources"].get(name) for name in ("haystack", "wordlists")):
        yield "sources: not those of its identity"
    yield from _comparable(run, parts)
    yield from _arms(parts, header.arm_rows)
    yield from _weights(header)
    yield from _counts(parts)
    if parts.identity.until is not None or parts.until is not None:
        yield from rule_differences(run, parts)


def _comparable(run: Run, parts: HeaderParts) -> Iterator[str]:
    """Yield why a header is wrong to call its run comparable with published scores; use the records, if read."""
    header = run.header
    if not header.get("comparable"):
        return
    if incomparable := header.get("incomparable"):
        yield f"comparable: true, though {', '.join(incomparable)} are not"
    elif "incomparable" not in header and (header.sources["haystack"] != "published" or parts.identity.seed != 42):
        yield "comparable: true, with another haystack or seed than the published ones"
    if generated := {record.task for record in run.records if uses_generated(record.facts)}:
        yield f"comparable: true, though samples of {', '.join(sorted(generated))} hold generated text"


def _arms(parts: HeaderParts, rows: Sequence[Mapping[str, Json]]) -> Iterator[str]:
    try:
        arms = [arm.parsed() for arm in parts.arms]
    except AnchorEvalError as error:
        yield f"arms: {error}"
        return
    if [arm.fingerprint() for arm in arms] != parts.identity.arms:
        yield "arms: not those of its identity"
    for arm, row in zip(arms, rows, strict=True):
        if row["asked"] != arm.asked():
            yield f"arms: {arm.name}: asked is not what its name spells"


def _weights(header: Header) -> Iterator[str]:
    """Yield where the hashes of the weights differ between the model, the backend and its files."""
    backend = header.backend
    if header.model.get("sha256") != backend.get("weights_sha256"):
        yield "model: sha256 is not the backend's weights_sha256"
    if files := backend.get("files_sha256"):
        whole = hashlib.sha256(json.dumps(sorted(files.items())).encode()).hexdigest()
        if whole != backend.get("weights_sha256"):
            yield "backend: weights_sha256 is not that of its files_sha256"


def _counts(parts: HeaderParts) -> Iterator[str]:
    """Yield the cells whose number of samples does not follow from tasks, lengths and limit."""
    left = Counter((row.task, row.length) for row in parts.unmakeable)
    there = left + Counter((row.task, row.length) for row in parts.asked)
    limit = parts.limit
    wanted = {
        (task.address, length): min(limit or task.samples, task.samples)
        for task in parts.identity.tasks
        for length in lengths_of(task, parts.identity.lengths, parts.model.window)
    }
    in_files = {task.address for task in parts.identity.tasks if task.generator in IN_FILES}
    for task, length in sorted(there.keys() | wanted.keys()):
        if there[task, length] != (1 if (task, length) in wanted else 0):
            yield f"asked: {task} at {length} stands there {there[task, length]} times"
    for row in parts.asked:
        most = wanted.get((row.task, row.length), row.samples)
        if row.samples > most or (row.samples < most and row.task not in in_files):
            yield f"asked: {row.task} at {row.length}: {row.samples} samples, not {wanted[row.task, row.length]}"


def unmade(remake: Remake) -> Iterator[str]:
    """Yield cells that the header calls unmakeable but can be made, and cells whose files give another count."""
    for row in remake.header.unmakeable:
        try:
            next(remake.prompts.samples(remake.tasks[row.task], row.length, 1))
        except LengthError:
            continue
        yield f"unmakeable: {row.task} at {row.length} can be made"
    for cell in remake.header.asked:
        if (task := remake.tasks[cell.task]).generator in IN_FILES:
            next(remake.samples(cell.task, cell.length))  # raises SourceError if the files are not those of the run
            count = remake.prompts.count(task, cell.length)
            if count != cell.samples:
                yield f"asked: {cell.task} at {cell.length}: {cell.samples} samples, not {count}"
