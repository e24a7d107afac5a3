"""`bench lm-eval` in small: the same answers, less work, less memory."""

from __future__ import annotations

import sys

import pytest

pytest.importorskip("lm_eval", reason="LM-EVAL ABSENT: pip install 'anchoreval[lm-eval]'; nothing was measured")
pytest.importorskip("accelerate", reason="ACCELERATE ABSENT: lm-eval's hf model, which is compared with, needs it")


def test_questions_behind_one_context_take_a_fraction_of_the_time() -> None:
    from anchoreval.lm_eval_plugin.bench import measure_time

    made = measure_time(2_000, 6)
    assert made.apart < 2e-3 and made.ratio > 2


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_a_prompt_takes_a_tenth_of_the_memory() -> None:
    from anchoreval.lm_eval_plugin.bench import measure_peak

    made = measure_peak(4_096)
    assert made.hf > 2 * 4 * 4_096 * 32_768 * 0.9  # logits of all tokens, and their log-softmax
    assert made.apart < 2e-3 and made.ratio > 8
