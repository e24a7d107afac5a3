"""The Hugging Face backend: stock transformers models, answered in batches under an arm."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers

from anchoreval.attention.inspect_hf import inspect_rope, selftest
from anchoreval.attention.kernels import FUSED
from anchoreval.attention.patch_hf import Applied, Kernel, applied
from anchoreval.backends import ArmLike
from anchoreval.backends.checkpoint import Checkpoint, find_checkpoint
from anchoreval.backends.hf_decode import REFERENCE_TOKENS, Answering
from anchoreval.backends.hf_load import StockNetwork, eos_ids, load, max_length
from anchoreval.backends.hf_plan import Limits
from anchoreval.errors import ModelError, UnsupportedArm
from anchoreval.schema import Json, Output, Request
from anchoreval.tokenizer import load_tokenizer


class HfBackend:
    """A causal language model of transformers; see `Backend`."""

    def __init__(self, checkpoint: Checkpoint, network: StockNetwork, limits: Limits) -> None:
        self._checkpoint, self._network, self._limits = checkpoint, network, limits
        self._tokenizer = load_tokenizer(checkpoint.folder)
        self._eos = eos_ids(network.model, self._tokenizer)
        self._selftest: dict[str, Json] | None = None
        self._applied: Applied | None = None
        self._closed = False

    @classmethod
    def open(
        cls,
        model: str,
        *,
        dtype: str = "auto",
        device: str = "auto",
        kernel: str = "sdpa",
        trust_remote_code: bool = False,
        use_kernels: bool = False,
        chunk_tokens: int = 512,
        batch_tokens: int = 32_768,
        rows: int = 32,
    ) -> HfBackend:
        """The backend with the model of a folder or hub id loaded.

        `chunk_tokens` changes rounding and belongs to the identity; `batch_tokens` (rows x columns of the
        cache) and `rows` only change speed and memory. `use_kernels` is refused: it swaps the rotation for an
        unknown one.
        """
        if use_kernels:
            raise ModelError("use_kernels=True replaces the rotary code that is measured: leave it off")
        if min(chunk_tokens, batch_tokens, rows) < 1:
            raise ModelError("chunk_tokens, batch_tokens and rows must be at least 1")
        checkpoint = find_checkpoint(model)
        network = load(checkpoint, dtype, device, kernel, trust_remote_code)
        return cls(checkpoint, network, Limits(chunk_tokens, batch_tokens, rows))

    @property
    def model(self) -> Any:
        """The transformers model, for the self-test of the rotary sites and for probes."""
        return self._network.model

    @property
    def folder(self) -> Path:
        """Where the checkpoint and its tokenizer lie."""
        return self._checkpoint.folder

    @property
    def fingerprint(self) -> str:
        """SHA-256 over weights, engine and every setting that changes bits."""
        identity = {
            "weights": self._checkpoint.weights_sha256,
            "engine": "hf",
            "versions": _versions(),
            "dtype": self._network.dtype,
            "device": self._network.device.type,
            "prefill": self._prefill(),
            "reference_tokens": REFERENCE_TOKENS,
        }
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()

    def describe(self) -> dict[str, Json]:
        """What the run's header says of the engine and the model."""
        network = self._network
        return {
            "engine": "hf",
            "versions": _versions(),
            "device": str(network.device),
            "device_name": _device_name(network.device),
            "dtype": network.dtype,
            "kernel": network.kernel,
            "model_type": network.model.config.model_type,
            "parameters": sum(p.numel() for p in network.model.parameters()),
            "max_length": max_length(network.model.config),
            "eos_token_ids": sorted(self._eos),
            "weights_sha256": self._checkpoint.weights_sha256,
            "files_sha256": dict(self._checkpoint.sha256),
            "prefill": self._prefill(),
            "throughput": {"batch_tokens": self._limits.batch_tokens, "rows": self._limits.rows},
            "rope": inspect_rope(network.model).as_json(),
            "rope_selftest": self._tested(),
        }

    @contextmanager
    def under(self, arm: ArmLike) -> Iterator[dict[str, Json]]:
        """The arm as applied; `UnsupportedArm` names the field that cannot be computed.

        Kernels: the one the model was loaded with, `fused`, or `auto` (fused for the levels that need it
        only).
        """
        stock = self._network.kernel
        kernels: dict[str, Kernel | None] = {"auto": None, "fused": "fused", stock: "stock"}
        _only(arm, "positions", arm.positions, ["contiguous"])
        _only(arm, "attention", arm.attention, ["full"])
        _only(arm, "dtype", arm.dtype, ["auto", self._network.dtype])
        _only(arm, "kernel", arm.kernel, kernels)
        self._require_inert(arm)
        with applied(self._network.model, arm.rope, kernels[arm.kernel]) as state:
            self._applied = state
            try:
                yield {
                    "rope": state.as_json(),
                    "positions": "contiguous",
                    "attention": "full",
                    "dtype": self._network.dtype,
                    "kernel": "fused" if state.attention == FUSED else state.attention,
                }
            finally:
                self._applied = None

    def answer(self, requests: Sequence[Request]) -> Iterator[Output]:
        """One output per request, batch by batch, shortest prompts first."""
        if self._closed:
            raise ModelError("the backend is closed")
        for request in requests:
            self._check(request)
        answering = Answering(self._network, self._tokenizer, self._eos, self._limits, self._recount)
        yield from answering.outputs(requests)

    def close(self) -> None:
        """Releases the model."""
        self._closed = True
        del self._network.model
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _tested(self) -> dict[str, Json]:
        """The self-test of the rotary patch, run once."""
        if self._selftest is None:
            self._selftest = selftest(self._network.model)
        return self._selftest

    def _require_inert(self, arm: ArmLike) -> None:
        """Refuses all but `native` where the patch does not give the stock logits bit for bit."""
        if arm.rope.native:
            return
        failed = [name for name, same in self._tested().items() if same is False and name != "ok"]
        if failed:
            raise UnsupportedArm(f"arm {arm.name!r}: rope is refused, the model fails {', '.join(failed)}")

    def _recount(self) -> None:
        """Forgets the counts of a broken pass, which would look like rotations not served."""
        if self._applied is not None:
            self._applied.tables.clear()
            self._applied.rotations.clear()

    def _prefill(self) -> Json:
        return "whole prompts" if self._network.whole_prompts else {"chunk_tokens": self._limits.chunk_tokens}

    def _check(self, request: Request) -> None:
        if not request.token_ids:
            raise ModelError(f"{request.sample_id}: an empty prompt cannot be continued")
        highest = max(max(request.token_ids), max(request.reference_ids, default=0))
        if highest >= self._network.vocabulary:
            text = f"token {highest} is not among the model's {self._network.vocabulary}: another tokenizer?"
            raise ModelError(f"{request.sample_id}: {text}")


def _only(arm: ArmLike, field: str, asked: str, known: Collection[str]) -> None:
    if asked not in known:
        raise UnsupportedArm(f"arm {arm.name!r}: hf cannot compute {field} {asked!r}, only {' or '.join(known)}")


def _versions() -> dict[str, str]:
    return {"torch": torch.__version__, "transformers": transformers.__version__}


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
