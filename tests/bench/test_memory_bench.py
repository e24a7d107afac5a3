from __future__ import annotations

import json
import subprocess
import sys

import pytest

MIB = 1 << 20


@pytest.mark.slow
def test_a_prompt_of_32768_tokens_takes_under_300_mb_beyond_weights_and_cache() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "anchoreval.bench.memory"],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    made = json.loads(done.stdout)
    assert (made["tokens"], made["vocabulary"]) == (32_768, 32_768)
    assert made["kv_cache"] > 15 * MIB
    assert 20 * MIB < made["beyond"] < 300 * MIB
    assert made["full_logits"] == 8_192 * MIB
