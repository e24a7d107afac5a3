"""When two computations of the same requests agree on any processor: what is compared to the bit, and what is not.

Prompts, documents and references are computed in passes whose shapes depend on the request alone, so their numbers are
equal to the bit on any one machine. Answers are decoded in as many rows as share a batch, and a product may round a row
otherwise among more rows: two answers may part, but only where two tokens are as likely as rounding can tell.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from anchoreval.schema import Output, Request

_UNITS = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
_SINGLE = 2.0**-24


def logit_tolerance(model: Any) -> float:
    """How far two orders of summation may drive two logits apart from each other: six standard deviations.

    A logit (below 10 here) passes through about 7 products per layer and the head. Each is a sum of up to
    `intermediate_size` terms in float32, whose roundings of 2**-24 add up as a random walk, and is rounded once to the
    model's dtype, by a uniform error of at most a unit. Two logits of two computations have four errors of that size.
    """
    config = model.config.get_text_config()
    products = 7 * config.num_hidden_layers + 1
    unit = _UNITS[model.dtype]
    variance = products * (config.intermediate_size * _SINGLE**2 + unit**2 / 3)
    return float(6 * 2 * 10 * variance**0.5)


def assert_agree(
    requests: Iterable[Request],
    one: dict[str, Output],
    other: dict[str, Output],
    logits: Callable[[Request, tuple[int, ...]], Tensor],
    tolerance: float,
) -> None:
    """Raise AssertionError unless both hold the same outputs, answers up to the first near tie.

    `logits(request, tokens)` `QV` is one plain pass over the prompt and those tokens of its answer.
    """
    assert one.keys() == other.keys()
    for request in requests:
        first, second = one[request.sample_id], other[request.sample_id]
        assert first.reference_logprob == second.reference_logprob, request.sample_id
        pairs = enumerate(zip(first.token_ids, second.token_ids, strict=False))
        apart = next((at for at, (mine, theirs) in pairs if mine != theirs), None)
        if apart is None:
            assert (first.token_ids, first.text, first.finish) == (second.token_ids, second.text, second.finish)
            continue
        last_V = logits(request, first.token_ids[:apart])[-1]
        likely = min(float(last_V[output.token_ids[apart]]) for output in (first, second))
        assert float(last_V.max()) - likely <= tolerance, (request.sample_id, apart)
