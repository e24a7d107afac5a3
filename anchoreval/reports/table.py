"""Tables: rows in columns as text for a terminal, and lines of CSV files with the fields that they share.

The fields of contrasts and cells have the names of compare.csv; `board.csv` of runs and `<name>.csv` of a declared
board are tables of such fields (docs/tables.md).
"""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from anchoreval.reports.words import plain
from anchoreval.schema import OUTCOMES, Json
from anchoreval.stats import Asked, Contrast, Row, Trained

WIDEST = 100_000  # columns; callers decide what fits a terminal
HOLD = "\ue000"  # a blank at the end of a cell, such as the place of a star, which rich would strip
TRAINED = ("trained_as", "trained_rope", "seed", "steps")  # columns on how a model was trained


def table(rows: Sequence[Sequence[str]], left: Collection[int] = (0,), rule: bool = False) -> list[str]:
    """Return the rows in columns as lines of text: columns in `left` are aligned left, the others right.

    Short rows are filled up. With `rule`, a rule stands below the first row. Characters of double width take two
    columns.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=None, show_header=False, pad_edge=False)
    for column in range(max(map(len, rows), default=0)):
        drawn.add_column(justify="left" if column in left else "right", no_wrap=True)
    for row in rows:
        held = (text.rstrip(" ").ljust(len(text), HOLD) for text in row)
        drawn.add_row(*map(Text, held))  # no markup: intervals stand in brackets
    out = io.StringIO()
    Console(file=out, width=WIDEST, color_system=None, force_terminal=False).print(drawn)
    lines = [line.replace(HOLD, " ").rstrip() for line in out.getvalue().split("\n")[:-1]]
    return [lines[0], "-" * max(map(len, lines)), *lines[1:]] if rule else lines


def csv_lines(columns: Sequence[str], texts: Collection[str], rows: Iterable[Mapping[str, Json]]) -> Iterator[str]:
    """Yield the lines of a table, header first; fields that a row lacks are empty, and so is None.

    The columns `texts` hold text of a user's or a stranger's, and are written so that no spreadsheet runs them; a
    number in them stays a number, including its sign.
    """
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, restval="", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        fields = dict(row)
        for key in texts:
            text = str(fields.get(key) or "")
            if text and not text.removeprefix("-").replace(".", "", 1).isdecimal():
                fields[key] = inert(text)
        writer.writerow(fields)
        yield out.getvalue()
        out.seek(0)
        out.truncate()
    yield out.getvalue()


def inert(value: str, limit: int = 400) -> str:
    """Return the text as `plain`, cut at `limit`; text that a spreadsheet would run gets a leading `'`."""
    text = plain(value, limit)
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def number(value: float | None, factor: float = 1.0, digits: int = 4) -> str:
    """Return the value times a factor as text, or an empty string for None."""
    return "" if value is None else f"{factor * value + 0.0:.{digits}f}"


def trained_fields(card: Trained | None, seeds: str = "", steps: str = "") -> dict[str, str]:
    """Return the fields TRAINED of a model, or of a row over `seeds` and `steps`; none without a training card."""
    if card is None:
        return {}
    values = card.variant, card.rope, seeds or str(card.seed), steps or card.step_words.replace(",", "")
    return dict(zip(TRAINED, values, strict=True))


def scored_fields(cell: Asked) -> dict[str, str]:
    """Return the fields of a mean in boards' CSV files, except its size."""
    return {
        "asked": str(cell.asked),
        "scored": str(cell.scored),
        "low": number(cell.low, 100),
        "high": number(cell.high, 100),
        "logprob_per_token": number(cell.logprob, digits=6),
        **{outcome: str(cell.outcomes.get(outcome, 0)) for outcome in OUTCOMES},
    }


def compared_fields(row: Row) -> dict[str, str]:
    """Return the fields of a difference in boards' CSV files, except its size."""
    paired = row.difference
    return {
        "pairs": str(paired.pairs),
        "left_out": str(paired.left_out),
        "p": "" if paired.p is None else f"{paired.p:.6g}",
        "detectable": number(paired.detectable, 100),
        "p_holm": "" if row.p_holm is None else f"{row.p_holm:.6g}",
        "verdict": row.word,
        "says": row.says,
        "logprob_says": row.logprob_says,
        "same_outputs": "" if paired.same_outputs is None else str(paired.same_outputs),
        "lost": ", ".join(f"{count} {reason}" for reason, count in paired.lost.items()),
        "floor": number(row.floor.difference if row.floor else None, 100),
    }


def fields_of(contrast: Contrast, row: Row) -> dict[str, Json]:
    """Return one mapping: scores in points of 100, log-probabilities in nats per token. `verdict` is a short `says`."""
    paired, floor = row.difference, row.floor
    return {
        "arm": contrast.arm,
        "baseline": contrast.baseline,
        "scope": "cell" if paired.task else "pooled" if paired.length is None else "length",
        "task": paired.task,
        "length": paired.length,
        "pairs": paired.pairs,
        "left_out": paired.left_out,
        "lost": ", ".join(f"{count} {reason}" for reason, count in paired.lost.items()),
        "same_outputs": paired.same_outputs,
        "sources": paired.clusters,
        "margin": _times(contrast.margin),
        "mean_arm": _times(paired.mean_arm),
        "mean_baseline": _times(paired.mean_baseline),
        "difference": _times(paired.difference),
        "low": _times(paired.low),
        "high": _times(paired.high),
        "interval": paired.method,
        "discordant": paired.discordant,
        "p": paired.p,
        "p_holm": row.p_holm,
        "detectable": _times(paired.detectable),
        "verdict": row.word,
        "within_margin": row.verdict.within,
        "needs": row.verdict.needs,
        "says": row.says,
        "logprob_pairs": paired.logprob_pairs,
        "logprob": paired.logprob,
        "logprob_low": paired.logprob_low,
        "logprob_high": paired.logprob_high,
        "logprob_p": paired.logprob_p,
        "logprob_p_holm": row.logprob_p_holm,
        "logprob_spread": paired.logprob_spread,
        "logprob_says": row.logprob_says,
        "floor_discordant": _times(floor.discordant if floor else None),
        "floor_difference": _times(floor.difference if floor else None),
        "floor_logprob": floor.logprob if floor else None,
        "floor_logprob_spread": floor.logprob_spread if floor else None,
        "floor_outputs": _times(floor.outputs if floor else None),
        "prompts": "; ".join(contrast.prompts),
    }


def _times(value: float | None) -> float | None:
    return None if value is None else round(100 * value, 9)
