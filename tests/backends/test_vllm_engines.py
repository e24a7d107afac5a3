"""Backends of vLLM opened for one test each: batches, the size of the cache, a bf16 model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("vllm", reason="VLLM ABSENT: nothing was computed by vLLM (make test-vllm)")

from checkpoints import EOS, prompts, request
from vllm_models import assert_equal, by_name, drawn, mixed, opened, save_llama, with_eos

from anchoreval.arms.arm import parse_arm
from anchoreval.backends import open_backend
from anchoreval.errors import ModelError
from anchoreval.schema import Continuation

pytestmark = pytest.mark.filterwarnings("ignore")
BLOCK = 32


def test_outputs_come_batch_by_batch_and_a_stream_left_halfway_leaves_nothing_behind(tmp_path: Path) -> None:
    asked = [request(f"o{i}", ids) for i, ids in enumerate(prompts(7, 20, 60))]
    with opened(save_llama(tmp_path), max_num_seqs=2) as backend:
        stream = backend.answer(asked)
        assert next(stream).finish in ("stop", "length")
        assert backend.engine.computed_tokens < sum(len(one.token_ids) for one in asked) / 2
        stream.close()
        assert sorted(by_name(backend, asked)) == sorted(one.sample_id for one in asked)
    with pytest.raises(ModelError, match="closed"):
        next(iter(backend.answer(asked)))


def test_a_small_cache_changes_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches as small as the cache, and one prompt with more choices than the cache holds at once."""
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE")
    asked = mixed()
    ids = prompts(1, 500, 500, seed=9)[0]
    choices = tuple(Continuation(drawn(300, seed=i), 300) for i in range(8))
    asked.append(replace(request("many", ids, max_new_tokens=0), choices=choices))
    wanted = by_name(open_backend("hf", str(save_llama(tmp_path))), asked)
    # 2 x 2 heads x 32 dimensions x 4 bytes x 2 layers = 1 KiB a token: 2,049 positions need a bit over 2 MiB
    with opened(tmp_path, kv_cache_gb=2.2 / 1024) as backend:
        assert backend.engine.cache.blocks * BLOCK < 2400
        assert_equal(by_name(backend, asked), wanted, asked)


def test_a_bf16_model_ends_at_every_eos_of_its_generation_config(tmp_path: Path) -> None:
    """At one level both engines round alike, and differ by the order of sums: logits of 2 to 4 have steps of 2^-6."""
    folder = save_llama(tmp_path, torch.bfloat16)
    plain = [request(f"e{i}", ids, 12, reference=drawn(8, seed=i)) for i, ids in enumerate(prompts(8, 20, 200, seed=4))]
    arm = parse_arm("bf16-table")
    reference = open_backend("hf", str(folder))
    with reference.under(arm):
        said = by_name(reference, plain)
    ends = [said["e0"].token_ids[0], said["e1"].token_ids[0], EOS]
    with opened(with_eos(folder, ends)) as backend, backend.under(arm) as applied:
        found, described = by_name(backend, plain), backend.describe()
    assert applied["rope"]["detected"] == described["rope"]["detected"] == "bf16-table"
    assert described["eos_token_ids"] == sorted(ends)
    assert [(found[name].finish, len(found[name].token_ids)) for name in ("e0", "e1")] == [("stop", 1)] * 2
    for one in plain:
        mine, other = found[one.sample_id], said[one.sample_id]
        assert mine.token_ids[-1] in ends or mine.finish == "length"
        assert mine.reference_logprob == pytest.approx(other.reference_logprob, abs=8 * 0.05)
