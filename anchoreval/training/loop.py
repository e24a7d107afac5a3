"""A training: `transformers.Trainer`, unsubclassed, over windows of a store, under a variant and a RoPE level.

What is ours stands around it: the windows, the attention, the level, the loss, which checkpoint is resumed, the log,
the card. One window per process and pass; a step is `batch_tokens`, over any number of processes and accumulated
passes. On CUDA it is FSDP2, for one GPU too, so that the residual stream is the same arm at any number of them;
elsewhere DDP.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from anchoreval.arms.inspect_hf import inspect_rope
from anchoreval.errors import AnchorEvalError, UnsupportedArm
from anchoreval.files import write_whole
from anchoreval.model.checkpoint import find_checkpoint
from anchoreval.tokenizer import load_tokenizer
from anchoreval.training.attention import batch_of, documents, level_of, refuse_model, require_boundaries
from anchoreval.training.checkpoints import ASKED, checkpoints, config_of, folder_of_model, rope_for, set_up_model
from anchoreval.training.loss import chunked_loss, require_stock_loss
from anchoreval.training.packing import order_of, windows_needed, windows_of
from anchoreval.training.recipes import Training
from anchoreval.training.store import Store, open_store, packed, require_same_tokenizer, shape_of
from anchoreval.training.trainer import (
    Log,
    Tell,
    arguments_of,
    fit,
    quiet,
    require_own,
    require_reports,
    resumed,
    step_of,
)
from anchoreval.training.variants import Row, lay, starts_of, variant_of

#: What accelerate takes sequences apart by.
_SEQUENCE = ("PARALLELISM_CONFIG_CP_SIZE", "PARALLELISM_CONFIG_SP_SIZE")


@dataclass(frozen=True, slots=True)
class How:
    """What does not decide the weights: where they are written, how often, what is told."""

    output: Path
    save_every: int = 100
    keep: int = 5
    report_to: tuple[str, ...] = ()
    deterministic: bool = False


class TrainingWindows(torch.utils.data.Dataset[Row]):
    """The windows of a training in the order in which its steps take them; each is made when it is asked for."""

    def __init__(self, store: Store, training: Training) -> None:
        kind = variant_of(training.variant)
        fronts: Any = starts_of(kind, training.document_start)
        if kind.tagged:
            fronts = fronts + np.array([tag.size for tag in store.tags])[store.rows["source"]]
        per_step = training.windows_per_step
        needed = windows_needed(training.steps, per_step)
        self.windows = windows_of(store.lengths, fronts, training.length, training.seed, needed, None)
        self.order = order_of(self.windows.costs(1), per_step, training.seed)[: training.steps * per_step]
        self.store, self.kind, self.training, self.per_step = store, kind, training, per_step

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, at: int) -> Row:
        window = int(self.order[at])
        pieces = [self.store.piece(*piece) for piece in self.windows.pieces(window)]
        seed = (self.training.seed, window)
        return lay(pieces, self.kind, self.store.anchor, self.training.document_start, seed)

    def step(self, number: int) -> list[Row]:
        """Return the windows of a step, counted from 1."""
        return [self[at] for at in range((number - 1) * self.per_step, number * self.per_step)]


def train(model: str, data: Path, training: Training, how: How, tell: Tell = lambda _: None) -> Path:
    """Train, or go on where an earlier process was; return the folder, which is a model by then.

    Raise AnchorEvalError for what cannot be trained, RunError for a folder of another training and for a write that
    fails: the last whole checkpoint stays.
    """
    level = level_of(training.rope)
    store, base = open_store(data), folder_of_model(model)
    require_same_tokenizer(store, load_tokenizer(base))
    windows = TrainingWindows(store, training)
    folder = how.output / training.name
    facts = training.identity() | {
        "data_sha256": store.facts["sha256"], "base_sha256": find_checkpoint(str(base)).weights_sha256,
        "anchor": store.anchor,
    }  # fmt: skip
    arguments = _arguments(training, how, folder)
    main = arguments.process_index == 0
    require_own(folder, facts)
    checkpoint = resumed(folder, training.steps, tell if main else lambda _: None)
    if checkpoint is not None and step_of(checkpoint) >= training.steps:
        tell(f"{training.name}: all {training.steps} steps are done")
        if main:
            set_up_model(folder, checkpoint)
        return folder
    with quiet():  # in float32, with the RoPE and the length that it is trained for in its configuration
        from transformers import AutoConfig, AutoModelForCausalLM

        config = AutoConfig.from_pretrained(base)
        text = config.get_text_config()
        text.rope_parameters = rope_for(config, training.length, training.theta, training.rope_type)
        text.max_position_embeddings = max(training.length, int(text.max_position_embeddings))
        loading = {"config": config, "dtype": torch.float32, "attn_implementation": "sdpa"}
        loaded = AutoModelForCausalLM.from_pretrained(base, **loading).train()
    detected = inspect_rope(loaded).detected
    refuse_model(loaded, level)
    require_stock_loss(loaded)
    require_boundaries(loaded, training.variant, training.rope)
    world = arguments.world_size
    policy = "float32" if world == 1 else f"float32, DDP over {world} processes"
    if arguments.fsdp:
        policy = "FSDP2: float32 weights, bf16 products, float32 reduction"
    card = facts | {
        "model": model, "recipe": training.recipe, "steps": training.steps, "policy": policy,
        "rope_detected": detected, "rope_parameters": dict(loaded.config.get_text_config().rope_parameters),
        "versions": {name: metadata.version(name) for name in ("anchoreval", "torch", "transformers")},
    }  # fmt: skip
    shape = shape_of(config_of(base))
    if main:
        write_whole(folder / ASKED, [json.dumps(facts, indent=1, sort_keys=True) + "\n"])
        tell(str(packed(store, training.length, shape)))
    log = Log(folder, windows, shape, main, tell, base, card)
    kind = variant_of(training.variant)
    with quiet(), chunked_loss(loaded), documents(loaded, training.variant, training.rope) as log.under:
        fit(loaded, arguments, windows, lambda rows: batch_of(rows, kind), log, checkpoint)
    newest = next(path for _, path in checkpoints(folder))
    if main:
        set_up_model(folder, newest)
    return folder


def _arguments(training: Training, how: How, folder: Path) -> Any:
    """Return Trainer's arguments for the device and processes that are here."""
    require_reports(how.report_to)
    cuda, hyper = torch.cuda.is_available(), training.hyper
    if cuda and "RANK" not in os.environ:  # FSDP2 over one process: the same residual stream as on eight
        os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
        os.environ.setdefault("MASTER_PORT", "29511")
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if training.windows_per_step % world:
        text = f"{training.windows_per_step} windows of {training.length} tokens in a step of {training.batch_tokens}"
        raise AnchorEvalError(f"--batch-tokens: {text} are not shared evenly by {world} processes")
    if how.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS is refused there
        torch.use_deterministic_algorithms(True)
    if shared := [name for name in _SEQUENCE if int(os.environ.get(name, "1")) > 1]:
        text = "context and sequence parallelism drop the masks of documents"
        raise UnsupportedArm(f"{shared[0]}: {text}: one window is one process here, unset it")
    wrapped = {"version": 2, "state_dict_type": "FULL_STATE_DICT", "auto_wrap_policy": "TRANSFORMER_BASED_WRAP"}
    return arguments_of(
        folder,
        training.steps,
        hyper,
        training.seed,
        how.save_every,
        how.keep,
        gradient_accumulation_steps=training.windows_per_step // world,
        bf16=cuda,
        use_cpu=not cuda,
        ddp_backend="gloo" if world > 1 and not cuda else None,
        ddp_find_unused_parameters=False,
        gradient_checkpointing=cuda,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        report_to=list(how.report_to) or "none",
        fsdp=cuda or None,
        fsdp_config=wrapped if cuda else None,
    )
