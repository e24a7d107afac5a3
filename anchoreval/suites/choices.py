"""Multiple choice: the choice with the highest log-probability counts, as in lm-evaluation-harness's metric `acc`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from anchoreval.schema import ChoiceScore, Json, Score
from anchoreval.suites.suite import NO_FACTS


def likeliest(choices: Sequence[ChoiceScore]) -> int:
    """Return the index of the choice with the highest log-probability; ties go to the first."""
    return max(range(len(choices)), key=lambda index: choices[index].logprob)


def gold_is_likeliest(_: str, __: Sequence[str], facts: Mapping[str, Json] = NO_FACTS) -> Score:
    """Return 1 if the right choice (fact `gold`) has the highest log-probability, else 0."""
    if not facts.get("choices"):
        return Score(None, "no choice was scored")
    return Score(float(likeliest(facts["choices"]) == facts["gold"]))
