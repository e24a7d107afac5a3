"""Score how well a model predicts a text: the mean log-probability of its tokens, mapped to 0..1."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from anchoreval.schema import Json, Score
from anchoreval.suites import NO_FACTS, PER_TOKEN


def token_probability(_: str, __: Sequence[str], facts: Mapping[str, Json] = NO_FACTS) -> Score:
    """Return e to the mean log-probability per token: the tokens' geometric mean probability, 1 / perplexity."""
    logprob = facts.get(PER_TOKEN)
    return Score(None, "its tokens have no log-probability") if logprob is None else Score(min(1.0, math.exp(logprob)))
