"""Verify a run's header: compare what it states twice, and what follows from the rest of it."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress

from anchoreval.errors import CardError, LengthError, RunError
from anchoreval.records.header import TWICE, fingerprint
from anchoreval.records.parts import HeaderParts
from anchoreval.records.run import Run
from anchoreval.runs.prompts import lengths_of
from anchoreval.runs.rebuild import Remake
from anchoreval.runs.verify.rounds import rule_differences
from anchoreval.schema import uses_generated
from anchoreval.suites import generator_of


def header_differences(run: Run) -> Iterator[str]:
    """Yield every contradiction in a header; raise RunError if a part is missing or has another type."""
    parts, header, identity, backend = run.parts, run.header, run.header.identity, run.header.backend
    if fingerprint(identity) != parts.run:
        yield f"run: {parts.run} is not the fingerprint {fingerprint(identity)} of its identity"
    for name in (*TWICE, *(["limit"] if "limit" in identity else [])):
        if header.get(name) != identity.get(name):
            yield f"{name}: {header.get(name)} here, {identity.get(name)} in its identity"
    if parts.tokenizer.sha256 != parts.identity.tokenizer:
        yield "tokenizer: sha256 is not that of its identity"
    cards = header.cards
    if header.get("tasks") != list(cards):
        yield "tasks: not those of its identity"
    if header.scorers != {address: card.get("scorer") for address, card in cards.items()}:
        yield "scorers: not those of its identity"
    if any(header.sources.get(name) != identity["sources"].get(name) for name in ("haystack", "wordlists")):
        yield "sources: not those of its identity"
    if header.get("comparable"):
        if incomparable := header.get("incomparable"):
            yield f"comparable: true, though {', '.join(incomparable)} are not"
        elif "incomparable" not in header and (header.sources["haystack"] != "published" or parts.identity.seed != 42):
            yield "comparable: true, with another haystack or seed than the published ones"
        if generated := {record.task for record in run.records if uses_generated(record.facts)}:
            yield f"comparable: true, though samples of {', '.join(sorted(generated))} hold generated text"
    try:
        for arm, row in zip(parts.parsed_arms(), header["arms"], strict=True):
            if row["asked"] != arm.asked():
                yield f"arms: {arm.name}: asked is not what its name spells"
    except RunError as error:
        yield str(error)
    if header.model.get("sha256") != backend.get("weights_sha256"):
        yield "model: sha256 is not the backend's weights_sha256"
    if files := backend.get("files_sha256"):
        whole = hashlib.sha256(json.dumps(sorted(files.items())).encode()).hexdigest()
        if whole != backend.get("weights_sha256"):
            yield "backend: weights_sha256 is not that of its files_sha256"
    yield from _counts(parts)
    if parts.identity.until is not None or parts.until is not None:
        yield from rule_differences(run, parts)


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
    in_files = set()
    for task in parts.identity.tasks:
        with suppress(CardError, KeyError):  # not a task of today, or of a suite that is not named
            in_files |= {task.address} if generator_of(task).in_files else set()
    for place in sorted(there.keys() | wanted.keys()):
        if there[place] != (1 if place in wanted else 0):
            yield f"asked: {place[0]} at {place[1]} stands there {there[place]} times"
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
        if generator_of(task := remake.tasks[cell.task]).in_files:
            next(remake.samples(cell.task, cell.length))  # raises SourceError if the files are not those of the run
            count = remake.prompts.count(task, cell.length)
            if count != cell.samples:
                yield f"asked: {cell.task} at {cell.length}: {cell.samples} samples, not {count}"
