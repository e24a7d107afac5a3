"""The Hugging Face backend: stock transformers models, answered in batches under an arm."""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_args

import torch
import transformers

from anchoreval.arms.arm import FIELDS, Arm
from anchoreval.arms.configuration import positions_of
from anchoreval.arms.inspect_hf import selftest
from anchoreval.arms.kernels import FUSED, switchable
from anchoreval.arms.layout import GENERATED, Arrangement, Place, Realisation
from anchoreval.arms.patch_hf import Applied, Kernel, applied, model_dtype, only_sinks_and_window, rotary_modules
from anchoreval.arms.patterns import NUMBERED, PATTERNS, WINDOW_RULE, Block, is_pattern, rule_of
from anchoreval.arms.precision import wider
from anchoreval.backends.answering import require_answerable
from anchoreval.backends.hf.answer import REFERENCE_TOKENS, Answering
from anchoreval.backends.hf.batches import Limits
from anchoreval.backends.hf.cache import KeptDocuments, KvStore
from anchoreval.backends.hf.load import DEFAULT, StockNetwork, eos_ids, load
from anchoreval.backends.hf.probe import Proofs, settle
from anchoreval.errors import ModelError, UnsupportedArm
from anchoreval.model.checkpoint import Checkpoint, find_checkpoint
from anchoreval.model.machine import processor
from anchoreval.prompt import positions
from anchoreval.schema import Json, Output, Request, lost_output
from anchoreval.tokenizer import load_tokenizer

_MASKED_BY_INDEX = {"sdpa", "eager", FUSED}  # kernels that never infer packed sequences from position ids
_VERSIONS = {"torch": torch.__version__, "transformers": transformers.__version__}
_NOTHING: Mapping[str, Json] = MappingProxyType({})
_FLEX = "one pass of FlexAttention with a block mask, compiled on CUDA, unfused on a CPU; then the kernel"
_REALISED = {
    ("rows", "anchor"): "each document a causal row [anchor; document], their keys and values joined, the query on top",
    ("rows", "intra-doc"): "each document a causal row of its own, their keys and values joined, the query on top",
    ("flex", "anchor"): _FLEX,
    ("flex", "intra-doc"): _FLEX,
    ("rows", "star"): "each block a causal row [first block; block], their keys and values joined, the query on top",
    ("rows", "sink-window"): "one row under a mask that leaves out the keys between",
}


class HfBackend:
    """A causal language model of transformers; see `Backend`."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        network: StockNetwork,
        limits: Limits,
        realisation: Realisation = "rows",
        asked: str = DEFAULT,
        product: str | None = None,
    ) -> None:
        self._checkpoint, self._network, self._limits = checkpoint, network, limits
        self._asked_kernel = asked
        if product is not None:  # `auto` is one kernel for all arms, whose widest product this is
            self._auto_fused = wider(product, model_dtype(network.model))
        else:
            self._auto_fused = network.kernel_why is not None and switchable(network.model)
        auto = asked == "auto" and self._auto_fused
        self._kernel = "fused" if auto or asked == "fused" else network.kernel
        self._prefill: Json = {"chunk_tokens": limits.chunk_tokens}
        if limits.pass_tokens is not None or network.whole_prompts:
            self._prefill = "few passes" if limits.pass_tokens is not None else "whole prompts"
        self._proofs = Proofs(network, lambda: selftest(network.model))
        self._realisation: Realisation = realisation
        self._flexes: set[str] = set()  # kernels under which FlexAttention was tested
        self._tokenizer = load_tokenizer(checkpoint.folder)
        self._eos = eos_ids(network.model, self._tokenizer)
        self._applied: Applied | None = None
        self._arrangement = Arrangement()
        self._now = limits  # the limits of the arm in force
        self._joint = True  # unless code from outside may read the masks and keys of the arm in force
        self._kept = self.documents = KeptDocuments(limits.batch_tokens)
        self._positions: int | None = None  # rows of a position table, if the model has one; probe.py finds it
        self._closed = False

    @classmethod
    def open(
        cls,
        model: str,
        *,
        dtype: str = "auto",
        device: str = "auto",
        kernel: str = DEFAULT,
        trust_remote_code: bool = False,
        use_kernels: bool = False,
        chunk_tokens: int | None = None,
        batch_tokens: int = 32_768,
        rows: int = 32,
        realisation: str = "rows",
        product: str | None = None,
        unused_weights: str = "refuse",
    ) -> HfBackend:
        """Return the backend with the model of a folder or hub id, loaded and tested on two short rows (probe.py).

        `kernel` is one of transformers'; `default` (sdpa, or eager if sdpa does not exist or drops part of the model's
        attention); `fused` (this package's own); or `auto`: one kernel for all arms that are compared, `fused` if one
        of them needs it, else the default. `product` is the widest product of those arms, None if they are not known;
        then `auto` is decided arm by arm, but is always `fused` if sdpa does not suffice. `unused_weights` says what
        happens to weights that the architecture has no place for: `refuse` or `allow`.

        Prompts come in as few passes as the activations of one allow, which is the stock forward for one that shares
        nothing; how long a pass may be follows from the model's shape and is no part of the identity. With
        `chunk_tokens`, which is, they come in chunks on a grid, and so they do, of 512 tokens, for models with windows
        or another kernel than sdpa: their bits are then the same whatever they share. `batch_tokens` (rows x columns of
        the cache) and `rows` only change speed and memory. `realisation` says how isolated documents are computed,
        `rows` or `flex`; it changes rounding too. `use_kernels` is refused: it swaps the rotation for an unknown one.
        """
        if use_kernels:
            raise ModelError("use_kernels=True replaces the rotary code that is measured: leave it off")
        if min(1 if chunk_tokens is None else chunk_tokens, batch_tokens, rows) < 1:
            raise ModelError("chunk_tokens, batch_tokens and rows must be at least 1")
        if realisation not in get_args(Realisation):
            raise ModelError(f"unknown realisation {realisation!r}: one of {', '.join(get_args(Realisation))}")
        checkpoint = find_checkpoint(model, code=trust_remote_code, adapters=True)
        stock = DEFAULT if kernel in ("auto", "fused") else kernel
        network = load(checkpoint, dtype, device, stock, trust_remote_code, unused_weights)
        chosen: Realisation = "flex" if realisation == "flex" else "rows"
        limits = Limits(chunk_tokens or 512, batch_tokens, rows, None if chunk_tokens else network.pass_tokens)
        network.few_passes = limits.pass_tokens is not None
        backend = cls(checkpoint, network, limits, chosen, kernel, product)
        backend._positions = settle(network, backend._tokenizer)
        return backend

    @property
    def limits(self) -> Limits:
        """How much is computed at once, under the arm in force."""
        return self._now

    @property
    def model(self) -> Any:
        """The transformers model, for the self-test of the rotary sites and for probes."""
        return self._network.model

    @property
    def folder(self) -> Path:
        """The folder of the checkpoint and its tokenizer."""
        return self._checkpoint.folder

    @property
    def fingerprint(self) -> str:
        """SHA-256 over weights, end tokens, engine and every setting that changes what is computed."""
        identity = {
            "weights": self._checkpoint.weights_sha256,
            "eos": sorted(self._eos),
            "engine": "hf",
            "dtype": self._network.dtype,
            "prefill": self._prefill,
            "reference_tokens": REFERENCE_TOKENS,
        } | ({} if self._realisation == "rows" else {"realisation": self._realisation})
        if self._network.alone and not self._network.whole_prompts:
            identity["rows"] = "alone"
        if self._asked_kernel in (DEFAULT, "auto") and self._kernel != "sdpa":
            identity["kernel"] = self._kernel
        if self._network.unused.refused:
            identity["unused_weights"] = self._network.unused.refused
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()

    def describe(self) -> dict[str, Json]:
        """Return what the run's header says of the engine and the model."""
        network, device, sizes = self._network, self._network.device, asdict(self._limits)
        alone = network.alone and not network.whole_prompts
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
        # what changes the last bits of an answer but is not a setting
        environment: dict[str, Json] = {"versions": _VERSIONS, "device": device.type}
        if device.type == "cpu":
            environment |= {"processor": processor(), "instructions": torch.backends.cpu.get_cpu_capability()}
            environment["threads"] = torch.get_num_threads()
        else:
            environment |= {"versions": _VERSIONS | {"cuda": torch.version.cuda}, "device_name": name}
        return {
            "engine": "hf",
            "versions": _VERSIONS,
            "environment": environment,
            "device": str(device),
            "device_name": name,
            "dtype": network.dtype,
            "kernel": self._kernel,
            "kernel_why": None if self._kernel == "fused" else network.kernel_why,
            "unused_weights": network.unused.as_json(),
            "model_type": network.model.config.model_type,
            "parameters": sum(p.numel() for p in network.model.parameters()),
            "max_length": positions_of(network.model.config),
            "eos_token_ids": sorted(self._eos),
            "weights_sha256": self._checkpoint.weights_sha256,
            "files_sha256": dict(self._checkpoint.sha256),
            "adapter": self._checkpoint.adapter,
            "prefill": self._prefill,
            "realisation": self._realisation,
            "throughput": {name: size for name, size in sizes.items() if size and name != "chunk_tokens"},
            **({"rows": "alone: beside padding this model's answers are others"} if alone else {}),
            "rope": self._proofs.inspected(),
            "rope_selftest": self._proofs.tested(),
        }

    @contextmanager
    def under(self, arm: Arm, place: Place | None = None) -> Iterator[dict[str, Json]]:
        """Apply the arm inside the block and yield it as applied; raise UnsupportedArm with the field.

        Kernels: the one that the model was loaded with, also called `default`, `fused`, or `auto` (see `open`). The
        first time that an arm is applied, one token runs under it: `at_kernel` says in which dtype and bits q and k
        enter the attention kernels. An arm that does not run, or whose q and k do not get there as the level says, is
        refused here. `place` gives explicit position ids per request instead of the arm's scheme. Factories from
        outside act inside the arm's RoPE and kernel, and are refused unless the stock bits come back after them. Inside
        the block `documents` holds the keys and values of isolated documents for later prompts, including those of
        earlier blocks of the same arm.
        """
        auto: Kernel | None = "fused" if self._auto_fused else None
        kernels: dict[str, Kernel | None] = {"auto": auto, "fused": "fused", DEFAULT: "stock"}
        kernels[self._network.kernel] = "stock"
        arrangement = replace(arm.arrangement, place=place, realisation=self._realisation)
        self._require(arm, arrangement, kernels)
        if arm.outside:
            self._proofs.restored(arm, lambda: self._on_model(arm, kernels[arm.kernel]))
        with self._on_model(arm, kernels[arm.kernel]) as (state, more):
            if state.attention not in _MASKED_BY_INDEX and not arrangement.stock:
                text = f"kernel {state.attention!r} may take these positions for packed sequences: use sdpa"
                raise UnsupportedArm(f"arm {arm.name!r}: {text}")
            if self._realisation == "flex" and arm.masks_documents:
                self._require_flex(arm, state)
            at_kernel = self._proofs.at_kernel(arm, state)
            limits = self._limits.placebo() if arm.placebo else self._limits
            explicit, pattern = place is not None, arrangement.pattern
            header: dict[str, Json] = {
                "rope": state.as_json() | {"at_kernel": at_kernel},
                "positions": "explicit" if explicit else str(arrangement.scheme),
                "positions_rule": f"given per prompt; {GENERATED}" if explicit else arrangement.scheme.rule,
                "attention": pattern,
                "attention_rule": rule_of(pattern),
                "realisation": _REALISED.get((self._realisation, pattern.partition(":")[0]), "one causal row"),
                "dtype": self._network.dtype,
                "kernel": "fused" if state.attention == FUSED else state.attention,
            }
            if pattern != "full" and "sliding_attention" in self._network.kinds:
                header["window_rule"] = WINDOW_RULE
            header |= more
            if arm.placebo:
                header["computed_in"] = {name: size for name, size in asdict(limits).items() if size}

            self._applied, self._arrangement, self._now, self._joint = state, arrangement, limits, not arm.outside
            self.documents = self._kept.of(_bits_of(state, arrangement, limits, more))
            try:
                yield header
            finally:
                self._applied, self._arrangement, self._now, self._joint = None, Arrangement(), self._limits, True
                self.documents = self._kept

    @contextmanager
    def _on_model(self, arm: Arm, kernel: Kernel | None) -> Iterator[tuple[Applied, dict[str, Json]]]:
        """Apply everything of an arm that acts on the model; yield RoPE and kernel as applied, and the other fields."""
        model = self._network.model
        with ExitStack() as stack:
            state = stack.enter_context(applied(model, arm.rope, kernel))
            stack.enter_context(only_sinks_and_window(model, arm.attention))
            more = {}
            for field in FIELDS:
                if field.install and (value := getattr(arm, field.name)) != field.default:
                    module, _, name = field.install.partition(":")
                    put_on = getattr(importlib.import_module(module), name)
                    more[field.name] = stack.enter_context(put_on(model, value))
            yield state, more

    def answer(self, requests: Sequence[Request]) -> Iterator[Output]:
        """Yield one output per request, batch by batch, in an order that shares prefixes."""
        if self._closed:
            raise ModelError("the backend is closed")
        for request in requests:
            require_answerable(request, self._arrangement, self._network.vocabulary)
        answering = Answering(
            self._network,
            self._tokenizer,
            self._eos,
            self._now,
            self._recount,
            self._arrangement,
            self.documents,
            self._joint,
        )
        fitting = []
        for request in requests:
            if self._positions is not None:
                # the last token of an answer or of a text is never fed back
                needed = self._arrangement.of(request).after
                needed += -1 if request.scores_text else max(0, positions(request) - len(request.token_ids))
                if needed > self._positions:
                    why = f"{needed} positions are needed, the model has {self._positions}"
                    yield lost_output(request.sample_id, "does_not_fit", why)
                    continue
            fitting.append(request)
        yield from answering.outputs(fitting)

    def close(self) -> None:
        """Release the model and the documents kept."""
        self._closed = True
        self._kept.clear()
        del self._network.model
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _require(self, arm: Arm, arrangement: Arrangement, kernels: Mapping[str, Kernel | None]) -> None:
        """Raise UnsupportedArm, with the field, for what can be refused before the model is touched."""
        network, refused = self._network, f"arm {arm.name!r}: hf cannot compute"
        arm.require("hf")
        if not is_pattern(arm.attention):
            arm.require_one_of((*PATTERNS, *NUMBERED), "attention", "hf")
        if self._realisation == "flex" and arm.attention not in PATTERNS:
            text = f"attention {arm.attention!r} with realisation 'flex', only {' or '.join(PATTERNS)}"
            raise UnsupportedArm(f"{refused} {text}")
        arm.require_one_of(["auto", network.dtype], "dtype", "hf")
        if arm.kernel == "sdpa" and network.kernel != "sdpa" and network.kernel_why:
            raise UnsupportedArm(f"{refused} kernel 'sdpa': {network.kernel_why}; leave out --kernel")
        arm.require_one_of(kernels, "kernel", "hf")

        # the model's own code would change the meaning of these positions, or of this pattern
        fields, why = [], None
        if arm.moves_positions or arrangement.place is not None:
            fields.append(f"positions {str(arm.positions)!r}" if arrangement.place is None else "positions 'explicit'")
        if arm.attention != "full":
            fields.append(f"attention {arm.attention!r}")
        if fields and not rotary_modules(network.model):
            why = "no rotary embedding was found in the model"
        elif fields and self._proofs.tested().get("rotations") == 0:
            why = "nothing is rotated in the model"
        elif fields and network.whole_prompts:
            why = "the model picks its rotary frequencies by the highest position of a pass"
        elif fields and (other := network.kinds - {"full_attention", "sliding_attention"}):
            why = f"the model has layers of {', '.join(sorted(other))}"
        if why is not None:
            raise UnsupportedArm(f"{refused} {' and '.join(fields)}: {why}")

        # the patch must give the stock logits bit for bit before any arm but `native` runs
        tested = {} if arm.rope.native else self._proofs.tested()
        if failed := [name for name, same in tested.items() if same is False and name != "ok"]:
            why = tested.get("why") or f"the model fails {', '.join(failed)}"
            raise UnsupportedArm(f"arm {arm.name!r}: rope is refused, {why}")
        if arm.placebo and network.whole_prompts:
            why = "this model's prompts are computed whole, one by one, so that nothing can be varied"
            raise UnsupportedArm(f"arm {arm.name!r}: no placebo: {why}")

    @torch.inference_mode()
    def _require_flex(self, arm: Arm, state: Applied) -> None:
        """Raise UnsupportedArm if FlexAttention cannot compute the arm here; test it on 3 tokens, once per kernel."""
        if state.attention in self._flexes:
            return
        at_13 = torch.arange(3, device=self._network.device)[None]
        blocks = (Block("anchor", 0, 1), Block("document", 1, 2), Block("document", 2, 3))
        cache = KvStore(self._network.layers, 1, 3).row(0, 0, 0)
        try:
            mask_13 = torch.ones_like(at_13, dtype=torch.bool)
            self._network.masked_logits(at_13, cache, (at_13, mask_13), (blocks, arm.attention))
        except Exception as error:  # torch has no one class for what a compiler refuses
            why = f"{type(error).__name__}: {error}".strip().splitlines()[0][:300]
            text = f"attention {arm.attention!r} with realisation 'flex': {why}"
            raise UnsupportedArm(f"arm {arm.name!r}: hf cannot compute {text}") from error
        for counts in (state.tables, state.rotations, state.passes):
            counts.clear()
        self._flexes.add(state.attention)

    def _recount(self) -> None:
        """Forget the counts of a broken pass, which would look like rotations that were not served."""
        if self._applied is not None:
            self._applied.tables.clear()
            self._applied.rotations.clear()


def _bits_of(state: Applied, arrangement: Arrangement, limits: Limits, more: Mapping[str, Json] = _NOTHING) -> str:
    """Return an arm as applied and computed. Two arms never share documents, even if these would be equal."""
    counts = {"forwards", "rotations", "layers_without_rope", "at_kernel"}
    rope = {name: value for name, value in state.as_json().items() if name not in counts}
    scheme = "explicit" if arrangement.place is not None else str(arrangement.scheme)
    parts = [rope, scheme, arrangement.pattern, arrangement.realisation, asdict(limits), *more.items()]
    return json.dumps(parts, sort_keys=True)
