"""Find the source of a sample. Samples of one source are not independent of each other.

A source is a text that several questions ask about, or a haystack that contains several needles. Text that all samples
of a benchmark share (its instructions, RULER's one haystack of essays) is not a source: it is part of the benchmark.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Hashable, Mapping, Sequence

from anchoreval.schema import Json, Record

#: Fields of lm-eval's rows that hold or name the text that several rows ask about; the first one in a row counts.
PASSAGES = (
    "passage", "article", "paragraph", "context", "story", "document", "background", "source_id", "goal",
)  # fmt: skip
QA_BLOCK = 24  # so many neighbouring generated questions of ruler-balanced/qa_* are about the same invented people
MMLU_PASSAGE = "This question refers to the following information."  # the passage follows, the last line asks


def cluster_of(record: Record) -> Hashable:
    """Return a key that is equal for records that are not independent of each other."""
    return unit_of(record.task, record.sample_id, record.index, record.references, record.facts)


def unit_of(task: str, sample_id: str, index: int, references: Sequence[str], facts: Mapping[str, Json]) -> Hashable:
    """Return the source that a sample names; without one, its number and references, which are equal at every length.

    Most generators draw the same needle for sample i of a task at every length. If a generator does not, the references
    differ, and so do the units. At one length every number occurs once.
    """
    source = source_of(task, sample_id, index, facts)
    return (task, index, *references) if source == sample_id else source


def source_of(task: str, sample_id: str, index: int, facts: Mapping[str, Json]) -> Hashable:
    """Return the source of a sample with these facts: a document, a story or a row; else the sample's id.

    The fact `source` names it: by the hash or name of a text, which several tasks may share, or by a number within the
    task. Older records without that fact have the number of RULER's question or of BABILong's story. The numbers of
    ruler-balanced's invented people repeat every 24 samples, so the block of the sample is part of the source.
    """
    if facts.get("haystack") == "generated" and task.startswith("ruler-balanced/qa_"):
        task = f"{task}, people {index // QA_BLOCK}"
    source = facts.get("source")
    if isinstance(source, str):
        return "source", source
    if source is not None:
        return task, "source", str(source)
    if "lm_eval" in facts:
        return _row(facts) or sample_id
    for fact in ("question", "story"):
        if isinstance(facts.get(fact), int):
            return task, fact, str(facts[fact])
    return sample_id


def _row(facts: Mapping[str, Json]) -> Hashable:
    """Return the passage that a row of lm-eval asks about, else the row, which several tasks of a folder may share."""
    task, row = facts["lm_eval"], facts.get("doc")
    if not isinstance(task, Mapping) or not isinstance(row, Mapping):
        return None
    question = row.get("question")
    for field in PASSAGES:
        if isinstance(row.get(field), str) and row[field].strip():
            return "rows", str(task.get("folder")), field, _mark(row[field])
    if isinstance(question, str) and question.startswith(MMLU_PASSAGE):
        return "rows", str(task.get("folder")), "passage", _mark(question.rstrip().rpartition("\n")[0])
    return "rows", str(task.get("folder")), "row", _mark(json.dumps(row, sort_keys=True, default=str))


def _mark(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()
