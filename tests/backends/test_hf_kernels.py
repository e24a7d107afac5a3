"""Which attention kernel computes the arms: one for all that are compared, and none that drops part of the model."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import BOS, EOS, SHAPE, VOCABULARY, prompts, request, save_model
from transformers import (
    AutoModelForCausalLM,
    FalconConfig,
    Gemma2Config,
    GptOssConfig,
    Llama4TextConfig,
    LlamaConfig,
    VaultGemmaConfig,
)
from transformers.models.gemma2.modeling_gemma2 import Gemma2PreTrainedModel

from anchoreval.arms.arm import parse_arm, parse_arms, widest_product
from anchoreval.backends.hf.backend import HfBackend
from anchoreval.cli import parser as cli
from anchoreval.errors import ModelError, UnsupportedArm

GEMMA = {**SHAPE, "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 24, "attn_logit_softcapping": 5.0}
OSS = {**SHAPE, "head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 24}
FALCON: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "alibi": True,
    "new_decoder_architecture": False, "multi_query": False, "bos_token_id": BOS, "eos_token_id": EOS,
    "initializer_range": 0.2,
}  # fmt: skip
HAS_SDPA = Gemma2PreTrainedModel._supports_sdpa  # not any more in transformers 5.23
SOFT_CAP = (
    "sdpa leaves out this model's soft cap of the attention scores"
    if HAS_SDPA
    else "this architecture has no kernel 'sdpa'"
)
REQUESTS = [request(str(len(ids)), ids, 6, reference=(9, 8)) for ids in prompts(5, 33, 90)]


@pytest.fixture(scope="module")
def gemma2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("gemma2"), Gemma2Config(**GEMMA))


@pytest.fixture(scope="module")
def gpt_oss(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("gpt_oss"), GptOssConfig(**OSS), torch.bfloat16)


@pytest.fixture(scope="module")
def falcon(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("falcon"), FalconConfig(**FALCON))


def kernels(backend: HfBackend, arms: str, kernel: str) -> list[str]:
    found = []
    for arm in parse_arms(arms, kernel=kernel):
        with backend.under(arm) as applied:
            found.append(applied["kernel"])
    return found


def logprobs(backend: HfBackend, kernel: str = "default", arm: str = "native") -> dict[str, float]:
    with backend.under(replace(parse_arm(arm), kernel=kernel)):
        return {output.sample_id: output.reference_logprob or 0.0 for output in backend.answer(REQUESTS)}


def reference(folder: Path, kernel: str) -> dict[str, float]:
    """By the stock model, one pass per request."""
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation=kernel, dtype=torch.float32).eval()
    made = {}
    for asked in REQUESTS:
        ids = torch.tensor([[*asked.token_ids, *asked.reference_ids]])
        with torch.no_grad():
            logits = model(ids, attention_mask=torch.ones_like(ids)).logits[0].log_softmax(-1)
        start = len(asked.token_ids) - 1
        made[asked.sample_id] = sum(float(logits[start + i, token]) for i, token in enumerate(asked.reference_ids))
    return made


def test_a_soft_cap_is_computed_by_default_and_said_so(gemma2: Path) -> None:
    backend = HfBackend.open(str(gemma2))
    assert (backend.describe()["kernel"], backend.describe()["kernel_why"]) == ("eager", SOFT_CAP)
    expected = reference(gemma2, "eager")
    assert logprobs(backend) == pytest.approx(expected, abs=1e-3)
    assert logprobs(backend, "fused") == pytest.approx(expected, abs=1e-3)
    if HAS_SDPA:
        dropped = reference(gemma2, "sdpa")
        assert max(abs(dropped[name] - value) for name, value in expected.items()) > 0.1


def test_a_kernel_that_drops_part_of_the_model_is_refused_by_name(gemma2: Path, tmp_path: Path) -> None:
    refusal = SOFT_CAP if HAS_SDPA else "this architecture has no attention kernel 'sdpa'"
    with pytest.raises(ModelError, match=f"{refusal}: leave out --kernel, or name eager"):
        HfBackend.open(str(gemma2), kernel="sdpa")
    with (
        pytest.raises(UnsupportedArm, match=SOFT_CAP),
        HfBackend.open(str(gemma2)).under(parse_arm("native", kernel="sdpa")),
    ):
        pass
    with pytest.raises(ModelError, match=refusal):
        HfBackend.open(str(save_model(tmp_path, VaultGemmaConfig(**GEMMA))), kernel="sdpa")
    uncapped = save_model(tmp_path / "uncapped", Gemma2Config(**{**GEMMA, "attn_logit_softcapping": None}))
    assert HfBackend.open(str(uncapped)).describe()["kernel"] == ("sdpa" if HAS_SDPA else "eager")


def test_auto_is_one_kernel_for_all_arms_that_are_compared(llama: Path, gemma2: Path) -> None:
    arms = "native,bf16,fp64"
    backend = HfBackend.open(str(llama), dtype="bfloat16", kernel="auto", product=widest_product(parse_arms(arms)))
    assert kernels(backend, arms, "auto") == ["fused"] * 3 and backend.describe()["kernel"] == "fused"
    backend = HfBackend.open(str(llama), dtype="bfloat16", kernel="auto", product="bf16")
    assert kernels(backend, "native,bf16", "auto") == ["sdpa"] * 2
    backend = HfBackend.open(str(llama), dtype="float32", kernel="auto", product="fp32")
    assert kernels(backend, arms, "auto") == ["sdpa"] * 3
    for opened in ("default", "auto"):  # where sdpa does not do, also when the arms are not known
        assert kernels(HfBackend.open(str(gemma2), dtype="bfloat16", kernel=opened), arms, "auto") == ["fused"] * 3


def test_the_fingerprint_follows_the_kernel_that_stands_in_for_the_default(llama: Path, gemma2: Path) -> None:
    stock = HfBackend.open(str(llama), dtype="bfloat16").fingerprint
    assert HfBackend.open(str(llama), dtype="bfloat16", kernel="sdpa").fingerprint == stock
    assert HfBackend.open(str(llama), dtype="bfloat16", kernel="auto", product="model").fingerprint == stock
    assert HfBackend.open(str(llama), dtype="bfloat16", kernel="auto", product="fp32").fingerprint != stock
    capped, fused = (HfBackend.open(str(gemma2), kernel=kernel).fingerprint for kernel in ("default", "auto"))
    assert capped != fused


def test_a_model_that_has_no_sdpa_runs_by_default_and_at_wide_levels_by_auto(gpt_oss: Path) -> None:
    backend = HfBackend.open(str(gpt_oss))
    assert backend.describe()["kernel_why"] == "this architecture has no kernel 'sdpa'"
    assert kernels(backend, "native,bf16", "default") == ["eager", "eager"]
    with pytest.raises(UnsupportedArm, match="--kernel auto or fused"):
        kernels(backend, "fp64", "default")
    assert kernels(backend, "native,fp64,fp32-qk", "auto") == ["fused"] * 3
    with pytest.raises(ModelError, match="no attention kernel 'sdpa': leave out --kernel"):
        HfBackend.open(str(gpt_oss), kernel="sdpa")


def test_sinks_are_computed_by_the_default_kernel_and_by_fused(tmp_path: Path) -> None:
    folder = save_model(tmp_path, GptOssConfig(**OSS))
    backend, expected = HfBackend.open(str(folder), dtype="float32"), reference(folder, "eager")
    assert logprobs(backend) == pytest.approx(expected, abs=1e-3)
    assert logprobs(backend, "fused") == pytest.approx(expected, abs=1e-3)


def test_the_header_says_what_enters_the_kernel_under_each_arm(llama: Path, tmp_path: Path) -> None:
    backend, said = HfBackend.open(str(llama), dtype="bfloat16", kernel="fused"), {}
    for name in ("native", "bf16", "fp64"):
        with backend.under(parse_arm(name, kernel="fused")) as applied:
            said[name] = applied["rope"]["at_kernel"]
            assert applied["rope"]["forwards"] == applied["rope"]["rotations"] == 0
    narrow, wide = {"dtype": "bf16", "bits": "bf16"}, {"dtype": "fp32", "bits": "fp32"}
    assert said["native"] == said["bf16"] == {"modules": 2, "q": narrow, "k": narrow}
    assert said["fp64"] == {"modules": 2, "q": wide, "k": wide}
    json.dumps(said)


def test_a_level_that_a_model_cannot_compute_is_refused_before_it_answers_and_native_runs(tmp_path: Path) -> None:
    """Llama 4 has complex tables."""
    config = Llama4TextConfig(**{**SHAPE, "head_dim": 16, "num_local_experts": 2, "intermediate_size_mlp": 96})
    backend = HfBackend.open(str(save_model(tmp_path, config)))
    assert backend.describe()["rope"]["detected"] is None
    for level in ("fp32", "bf16", "bf16-angle", "fp64"):
        with pytest.raises(UnsupportedArm) as caught, backend.under(parse_arm(level)):
            pass
        assert "\n" not in str(caught.value)
    assert len(logprobs(backend)) == len(REQUESTS)


def test_native_needs_nothing_of_rope(falcon: Path) -> None:
    """Falcon with ALiBi has a rotary module that its layers do not use."""
    backend = HfBackend.open(str(falcon), chunk_tokens=32)
    assert backend.describe()["rope_selftest"]["rotations"] == 0
    assert logprobs(backend) == pytest.approx(reference(falcon, "sdpa"), abs=1e-3)
    with pytest.raises(UnsupportedArm, match="no rotation of this model goes through fp32"):
        kernels(backend, "fp32", "default")
    with pytest.raises(UnsupportedArm, match="nothing is rotated in the model"):
        kernels(backend, "native+shift:16", "default")
    with pytest.raises(ModelError, match="eager adds this model's ALiBi twice"):
        HfBackend.open(str(falcon), kernel="eager")


def test_a_self_test_that_breaks_stops_levels_and_not_native(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from anchoreval.backends.hf import backend as hf
    from anchoreval.backends.hf import probe as hf_probe

    def broken(_: Any) -> Any:
        raise AttributeError("no such field")

    monkeypatch.setattr(hf, "selftest", broken)
    monkeypatch.setattr(hf_probe, "inspect_rope", broken)
    backend = HfBackend.open(str(llama))
    described = backend.describe()
    assert described["rope"]["why"] == described["rope_selftest"]["why"] == "AttributeError: no such field"
    with pytest.raises(UnsupportedArm, match="rope is refused, AttributeError: no such field"):
        kernels(backend, "fp32", "default")
    assert len(logprobs(backend)) == len(REQUESTS)


OWN_CODE = """
import torch
from torch import nn
from transformers import LlamaConfig
from transformers.models.llama import modeling_llama as llama

class OwnConfig(LlamaConfig):
    model_type = "own_llama"

class Rotary(nn.Module):  # as InternLM 2: made from numbers, keeps no config
    def __init__(self, dim):
        super().__init__()
        frequencies = 1.0 / (1e4 ** (torch.arange(0, dim, 2).float() / dim))
        self.register_buffer("inv_freq", frequencies, persistent=False)

    def forward(self, x, position_ids):
        angles = position_ids[..., None].float() * self.inv_freq
        both = torch.cat((angles, angles), -1)
        return both.cos().to(x.dtype), both.sin().to(x.dtype)

class Own(llama.LlamaForCausalLM):
    config_class = OwnConfig

    def __init__(self, config):
        super().__init__(config)
        self.model.rotary_emb = Rotary(16)
"""


def test_buffers_of_a_checkpoints_own_code_are_what_its_constructor_makes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers leaves them as whatever lay in memory; native and every level then compute noise."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    folder = save_model(tmp_path / "own", LlamaConfig(**SHAPE))
    stock = logprobs(HfBackend.open(str(folder)))
    stated = json.loads((folder / "config.json").read_text())
    stated |= {"model_type": "own_llama", "architectures": ["Own"]}
    stated |= {"auto_map": {"AutoConfig": "modeling_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.Own"}}
    (folder / "config.json").write_text(json.dumps(stated))
    (folder / "modeling_own.py").write_text(OWN_CODE)
    backend = HfBackend.open(str(folder), trust_remote_code=True)
    described = backend.describe()
    assert list(described["rope"]["unchecked"]) == ["model.rotary_emb"] and described["rope"]["detected"] == "fp32"
    assert logprobs(backend) == stock
    assert logprobs(backend, arm="fp32") == stock


@pytest.mark.parametrize("kernel", ["auto", "fused", "default", "sdpa", "eager"])
def test_every_kernel_runs_from_the_command_line(kernel: str, tmp_path: Path) -> None:
    arms = "fp32,fp64" if kernel in ("auto", "fused") else "fp32,bf16"
    flags = ["--model", "anchor-tiny", "--rope", arms, "--kernel", kernel, "--dtype", "bfloat16", "--lengths", "512"]
    flags += ["--tasks", "ruler/niah_single_1", "--limit", "1", "--haystack", "generated", "--output", str(tmp_path)]
    assert cli.main(["run", *flags]) == 0
    header = json.loads(next(tmp_path.glob("*/*/header.json")).read_text())
    expected = {"auto": "fused", "default": "sdpa"}.get(kernel, kernel)
    assert [arm["applied"]["kernel"] for arm in header["arms"]] == [expected] * 2
    assert [arm["asked"]["kernel"] for arm in header["arms"]] == [kernel] * 2
    widths = [arm["applied"]["rope"]["at_kernel"]["k"]["dtype"] for arm in header["arms"]]
    assert widths == ["bf16", "fp32" if expected == "fused" else "bf16"]


def test_a_run_says_which_kernel_stands_in(gemma2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(shutil.copytree(gemma2, tmp_path / "model"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>"}))
    flags = ["--tasks", "ruler/niah_single_1", "--lengths", "1024", "--limit", "1", "--haystack", "generated"]
    assert cli.main(["run", "--model", str(folder), *flags, "--output", str(tmp_path / "runs")]) == 0
    assert f"kernel eager for all arms: {SOFT_CAP}" in capsys.readouterr().err
    header = json.loads(next(tmp_path.glob("runs/*/*/header.json")).read_text())
    assert (header["backend"]["kernel"], header["backend"]["kernel_why"]) == ("eager", SOFT_CAP)
