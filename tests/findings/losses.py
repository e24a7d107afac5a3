"""What the committed tables of losses by position show."""

from __future__ import annotations

from anchoreval.reports.words import nats
from findings.evidence import HOSTS, MODEL, RESULTS, Line, Table
from findings.words import Finding, Sentence, grid

PLACEBO = "~placebo"
RANKS = {"bf16": 0, "bf16-angle": 4}


def finding(table: Table) -> Finding:
    """Sentences and tables of the longest length of a measurement."""
    longest = max(int(line["length"]) for line in table.lines)
    lines = [line for line in table.lines if int(line["length"]) == longest]
    host = HOSTS[table.header["engine"]["dtype"]]
    title = f"Loss by position to {longest:,} tokens, {host}"
    paired = [line for line in lines if line["baseline"]]
    tables = [_buckets(lines, paired)]
    picture = RESULTS / table.name / "nll.svg"
    if picture.is_file():
        tables.insert(0, f"![Loss by position of {MODEL}](../leaderboards/results/{MODEL}/{table.name}/nll.svg)")
    return Finding(title, tuple(_sentences(longest, host, paired)), tuple(tables))


def _sentences(length: int, host: str, paired: list[Line]) -> list[Sentence]:
    whole = [line for line in paired if (line["first"], line["last"]) == ("1", str(length - 1))]
    placebo = next((line for line in whole if line["arm"].endswith(PLACEBO)), None)
    floor = f"floor: {value_of(placebo)} under the placebo" if placebo else "no placebo was measured"
    said = []
    for line in whole:
        if line["arm"].endswith(PLACEBO):
            continue
        told = not line["low"] or float(line["low"]) * float(line["high"]) > 0
        seen = "" if told else ": cannot be told from no difference"
        said.append(
            Sentence(
                RANKS.get(line["arm"], 40),
                f"`{MODEL}`, loss on {line['units']} {line['unit']}s of {length:,} tokens, {host}: `{line['arm']}` "
                f"minus `{line['baseline']}` is {value_of(line)} nats per token{seen}; {floor}.",
            )
        )
    return said


def value_of(line: Line) -> str:
    if not float(line["differing"]):
        return "0, the same bits"
    ends = f" [{nats(float(line['low']))}, {nats(float(line['high']))}]" if line["low"] else ""
    return nats(float(line["value"])) + ends


def _buckets(lines: list[Line], paired: list[Line]) -> str:
    baseline = lines[0]["arm"]
    arms = list(dict.fromkeys(line["arm"] for line in paired))
    found = {(line["first"], line["last"], line["arm"]): line for line in paired}
    rows = []
    for line in lines:
        if line["arm"] == baseline:
            place = (line["first"], line["last"])
            cells = [value_of(found[*place, arm]) if (*place, arm) in found else "–" for arm in arms]
            rows.append([f"{int(place[0]):,}–{int(place[1]):,}", f"{float(line['value']):.3f}", *cells])
    return grid(["positions", f"`{baseline}`", *(f"`{arm}` minus it" for arm in arms)], rows)
