"""The model `anchoreval-vllm` in lm-eval against lm-eval's own `hf` model: the same tasks, rows and weights."""

from __future__ import annotations

import os
from typing import Any

import pytest
from lm_eval_files import write_folder

pytest.importorskip("vllm", reason="VLLM ABSENT: no engine was tried in lm-eval (make test-vllm)")
pytest.importorskip("lm_eval", reason="LM-EVAL ABSENT: pip install 'anchoreval[lm-eval]'; no plugin was tried")

from test_lm_eval_model import PER_TOKEN, assert_equal, run

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
ENGINE: dict[str, Any] = {"max_num_seqs": 8, "device": "auto"}


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from lm_eval.tasks import TaskManager

    folder = write_folder(tmp_path_factory.mktemp("tasks"))
    return TaskManager(include_path=str(folder), include_defaults=False)


@pytest.mark.parametrize("rope", ["native", "fp32"])
def test_every_answer_and_log_probability_is_that_of_its_hf_model(tasks: Any, rope: str) -> None:
    """In a float32 model native and fp32 are one function, and vLLM's kernels round in other places than torch's."""
    ours = run("anchoreval-vllm", tasks, args={"rope": rope, **ENGINE})
    assert 1e-5 < PER_TOKEN < 3e-3
    assert_equal(ours, run("hf", tasks))
    said = ours["config"]["anchoreval"]
    assert said["backend"]["engine"] == "vllm" and said["arm"]["asked"]["name"] == rope
