"""What a sample is made of and shares with others: samples of one source are not independent of each other.

A source is a text of which several questions ask, or a haystack in which several needles lie. What every sample of a
benchmark has in common (its instructions, RULER's one haystack of essays) is no source: it is part of the benchmark.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Hashable, Mapping, Sequence

from anchoreval.schema import Json, Record

#: Fields of lm-eval's rows that hold or name the text of which several rows ask, the first that a row has.
PASSAGES = (
    "passage", "article", "paragraph", "context", "story", "document", "background", "source_id", "goal",
)  # fmt: skip
QA_BLOCK = 24  # generated questions of ruler-balanced/qa_* that are about the same invented people
MMLU_PASSAGE = "This question refers to the following information."  # the passage follows, the last line asks


def cluster_of(record: Record) -> Hashable:
    """What a record shares with others that are not independent of it; its own where it shares nothing."""
    return unit_of(record.task, record.sample_id, record.index, record.references, record.facts)


def unit_of(task: str, sample_id: str, index: int, references: Sequence[str], facts: Mapping[str, Json]) -> Hashable:
    """Return the source that a sample names, else what it asks for at every length: its number and its references.

    Generators draw for sample i of a task the same needle at every length, as a rule; where they do not, references
    differ, and so do units. At one length every number is there once.
    """
    source = source_of(task, sample_id, index, facts)
    return (task, index, *references) if source == sample_id else source


def source_of(task: str, sample_id: str, index: int, facts: Mapping[str, Json]) -> Hashable:
    """Return the source of a sample with these facts: a document, a story or a row, else the sample itself.

    The fact `source` names it: a text by its hash or name, whatever task asks of it, or by its number within the task.
    Records of before that fact name the number of RULER's question, or of BABILong's story. The people whom
    ruler-balanced invents have the numbers of those before, 24 samples later.
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
    """The passage that a row of lm-eval's asks of, else the row, which several tasks of a folder may share."""
    said, row = facts["lm_eval"], facts.get("doc")
    if not isinstance(said, Mapping) or not isinstance(row, Mapping):
        return None
    asked = row.get("question")
    for field in PASSAGES:
        if isinstance(row.get(field), str) and row[field].strip():
            return "rows", str(said.get("folder")), field, _mark(row[field])
    if isinstance(asked, str) and asked.startswith(MMLU_PASSAGE):
        return "rows", str(said.get("folder")), "passage", _mark(asked.rstrip().rpartition("\n")[0])
    return "rows", str(said.get("folder")), "row", _mark(json.dumps(row, sort_keys=True, default=str))


def _mark(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()
