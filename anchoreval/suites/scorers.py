"""How an answer is judged: pure functions (text, references, facts) -> Score.

A scorer is looked up by the name that a task card gives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from anchoreval.schema import ChoiceScore, Json
from anchoreval.suites.babilong.scoring import babilong, babilong_corrected
from anchoreval.suites.choices import PER_TOKEN, gold_is_likeliest, likeliest
from anchoreval.suites.general import harness as lm_eval_tasks
from anchoreval.suites.general.scoring import lm_eval
from anchoreval.suites.longbench.scoring import LONGBENCH, require_jieba
from anchoreval.suites.longbench_v2.scoring import same_letter
from anchoreval.suites.nll.scoring import token_probability
from anchoreval.suites.recall.scoring import first_integer, helmet_label, helmet_substring
from anchoreval.suites.ruler.scoring import Scorer, match_all, match_any

SCORERS: dict[str, Scorer] = {
    "match_all": match_all,
    "match_any": match_any,
    "likeliest": gold_is_likeliest,
    "same_letter": same_letter,
    "lm_eval": lm_eval,
    **LONGBENCH,
    "babilong": babilong,
    "babilong_corrected": babilong_corrected,
    "helmet_substring": helmet_substring,
    "helmet_label": helmet_label,
    "first_integer": first_integer,
    "token_probability": token_probability,
}


def require(scorer: str) -> dict[str, str]:
    """Return the packages that a scorer uses, with their versions; raise MissingExtra if one is not installed."""
    if scorer in LONGBENCH:
        return require_jieba(scorer)
    return lm_eval_tasks.require() if scorer == "lm_eval" else {}


def with_choices(
    facts: Mapping[str, Json], choices: Sequence[ChoiceScore], logprob: float | None = None
) -> Mapping[str, Json]:
    """Return the facts for a scorer: the sample's, plus the scores of its choices or its text's log-probability."""
    return {**facts, "choices": choices} if choices else facts if logprob is None else {**facts, PER_TOKEN: logprob}


__all__ = ["SCORERS", "Scorer", "likeliest", "match_all", "match_any", "require", "with_choices"]
