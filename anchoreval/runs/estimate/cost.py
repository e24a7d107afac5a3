"""The cost of a pass through a decoder (operations, bytes read, memory), and the speed of machines.

Shapes: B rows, Q new tokens, C cache columns, k positions whose logits are asked for. Products and sums each count as
one operation. A pass over a whole prompt is causal and computes half of Q x C, one behind a cache uses a mask, of 512
queries at most, and computes all.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from anchoreval.arms.configuration import positions_of
from anchoreval.backends.hf.load import DTYPES, StockNetwork
from anchoreval.errors import AnchorEvalError, ModelError
from anchoreval.runs.estimate.dry import Counted, Pass


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a decoder. `body` is the number of entries of all matrices that a token is multiplied with."""

    parameters: int
    body: int
    layers: int
    hidden: int
    inner: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    itemsize: int
    dtype: str
    positions: int | None
    whole_prompts: bool
    pass_tokens: int | None = None

    @property
    def weight_bytes(self) -> int:
        """The size of all weights."""
        return self.parameters * self.itemsize

    @property
    def token_bytes(self) -> int:
        """The size of one token's keys and values in all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim * self.itemsize

    def operations(self, each: Pass) -> float:
        """Return the number of operations of one pass."""
        products = self.body * each.queries + self.vocabulary * self.hidden * each.keep
        seen = (each.columns + 1) / 2 if each.queries == each.columns else each.columns
        attention = 2 * self.layers * self.heads * self.head_dim * each.queries * seen
        return 2.0 * each.rows * (products + attention)

    def read_bytes(self, each: Pass) -> float:
        """Return the bytes of weights and cache that one pass reads."""
        return float(self.body * self.itemsize + each.rows * each.columns * self.token_bytes)

    def work_bytes(self, each: Pass) -> int:
        """Return the memory of one pass beyond weights and cache, in bytes.

        These are keys and values repeated for every head, the mask, activations and logits.
        """
        rows, queries, columns = each.rows, each.queries, each.columns
        repeated = 2 * rows * columns * self.heads * self.head_dim if self.heads > self.kv_heads else 0
        mask = rows * min(queries, 512) * columns
        attention = (2 * self.heads + 2 * self.kv_heads) * self.head_dim
        activations = rows * queries * (max(3 * self.inner, attention) + 3 * self.hidden)
        logits = rows * each.keep * self.vocabulary
        return (repeated + mask + activations + logits) * self.itemsize + mask + 8 * logits


def shape_of(folder: Path, dtype: str, device: str = "cpu") -> Shape:
    """Return the sizes that a checkpoint's config.json gives for a type of device, without reading weights.

    Raise ModelError if transformers knows no decoder for it.
    """
    try:
        config = AutoConfig.from_pretrained(folder)
        with torch.device("meta"):
            chosen = DTYPES.get(dtype) or getattr(config, "dtype", None) or torch.float32
            model = AutoModelForCausalLM.from_config(config, dtype=chosen)
    except Exception as error:  # transformers may raise anything over an unknown configuration
        raise ModelError(
            f"{folder}: no decoder that transformers knows: {' '.join(str(error).split())[:200]}"
        ) from error
    text: Any = config.get_text_config(decoder=True)
    parameters = sum(weight.numel() for weight in model.parameters())
    matrices = sum(weight.numel() for weight in model.parameters() if weight.ndim > 1)
    embedding = int(model.get_input_embeddings().weight.numel())
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    heads, network = text.num_attention_heads, StockNetwork(model, torch.device(device))
    return Shape(
        parameters=parameters,
        body=matrices - embedding * (1 if tied else 2),
        layers=network.layers,
        hidden=text.hidden_size,
        inner=getattr(text, "intermediate_size", None) or 4 * text.hidden_size,
        heads=heads,
        kv_heads=getattr(text, "num_key_value_heads", None) or heads,
        head_dim=getattr(text, "head_dim", None) or text.hidden_size // heads,
        vocabulary=text.vocab_size,
        itemsize=chosen.itemsize,
        dtype=str(chosen).removeprefix("torch."),
        positions=positions_of(config),
        whole_prompts=network.whole_prompts,
        pass_tokens=network.pass_tokens,
    )


def peak_bytes(shape: Shape, counted: Counted) -> int:
    """Return the bytes of weights, largest cache, documents kept beside it, and work of the largest pass."""
    work = max(map(shape.work_bytes, counted.passes), default=0)
    return shape.weight_bytes + (counted.columns + counted.kept_tokens) * shape.token_bytes + work


@dataclass(frozen=True, slots=True)
class Machine:
    """The machine of an estimate: `count` devices, each with so many operations and bytes read per second.

    `overhead` is the number of seconds that every pass takes in addition. `memory` is that of one device in bytes, and
    `libraries` the bytes in use before the model is loaded.
    """

    name: str
    count: int
    operations: float
    bandwidth: float
    memory: int | None = None
    overhead: float = 0.0
    libraries: int = 0
    says: str = ""

    def seconds(self, shape: Shape, passes: Mapping[Pass, float]) -> float:
        """Return the seconds that passes take, given how often each is made; devices share them equally.

        A pass takes the longer of its arithmetic and its reads from memory, plus the overhead.
        """
        total = 0.0
        for pass_, times in passes.items():
            bound = max(shape.operations(pass_) / self.operations, shape.read_bytes(pass_) / self.bandwidth)
            total += times * (self.overhead + bound)
        return total / self.count


#: Dense bf16 operations per second, bytes of memory per second, bytes of memory; from the makers' data sheets.
GPUS: dict[str, tuple[float, float, int]] = {
    "A100": (312e12, 2.0e12, 80 * 10**9),
    "H100": (989e12, 3.35e12, 80 * 10**9),
    "H200": (989e12, 4.8e12, 141 * 10**9),
    "L40S": (362e12, 0.864e12, 48 * 10**9),
}
SHARE = 0.4  # the share of the data sheet's figures that a pass is assumed to reach


def parse_gpus(text: str) -> Machine:
    """Return the machine of `8xH200` or `H100`; raise AnchorEvalError with the known GPUs for anything else."""
    match = re.fullmatch(r"(?:(\d+)x)?([A-Za-z0-9]+)", text.strip())
    name = match[2].upper() if match else ""
    count = int(match[1] or 1) if match else 0
    if name not in GPUS or count < 1:
        raise AnchorEvalError(f"--gpus {text}: a number and one of {', '.join(GPUS)}, such as 8xH200")
    operations, bandwidth, memory = GPUS[name]
    source = f"assumed: {SHARE:.0%} of the data sheet's operations and bandwidth; not measured"
    return Machine(name, count, SHARE * operations, SHARE * bandwidth, memory, says=source)
