"""What of training only a GPU can show, as one command: python examples/train_gpu.py --output DIR

    kernel   torch's kernel for documents against float64, beside one causal SDPA per document in the same bf16
    resume   FSDP2 over one GPU with --deterministic: killed behind a checkpoint and run again, the same bytes
    ranks    (two GPUs or more) the losses of two processes against one
    speed    tokens a second of full and anchor on anchor-tiny, at 16,384 tokens
    attention  `bench train-attention`: masks against the fastest full attention, at 8K to 128K; its table on stderr

A JSON line each, and exit code 1 where one is wrong. Without a GPU (`--device cpu`) it runs all but `ranks` in small,
so that the script itself can be tried anywhere; what it prints then says nothing about CUDA.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from anchoreval.training.attention import document_attention, varlen

LENGTHS = (700, 12, 336, 1000)  # of 2,048 tokens


def kernel(device: str) -> dict[str, Any]:
    """Output and gradients of documents in bf16 against float64; right where at most twice as far off as SDPA."""
    generator = torch.Generator().manual_seed(0)
    shape = [(1, heads, sum(LENGTHS), 64) for heads in (8, 2, 2, 8)]
    q, k, v, out = (torch.randn(each, generator=generator).bfloat16() for each in shape)
    bounds = torch.tensor((0, *LENGTHS), dtype=torch.int32).cumsum(0, dtype=torch.int32)

    def computed(dtype: torch.dtype, where: str) -> list[torch.Tensor]:
        inputs = [each.to(where, dtype, copy=True).requires_grad_() for each in (q, k, v)]
        made, _ = document_attention(
            torch.nn.Identity(), *inputs, None, cu_seq_lens_q=bounds.to(where), max_length_q=max(LENGTHS)
        )
        (made.transpose(1, 2) * out.to(where, dtype)).sum().backward()
        return [made.detach().double().cpu(), *(each.grad.double().cpu() for each in inputs if each.grad is not None)]

    exact, dense, own = (
        computed(*how) for how in ((torch.float64, "cpu"), (torch.bfloat16, "cpu"), (torch.bfloat16, device))
    )
    errors = [[float((a - b).abs().max()) for a, b in zip(each, exact, strict=True)] for each in (own, dense)]
    right = all(mine <= 2 * theirs for mine, theirs in zip(*errors, strict=True))
    names = ("out", "q", "k", "v")
    return {
        "right": right,
        "errors": dict(zip(names, errors[0], strict=True)),
        "sdpa": dict(zip(names, errors[1], strict=True)),
    }


def command(output: Path, variant: str, length: int, steps: int, *more: str) -> list[str]:
    """One training of the recipe, on other numbers."""
    numbers = ["--length", str(length), "--batch-tokens", str(2 * length), "--steps", str(steps), "--rope", "bf16"]
    theta = ["--rope-theta", "1e6"] if length > 8192 else []
    return ["train", "--recipe", "family-gpu", "--variant", variant, *numbers, *theta, "--output", str(output), *more]


def run(words: list[str], processes: int = 1) -> None:
    """Return the command as users start it, on some GPUs."""
    start = [sys.executable, "-m", "anchoreval"]
    if processes > 1:
        start = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}", "-m", "anchoreval"]
    subprocess.run([*start, *words], check=True)


def resume(output: Path, store: Path, length: int) -> dict[str, Any]:
    """Kill a training behind its first checkpoint, run it again, compare with one that was never killed."""
    words = ["--data", str(store), "--save-every", "2", "--deterministic"]
    whole, killed = (command(output / name, "anchor", length, 4, *words) for name in ("whole", "killed"))
    run(whole)
    process = subprocess.Popen([sys.executable, "-m", "anchoreval", *killed])
    mark = output / "killed" / "anchor-bf16-0" / "checkpoint-2" / "trainer_state.json"
    while process.poll() is None and not mark.is_file():
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    run(killed)
    names = ("log.csv", "model.safetensors")
    folders = [output / name / "anchor-bf16-0" for name in ("whole", "killed")]
    same = {name: folders[0].joinpath(name).read_bytes() == folders[1].joinpath(name).read_bytes() for name in names}
    card = json.loads((folders[0] / "anchoreval_training.json").read_text())
    return {"right": all(same.values()), **same, "policy": card["policy"], "level": card["rope_applied"]["level"]}


def losses(folder: Path) -> list[float]:
    """Return the losses of a training."""
    with (folder / "anchor-bf16-0" / "log.csv").open(newline="") as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


def ranks(output: Path, store: Path, length: int) -> dict[str, Any]:
    """Train the same over two GPUs."""
    run(command(output / "two", "anchor", length, 4, "--data", str(store)), processes=2)
    apart = max(abs(a - b) for a, b in zip(losses(output / "whole"), losses(output / "two"), strict=True))
    return {"right": apart < 1e-2, "largest_difference_of_loss": apart}


def speed(output: Path, store: Path, length: int) -> dict[str, Any]:
    """Tokens a second of the last steps of each variant."""
    rates = {}
    for variant in ("full", "anchor"):
        run(command(output / "speed", variant, length, 4, "--data", str(store)))
        with (output / "speed" / f"{variant}-bf16-0" / "speed.csv").open(newline="") as file:
            rates[variant] = [float(row["tokens_per_second"]) for row in csv.DictReader(file)][1:]
    return {"right": True, "tokens_per_second": rates, "length": length}


def attention(output: Path, cuda: bool) -> dict[str, Any]:
    """Time attention and a layer; right where anchor ties with intra-doc and masks save what counting says."""
    path = output / "attention.json"
    small = ["--device", "cpu", "--shapes", "llama-3-8b", "--lengths", "512", "--windows", "2", "--repeats", "1"]
    words = ["bench", "train-attention", "--output", str(path), *([] if cuda else [*small, "--no-layer"])]
    subprocess.run([sys.executable, "-m", "anchoreval", *words], check=True, stdout=sys.stderr)
    found = json.loads(path.read_text())
    long = [row for row in found["figures"] if row["length"] >= 65536]
    layer = [row["ratio"] for row in long if row["length"] == 65536 and row["what"] == "layer, anchor"]
    reached = [row["reached"] for row in long if row["what"].startswith("anchor, mean")]
    ties = [note["anchor_to_intra_doc"] for note in found["notes"]]
    right = not cuda or (max(ties) < 1.02 and min(reached) >= 0.8 and max(layer) <= 0.5)
    return {"right": right, "anchor_to_intra_doc": ties, "reached_from_64k": reached, "layer_of_full_at_64k": layer}


def main() -> int:
    """Every part, a line each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    options = parser.parse_args()
    cuda = options.device == "cuda"
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # of --deterministic
    facts = {"torch": torch.__version__, "device": torch.cuda.get_device_name() if cuda else "cpu"}
    print(json.dumps(facts | {"kernel_takes_groups": varlen()[1]}), flush=True)
    store, length = options.output / "store", 16384 if cuda else 256
    from anchoreval.tokenizer import load_tokenizer
    from anchoreval.training.checkpoints import folder_of_model
    from anchoreval.training.store import pack
    from anchoreval.training.tiny.examples import generated

    base = folder_of_model("anchor-tiny")
    if not store.is_dir():
        pack(generated(base, 1_000_000 if cuda else 20_000, length), load_tokenizer(base), store)
    parts = {"kernel": lambda: kernel(options.device), "resume": lambda: resume(options.output, store, length)}
    if torch.cuda.device_count() > 1:
        parts["ranks"] = lambda: ranks(options.output, store, length)
    parts["speed"] = lambda: speed(options.output, store, length)
    parts["attention"] = lambda: attention(options.output, cuda)
    wrong = 0
    for name, part in parts.items():
        found = part()
        wrong += not found["right"]
        print(json.dumps({name: found}), flush=True)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
