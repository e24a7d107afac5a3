"""`bench lm-eval` in small: the same answers, less work, less memory."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("lm_eval", reason="LM-EVAL ABSENT: pip install 'anchoreval[lm-eval]'; nothing was measured")
pytest.importorskip("accelerate", reason="ACCELERATE ABSENT: lm-eval's hf model, which is compared with, needs it")
CODE = "from bench import lm_eval_beside as bench; print(bench.report_lm_eval(1_500, 6, 4_096))"
NUMBER = r"([0-9.e+-]+)"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_questions_behind_one_context_take_less_time_and_a_prompt_a_tenth_of_the_memory() -> None:
    tests = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", CODE], env=tests, capture_output=True, text=True, check=True, timeout=120
    )
    seconds, peak = done.stdout.strip().splitlines()[-2:]
    found = re.search(f"hf {NUMBER} CPU s, anchoreval {NUMBER} CPU s, .* within {NUMBER}", seconds)
    theirs, ours, apart = map(float, found.groups() if found else ())
    assert theirs > 1.5 * ours > 0 and apart < 2e-3
    found = re.search(f"hf {NUMBER} MiB, anchoreval {NUMBER} MiB, .* within {NUMBER}", peak)
    theirs, ours, apart = map(float, found.groups() if found else ())
    assert theirs > 2 * 4 * 4_096 * 32_768 / 2**20 * 0.9  # logits of all tokens, and their log-softmax
    assert theirs > 10 * ours > 0 and apart < 2e-3
