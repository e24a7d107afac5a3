"""How an answer is judged: pure functions (text, references, facts) -> Score.

A scorer is looked up by the name that a task card gives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from anchoreval.schema import ChoiceScore, Json, Score
from anchoreval.suites.babilong.scoring import babilong, babilong_corrected
from anchoreval.suites.general import harness as lm_eval_tasks
from anchoreval.suites.general.scoring import lm_eval
from anchoreval.suites.longbench.scoring import LONGBENCH, require_jieba
from anchoreval.suites.longbench_v2.scoring import same_letter
from anchoreval.suites.recall.scoring import first_integer, helmet_label, helmet_substring
from anchoreval.suites.ruler.scoring import NO_FACTS, Scorer, match_all, match_any


def with_choices(facts: Mapping[str, Json], choices: Sequence[ChoiceScore]) -> Mapping[str, Json]:
    """Return the facts for a scorer: the sample's facts, plus the scores of its choices if it has any."""
    return {**facts, "choices": choices} if choices else facts


def likeliest(choices: Sequence[ChoiceScore]) -> int:
    """Return the index of the choice with the highest log-probability; ties go to the first."""
    return max(range(len(choices)), key=lambda index: choices[index].logprob)


def gold_is_likeliest(_: str, __: Sequence[str], facts: Mapping[str, Json] = NO_FACTS) -> Score:
    """Return 1 if the right choice (fact `gold`) has the highest log-probability, else 0."""
    if not facts.get("choices"):
        return Score(None, "no choice was scored")
    return Score(float(likeliest(facts["choices"]) == facts["gold"]))


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
}


def require(scorer: str) -> dict[str, str]:
    """Return the packages that a scorer uses, with their versions; raise MissingExtra if one is not installed."""
    if scorer in LONGBENCH:
        return require_jieba(scorer)
    return lm_eval_tasks.require() if scorer == "lm_eval" else {}


__all__ = ["SCORERS", "Scorer", "likeliest", "match_all", "match_any", "require", "with_choices"]
