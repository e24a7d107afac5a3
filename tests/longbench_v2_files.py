"""LongBench v2's data.json in its real form, with texts of our own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

DOMAINS = ("Single-Document QA", "Code Repository Understanding", "Long In-context Learning")
KINDS = (("easy", "short"), ("hard", "medium"), ("hard", "short"), ("easy", "medium"))


def record(i: int, sentences: int = 12) -> dict[str, Any]:
    """The record `i`: fields with blanks around them, braces, letters outside ASCII; every third shares a context."""
    difficulty, length = KINDS[i % 4]
    kept = "".join(f"Pier {n} of {{Lorn}} is kept by Äude 码头 𝄞 {n * (i % 3 + 1)}.\r\n" for n in range(sentences))
    return {
        "_id": f"66f{i:021x}",
        "domain": DOMAINS[i % 3],
        "sub_domain": "Harbours",
        "difficulty": difficulty,
        "length": length,
        "question": f"\nWho keeps pier {i}?  ",
        "choice_A": "Äude ",
        "choice_B": " Bert",
        "choice_C": "Both {of} them",
        "choice_D": "Nobody\n",
        "answer": "ABCD"[i % 4],
        "context": f"\n\n{kept}  ",
    }


def write(folder: Path, rows: list[dict[str, Any]], escaped: bool = False) -> Path:
    """`rows` as data.json in a folder of their own under `folder`, which is returned."""
    place = folder / "longbench_v2"
    place.mkdir(parents=True, exist_ok=True)
    (place / "data.json").write_text(json.dumps(rows, ensure_ascii=escaped, indent=1), encoding="utf-8")
    return folder


def write_folder(folder: Path, count: int = 8) -> Path:
    """A --data-dir with so many records."""
    return write(folder, [record(i) for i in range(count)])
