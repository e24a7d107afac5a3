"""`bench lm-eval` in small: the same answers, less work, less memory."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

pytest.importorskip("lm_eval", reason="LM-EVAL ABSENT: pip install 'anchoreval[lm-eval]'; nothing was measured")
pytest.importorskip("accelerate", reason="ACCELERATE ABSENT: lm-eval's hf model, which is compared with, needs it")
CODE = (
    "import json, torch; from dataclasses import asdict; from anchoreval.lm_eval_plugin import bench\n"
    "torch.set_num_threads(1)\n"
    "print(json.dumps([asdict(made) for made in (bench.measure_peak(4_096), bench.measure_time(1_500, 6))]))"
)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_questions_behind_one_context_take_less_time_and_a_prompt_a_tenth_of_the_memory() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True, timeout=120)
    peak, seconds = json.loads(done.stdout.splitlines()[-1])
    assert peak["hf"] > 2 * 4 * 4_096 * 32_768 * 0.9  # logits of all tokens, and their log-softmax
    assert peak["hf"] > 10 * peak["ours"] and peak["apart"] < 2e-3
    assert seconds["hf"] > 1.5 * seconds["ours"] and seconds["apart"] < 2e-3
