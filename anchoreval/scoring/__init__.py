"""How an answer is judged: pure functions (text, references) -> Score, looked up by the name a task card
gives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from anchoreval.schema import Score
from anchoreval.scoring.match import match_all, match_any

SCORERS: dict[str, Callable[[str, Sequence[str]], Score]] = {"match_all": match_all, "match_any": match_any}

__all__ = ["SCORERS", "match_all", "match_any"]
