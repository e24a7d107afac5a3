"""From a run to a picture, cell by cell as in a notebook: what a damaged RoPE does with length, beside an intact one.

It needs pandas (`pip install 'anchoreval[export]'`) and matplotlib: `python examples/first_plot.py [OUTPUT [BACKEND]]`.
"""

# %% Run the embedded model; the same call goes on where it was cut, or with a larger limit.
from __future__ import annotations

import sys
from pathlib import Path

from anchoreval import compare, evaluate

OUTPUT = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/first-plot")
BACKEND = sys.argv[2] if len(sys.argv) > 2 else "hf"
run = evaluate(
    "anchor-tiny", "ruler/niah_multikey_1", lengths=[512, 1024, 2048], arms="fp32,bf16-angle", placebo=True, limit=10,
    haystack="generated", output=OUTPUT, backend=BACKEND, tell=lambda line: print(line, file=sys.stderr),
)  # fmt: skip

# %% A row per record: task, length, arm, score, facts of the prompt.
table = run.to_pandas()
print(table.pivot_table("score", "length", "arm"))

# %% What may be said of the difference, and the floor under it.
for contrast in compare(run):
    print(f"{contrast.arm} minus {contrast.baseline}: {contrast.pooled.says}")

# %% The picture: the mean log-probability of the answer's tokens.
import matplotlib  # noqa: E402

matplotlib.use("Agg")
axes = table.pivot_table("logprob_per_token", "length", "arm").plot(marker="o", title="anchor-tiny, niah_multikey_1")
axes.set(xlabel="tokens of the prompt and its answer", ylabel="log-probability of the answer, nats per token")
axes.figure.savefig(OUTPUT / "first_plot.svg")
print(OUTPUT / "first_plot.svg")
