"""What the committed tables of the probe show: the paper's Figures 1 and 7, layers, the first key beside the others."""

from __future__ import annotations

from findings.evidence import HOSTS, MODEL, RESULTS, Line, Table
from findings.words import Finding, Sentence, digits, grid, spread

ALL = "all"
RATIOS = ("logit", "weight")
TOLD = "bf16"  # the level that sentences are of, where it was measured
SINK = 0.3  # as the page of the probe counts them
STORED = {"fp32": "float32", "bf16": "bfloat16"}


class Tables:
    """The lines of one table by what was run; the host is what the model was opened in."""

    def __init__(self, table: Table) -> None:
        self.name = table.name
        self.dtype = table.lines[0]["dtype"]
        self.host = HOSTS[STORED[self.dtype]]
        self.lines = [line for line in table.lines if line["dtype"] == self.dtype]
        self.texts = [line for line in table.texts if line["dtype"] == self.dtype]
        self.levels = list(dict.fromkeys(line["level"] for line in self.lines))
        self.level = TOLD if TOLD in self.levels else "native"
        key = next(line for line in self.lines if line["against"] == "shift" and line["key"] != ALL)
        self.pair = (key["shift"], key["other"])
        self.lengths = sorted({int(line["length"]) for line in self.lines})
        swept = [line for line in self.lines if line["against"] == "shift" and line["shift"] != self.pair[0]]
        self.curve = int(swept[0]["length"]) if swept else None

    def pick(self, lines: list[Line] | None = None, **wanted: str) -> list[Line]:
        """The lines against a shift, end to end, over all layers, heads and keys, unless another place is wanted."""
        asked = {"mode": "end-to-end", "against": "shift", "layer": ALL, "head": ALL, "key": ALL} | wanted
        chosen = self.lines if lines is None else lines
        return [line for line in chosen if all(line.get(name, value) == value for name, value in asked.items())]

    def at(self, length: int, **wanted: str) -> Line | None:
        """The line of a length at the pair of shifts."""
        shift, other = self.pair
        return next(iter(self.pick(length=str(length), **({"shift": shift, "other": other} | wanted))), None)


def finding(table: Table) -> Finding:
    """Sentences and tables of one study."""
    own = Tables(table)
    title = f"Probe, {own.host}: what a shift of all positions does to attention"
    tables = [_by_length(own), _by_key(own), *_layers(own)]
    tables += _heads(own)
    if own.curve:
        tables = [_curve(own), *tables, *_single_texts(own)]
    picture = RESULTS / table.name / "probe.svg"
    if picture.is_file():
        tables.insert(0, f"![The probe of {MODEL}](../leaderboards/results/{MODEL}/{table.name}/probe.svg)")
    return Finding(title, tuple(_sentences(own)), tuple(tables))


def floor_of(own: Tables, measure: str, length: int) -> str:
    """The same measure where float32 alone rounds."""
    level = "fp32-qk" if "fp32-qk" in own.levels else "fp32"
    line = own.at(length, level=level)
    if line is None or own.level == level:
        return "no level without 16-bit rounding was measured"
    return f"floor: {spread(line[measure], line[f'{measure}_half'])} under `{level}`"


def _sentences(own: Tables) -> list[Sentence]:
    longest = own.lengths[-1]
    line = own.at(longest, level=own.level)
    assert line is not None, own.name
    at = f"`{MODEL}`, probe in the {own.host} at {longest:,} tokens, {line['texts']} texts"
    moved = f"a shift of all positions from {own.pair[0]} to {own.pair[1]} under `{own.level}`"
    ratios = {kind: float(line[f"{kind}_first"]) / float(line[f"{kind}_other"]) for kind in RATIOS}
    said = [
        Sentence(
            1,
            f"{at}: {moved} moves attention by D = {spread(line['D'], line['D_half'])} (Equation 4, summed over "
            f"layers and heads); {floor_of(own, 'D', longest)}.",
        ),
        Sentence(
            2,
            f"{at}: {moved} changes the first key's score {digits(str(ratios['logit']))} times as much as another "
            f"key's and its weight {digits(str(ratios['weight']))} times as much, by "
            f"{spread(line['weight_first'], line['weight_first_half'])}; it holds {_share(line, 'mass_first')} of the "
            f"weight and {_share(line, 'share_first')} of the change; {floor_of(own, 'weight_first', longest)}.",
        ),
    ]
    start = own.at(own.lengths[0], level=own.level)
    if start is not None and len(own.lengths) > 1:
        said.append(
            Sentence(
                9,
                f"`{MODEL}`, probe in the {own.host}: from {own.lengths[0]:,} to {longest:,} tokens {moved} changes "
                f"the first key's score (Equation 5) by {spread(start['D_logit'], start['D_logit_half'])} and "
                f"{spread(line['D_logit'], line['D_logit_half'])}; {floor_of(own, 'D_logit', longest)}.",
            )
        )
    return said


def _share(line: Line, name: str) -> str:
    half = line[f"{name}_half"]
    return f"{100 * float(line[name]):.1f}%" + (f" ± {100 * float(half):.1f}" if half else "")


def _curve(own: Tables) -> str:
    rows = []
    shifts = sorted({int(line["shift"]) for line in own.pick(length=str(own.curve))} - {int(own.pair[1])})
    for shift in shifts:
        found = {line["level"]: line for line in own.pick(length=str(own.curve), shift=str(shift), other=own.pair[1])}
        rows.append([str(shift), *(_cell(found.get(level), "D") for level in own.levels)])
    head = [f"first shift (second: {own.pair[1]}), {own.curve:,} tokens: D", *(f"`{level}`" for level in own.levels)]
    return grid(head, rows)


def _cell(line: Line | None, measure: str) -> str:
    return spread(line[measure], line[f"{measure}_half"]) if line else "–"


def _by_length(own: Tables) -> str:
    rows = []
    for length in own.lengths:
        cells = [_cell(own.at(length, level=level), "D_logit") for level in own.levels]
        texts = own.at(length, level=own.level)
        rows.append([f"{length:,}", texts["texts"] if texts else "–", *cells])
    head = ["tokens: D_logit of the first key", "texts", *(f"`{level}`" for level in own.levels)]
    return grid(head, rows)


def _by_key(own: Tables) -> str:
    """The longest length: change per key before and after softmax under the level told of."""
    longest, (shift, other) = str(own.lengths[-1]), own.pair
    found = [
        line
        for line in own.lines
        if line["key"] != ALL and (line["length"], line["shift"], line["other"]) == (longest, shift, other)
        and (line["mode"], line["against"], line["level"]) == ("end-to-end", "shift", own.level)
    ]  # fmt: skip
    rows = [[line["key"], _cell(line, "key_logit"), _cell(line, "key_weight")] for line in found]
    return grid([f"key, {int(longest):,} tokens, `{own.level}`", "before softmax", "after softmax"], rows)


def _layers(own: Tables) -> list[str]:
    """The longest length, layer by layer, under the level told of."""
    longest, (shift, other) = str(own.lengths[-1]), own.pair
    found = [
        line
        for line in own.lines
        if line["layer"] != ALL and line["head"] == ALL and line["key"] == ALL
        and (line["length"], line["shift"], line["other"]) == (longest, shift, other)
        and (line["mode"], line["against"], line["level"]) == ("end-to-end", "shift", own.level)
    ]  # fmt: skip
    rows = [
        [
            line["layer"],
            _share(line, "mass_first"),
            _share(line, "share_first"),
            *(digits(line[f"{kind}_{key}"]) for kind in RATIOS for key in ("first", "other")),
        ]
        for line in found
    ]
    head = [f"layer, {int(longest):,} tokens, `{own.level}`", "weight on the first key", "its part of the change",
            "first key's score", "another key's", "first key's weight", "another key's"]  # fmt: skip
    return [grid(head, rows)] if rows else []


def _heads(own: Tables) -> list[str]:
    """How many heads put much of their weight on the first key, in the first text of the longest length."""
    heads = [line for line in own.lines if line["head"] != ALL and line["length"] == str(own.lengths[-1])]
    if not heads:
        return []
    sinks = sum(float(line["mass_first"]) >= SINK for line in heads)
    return [
        f"In the first text of {own.lengths[-1]:,} tokens {sinks} of {len(heads)} heads put {SINK:.0%} or more of "
        f"their weight on the first key (`{heads[0]['level']}`)."
    ]


def _single_texts(own: Tables) -> list[str]:
    """Figure 7: the curve of D of the first five texts."""
    found = own.pick(own.texts, length=str(own.curve), level=own.level, other=own.pair[1])
    value = {(int(line["shift"]), line["text"]): line["D"] for line in found}
    texts = sorted({text for _, text in value}, key=int)[:5]
    rows = [[str(at), *(digits(value[at, text], 3) for text in texts)] for at in sorted({at for at, _ in value})]
    head = [f"first shift, {own.curve:,} tokens, `{own.level}`: D", *(f"text {int(text) + 1}" for text in texts)]
    return [grid(head, rows)] if rows else []
