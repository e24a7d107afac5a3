"""The recipe of anchor-tiny: `python -m anchoreval.training.tiny.train --output DIR`, seeded and resumable.

A Llama of 4 layers x 256 learns to retrieve: first to copy, then to recall, then RULER's tasks at growing lengths.
At every second step positions start at a random offset, so that rotations beyond the training length are seen.
The loop, its checkpoints and its log are those of `train`; the store is not used, since the loss has a weight for each
token and a step's text has the length and the mixture of its stage.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import random
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.modeling_outputs import CausalLMOutput

from anchoreval.files import write_whole
from anchoreval.training.checkpoints import ASKED
from anchoreval.training.loss import with_forward
from anchoreval.training.recipes import Hyper
from anchoreval.training.store import shape_of
from anchoreval.training.tiny import examples as tiny_data
from anchoreval.training.tiny import tokenizer as tiny_tokenizer
from anchoreval.training.trainer import Log, Tell, arguments_of, fit, quiet, require_own, resumed, step_of
from anchoreval.training.variants import NO_TARGET, Row

SEED = 20241120
MAKERS: dict[str, tiny_data.Maker] = {
    "copy": tiny_data.copy_example,
    "recall": tiny_data.recall_example,
    "needles": tiny_data.needles_example,
    "ruler": tiny_data.ruler_example,
}
HYPER = Hyper(lr=1e-3, weight_decay=0.01, beta1=0.9, beta2=0.95, clip=1.0)
WARM_UP_STEPS = 30
MAX_POSITION = 8192
COPY_GAIN, LOOK_BACK_GAIN, MATCH_GAIN = 0.5, 0.1, 1.8
EMBEDDING_STD, CONSTANT, LOOK_BACK_AMPLITUDE, FAST_ROTATIONS = 0.08, 1.0, 6.3, 6


@dataclass(frozen=True, slots=True)
class Stage:
    """Steps of one length and mixture; the factor of the learning rate goes from `rate` to `rate_end` linearly.

    `tokens` is the number of tokens of a step, `first` the weight of the tokens that decide an answer.
    """

    name: str
    steps: int
    length: int
    mixture: dict[str, float]
    rate: float = 1.0
    rate_end: float = 1.0
    tokens: int = 4608
    first: float = 1.0


STAGES = (
    Stage("copy-96", 60, 96, {"copy": 1.0}),
    Stage("recall-192", 200, 192, {"copy": 0.2, "recall": 0.8}),
    Stage("recall-384", 120, 384, {"copy": 0.1, "recall": 0.9}),
    Stage("ruler-512", 400, 512, {"recall": 0.15, "needles": 0.45, "ruler": 0.4}, tokens=6144),
    Stage("ruler-1024", 60, 1024, {"recall": 0.05, "needles": 0.4, "ruler": 0.55}, tokens=8192),
    Stage("match-256", 380, 256, {"recall": 0.6, "needles": 0.4}, first=6.0),
    Stage("match-512", 300, 512, {"recall": 0.2, "needles": 0.5, "ruler": 0.3}, first=6.0),
    Stage("long-1024", 400, 1024, {"needles": 0.4, "ruler": 0.6}, 1.0, 0.6, tokens=8192, first=4.0),
    Stage("long-2048", 400, 2048, {"needles": 0.4, "ruler": 0.6}, 0.6, 0.02, tokens=8192, first=4.0),
)


@torch.no_grad()
def look_back(model: LlamaForCausalLM) -> None:
    """Start head h of the first layer as one that looks h + 1 tokens back; copying then forms in minutes, not hours.

    One embedding dimension is the same for all tokens. Queries and keys read only that dimension, into the six fastest
    rotations, the query turned h + 1 positions ahead: their product peaks at that distance. Everything stays trainable.
    """
    config, attention = model.config, model.model.layers[0].self_attn
    size = config.hidden_size // config.num_attention_heads
    frequencies_F = model.model.rotary_emb.inv_freq[:FAST_ROTATIONS]
    torch.nn.init.normal_(model.model.embed_tokens.weight, std=EMBEDDING_STD)
    model.model.embed_tokens.weight[:, 0] = CONSTANT
    norm = CONSTANT**2 + config.hidden_size * EMBEDDING_STD**2
    entry = LOOK_BACK_AMPLITUDE / (CONSTANT / math.sqrt(norm / config.hidden_size))
    for head in range(config.num_attention_heads):
        rows = slice(head * size, (head + 1) * size)
        attention.q_proj.weight[rows], attention.k_proj.weight[rows] = 0.0, 0.0
        angles_F = -(head + 1) * frequencies_F
        for turn, projection in ((angles_F, attention.q_proj), (0 * angles_F, attention.k_proj)):
            first = head * size
            projection.weight[first : first + FAST_ROTATIONS, 0] = entry * torch.cos(turn)
            second = first + size // 2
            projection.weight[second : second + FAST_ROTATIONS, 0] = entry * torch.sin(turn)


@torch.no_grad()
def copy_ready(model: LlamaForCausalLM) -> None:
    """Start the later layers' values orthogonal and their outputs as the transpose, so that they copy attended tokens.

    The first layer writes what it looked back at into one quarter of the width per distance, and the first head of the
    second layer compares the current token with what stood before every earlier one: an induction head to refine.
    """
    layers = [layer.self_attn for layer in model.model.layers]
    for attention in layers[1:]:
        torch.nn.init.orthogonal_(attention.v_proj.weight)
        attention.o_proj.weight.copy_(COPY_GAIN * attention.v_proj.weight.T)
    width = model.config.hidden_size
    size = width // model.config.num_attention_heads
    code_HD, places_DD = torch.empty(size, width), torch.empty(width, width)
    torch.nn.init.orthogonal_(code_HD)
    torch.nn.init.orthogonal_(places_DD)
    code_HD[:, 0] = 0.0
    places_DD[:, 0] = 0.0
    layers[0].v_proj.weight.copy_(code_HD.repeat(width // size, 1))
    layers[0].o_proj.weight.copy_(LOOK_BACK_GAIN * places_DD.T)
    layers[1].q_proj.weight[:size] = MATCH_GAIN * code_HD
    layers[1].k_proj.weight[:size] = MATCH_GAIN * places_DD[:size]


def new_model(vocabulary: int) -> LlamaForCausalLM:
    """Return a Llama with initial weights from the seed."""
    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=MAX_POSITION,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    model = LlamaForCausalLM(config)
    look_back(model)
    copy_ready(model)
    return model


def rate_at(step: int) -> tuple[Stage, float]:
    """Return the stage and the factor of the learning rate of a step counted from 0 over all stages."""
    first = 0
    for stage in STAGES:
        if step < first + stage.steps:
            share = (step - first) / stage.steps
            factor = stage.rate + (stage.rate_end - stage.rate) * share
            return stage, factor * min(1.0, (step + 1) / WARM_UP_STEPS)
        first += stage.steps
    raise IndexError(step)


def loss_of(model: LlamaForCausalLM, ids_BL: Tensor, weights_BL: Tensor, position_ids: Tensor) -> Tensor:
    """Return the weighted cross-entropy in nats; products are bf16 where the processor has them, else float32."""
    weights_N = weights_BL[:, 1:].flatten()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=has_bf16_products()):
        hidden_BLD = model.model(input_ids=ids_BL, position_ids=position_ids, use_cache=False).last_hidden_state
        rows_N = weights_N.nonzero()[:, 0]
        logits_NV = model.lm_head(hidden_BLD[:, :-1].flatten(0, 1)[rows_N]).float()
    targets_N, weights_N = ids_BL[:, 1:].flatten()[rows_N], weights_N[rows_N]
    losses_N = torch.nn.functional.cross_entropy(logits_NV, targets_N, reduction="none")
    return (losses_N * weights_N).sum() / weights_N.sum()


def has_bf16_products() -> bool:
    """Whether bf16 products are faster than float32 on this processor; without them they are several times slower."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


class Batches(torch.utils.data.Dataset[dict[str, Tensor]]):
    """The batch of each step as one item, drawn from the seed and the step only."""

    def __init__(self, tokenizer: Tokenizer, steps: int) -> None:
        self.tokenizer, self.steps = tokenizer, steps
        self.drawn = functools.lru_cache(maxsize=4)(self._drawn)  # asked for by Trainer, which is ahead, and by the log

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        return self.drawn(step)

    def _drawn(self, step: int) -> dict[str, Tensor]:
        stage, _ = rate_at(step)
        ids, weights = tiny_data.batch(
            f"{SEED}-{step}", self.tokenizer, stage.length, stage.tokens, MAKERS, stage.mixture, stage.first
        )
        offset = random.Random(step).randrange(MAX_POSITION - stage.length) if step % 2 else 0
        positions_BL = torch.arange(stage.length)[None] + offset
        return {"ids_BL": torch.tensor(ids), "weights_BL": torch.tensor(weights), "position_ids": positions_BL}

    def step(self, number: int) -> list[Row]:
        """Return the examples of a step, counted from 1, as the log counts them."""
        batch = self.drawn(number - 1)
        positions = batch["position_ids"][0].numpy()
        return [
            Row(ids, positions, np.where(weights > 0, ids, NO_TARGET), (len(ids),))
            for ids, weights in zip(batch["ids_BL"].numpy(), batch["weights_BL"].numpy(), strict=True)
        ]


def weighted_forward(self: Any, **batch: Tensor) -> Any:
    """Return the loss of a batch as Trainer takes it."""
    return CausalLMOutput(loss=loss_of(self, **batch))


def export(model: LlamaForCausalLM, tokenizer: Tokenizer, folder: Path) -> None:
    """Write the checkpoint in Hugging Face format, weights in bfloat16."""
    bf16 = LlamaForCausalLM(model.config)
    bf16.load_state_dict(model.state_dict())
    bf16.to(dtype=torch.bfloat16).save_pretrained(str(folder), safe_serialization=True)
    tiny_tokenizer.save(tokenizer, folder)


def train(folder: Path, until: int, every: int, tell: Tell = lambda _: None) -> None:
    """Train from the last whole checkpoint in `folder` to step `until`; exports to `folder`/model."""
    facts = {"recipe": "anchor-tiny", "seed": SEED, "stages": [asdict(stage) for stage in STAGES]}
    tokenizer, base = tiny_tokenizer.build(), folder / "tokenizer"
    arguments = arguments_of(folder, until, HYPER, SEED, every, keep=2, use_cpu=True, report_to="none")
    require_own(folder, facts)
    write_whole(folder / ASKED, [json.dumps(facts, indent=1, sort_keys=True) + "\n"])
    tiny_tokenizer.save(tokenizer, base)
    model = new_model(tokenizer.get_vocab_size()).train()
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=HYPER.lr,
        betas=(HYPER.beta1, HYPER.beta2),
        weight_decay=HYPER.weight_decay,
        fused=True,
    )
    last = sum(stage.steps for stage in STAGES) - 1
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_at(min(step, last))[1])
    log = Log(
        folder, Batches(tokenizer, until), shape_of(model.config.to_dict()), True, tell, base, facts | {"steps": until}
    )
    checkpoint = resumed(folder, until, tell)
    if checkpoint is None or step_of(checkpoint) < until:
        with quiet(), with_forward(model, weighted_forward):
            fit(model, arguments, log.windows, lambda rows: rows[0], log, checkpoint, (optimizer, schedule))
    else:
        model = LlamaForCausalLM.from_pretrained(checkpoint)
    export(model, tokenizer, folder / "model")


def main() -> None:
    """Run the command line."""
    total = sum(stage.steps for stage in STAGES)
    parser = argparse.ArgumentParser(description="Train anchor-tiny.")
    parser.add_argument("--output", type=Path, required=True, help="folder for the log, the checkpoints and the model")
    parser.add_argument("--until", type=int, default=total, help=f"last step, of {total}")
    parser.add_argument("--every", type=int, default=100, help="steps between checkpoints")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    train(options.output, options.until, options.every, lambda text: print(text, file=sys.stderr))  # noqa: T201


if __name__ == "__main__":
    main()
