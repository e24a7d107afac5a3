"""Needle in a haystack: gkamradt's grid of lengths and depths, with answers that cannot be guessed and exact lengths.

Two rules are those of needlehaystack/llm_needle_haystack_tester.py and llm_multi_needle_haystack_tester.py of
https://github.com/gkamradt/needle-in-a-haystack at 7b90d28: the depths, and that a needle moves back from its token to
the end of a sentence. Unlike upstream, sentences end at any full stop, question or exclamation mark that white space
follows; several needles are placed by the tokens of the haystack alone; sigmoid depths ascend (upstream's descend);
and the haystack is cut at a word and closed with a full stop.

Any sample can be made alone: it follows from seed, task, length and index.
"""

from __future__ import annotations

import itertools
import math
import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Literal

from anchoreval.errors import CardError
from anchoreval.schema import Json, Sample
from anchoreval.suites.niah import needles as hidden
from anchoreval.suites.niah.needles import Hidden
from anchoreval.suites.recipe import CardArgs, Recipe, options
from anchoreval.suites.ruler.niah import NOISE
from anchoreval.texts.draft import Draft, Piece, Tally, Template
from anchoreval.texts.filling import too_short
from anchoreval.texts.passage import Prose, Sentences
from anchoreval.texts.prose import sentences

TEXT = (
    "There is important information hidden inside a long text. Find it and memorize it. "
    "I will quiz you about it afterwards.\n\n{context}\n\n{query}"
)
ANSWER = " Answer: {lead}"
# the texts of landmark attention, as in LongLoRA's passkey_retrivial.py
PASSKEY_TEXT = (
    "There is an important info hidden inside a lot of irrelevant text. Find it and memorize them. "
    "I will quiz you about the important information there.\n{context}\n{query}"
)
PASSKEY_ANSWER = " {lead}"
MOST_DEPTHS = 101  # upstream rounds linear depths to whole percents
LEAST = 2  # sentences that a haystack needs to have depths
DRAWS = 100  # draws of the needles of a sample until no answer occurs in the haystack
FILL = 0.99
Spacing = Literal["linear", "sigmoid"]


@dataclass(frozen=True, slots=True)
class Grid:
    """The `args` of a task card: what is hidden where. `filler` is prose (essays or generated) or LongLoRA's lines."""

    kind: hidden.Kind
    depths: int = 11
    depth_spacing: Spacing = "linear"
    repeats: int = 1
    needles: int = 1
    distractors: int = 0
    filler: Literal["prose", "noise"] = "prose"

    @property
    def percents(self) -> tuple[float, ...]:
        """The depths, ascending."""
        return spaced(self.depths, self.depth_spacing)


def size(task: str, args: Mapping[str, Json]) -> int:
    """Return the number of samples of one length under a task's `args`: depths times repeats."""
    grid = options(CardArgs(task, args), Grid)
    return grid.depths * grid.repeats


def spaced(count: int, spacing: Spacing) -> tuple[float, ...]:
    """Return `count` depths in percent, 0 first and 100 last: whole percents, or a logistic curve dense at both ends.

    A single depth is 0, as in upstream's `np.linspace(0, 100, 1)`.
    """
    width = 100 / max(1, count - 1)
    evenly = [*(step * width for step in range(count - 1)), 100.0] if count > 1 else [0.0]  # linspace, to the last bit
    if spacing == "linear":
        return tuple(float(round(x)) for x in evenly)
    return tuple(x if x in (0.0, 100.0) else round(100 / (1 + math.exp(-0.1 * (x - 50))), 3) for x in evenly)


@dataclass(slots=True)
class Maker:
    """Makes the samples of one cell. Its only state is the haystack of the current repeat."""

    recipe: Recipe
    grid: Grid
    tally: Tally
    _template: Template = field(init=False)
    _repeat: int = field(init=False, default=-1)
    _haystack: Prose = field(init=False)
    _period: int | None = field(init=False, default=None)  # sentences until the haystack repeats itself

    def __post_init__(self) -> None:
        texts = (PASSKEY_TEXT, PASSKEY_ANSWER) if self.grid.kind == "passkey" else (TEXT, ANSWER)
        self._template = Template.of(self.recipe.wrap, *texts)

    def sample(self, index: int) -> Sample:
        """Return the sample of an index; raise LengthError if its needles do not fit.

        Indices go through the depths, then through the depths of the next repeat.
        """
        self._turn(index // self.grid.depths)
        percent = self.grid.percents[index % self.grid.depths]
        rng, recipe = self._rng(index), self.recipe
        for _ in range(DRAWS):
            needles = self._draw(rng)
            draft, tokens, units, text = self._fitted(needles, percent, rng)
            around = f"{text} {needles.question} {needles.lead} {' '.join(needles.near)}".lower()
            if not any(answer.lower() in around for answer in needles.answers):  # as the scorer looks for them
                facts = self._facts(draft, recipe.counted(tokens), units, percent)
                return recipe.sample(index, draft.segments(), draft.references, facts)
        raise CardError(f"{recipe.task}: {DRAWS} answers were drawn, and every one occurs in the haystack")

    def check(self) -> None:
        """Raise LengthError now if the longest first draw of any sample does not fit, so that no run fails half-way."""
        self._turn(0)
        total = self.grid.depths * self.grid.repeats
        longest = max(self._least(self._draw(self._rng(index))) for index in range(total))
        if longest > self.recipe.room:
            raise too_short(self.recipe.length, longest + self.recipe.reserved)

    def _rng(self, index: int) -> Random:
        return Random(f"niah-{self.recipe.seed}-{self.recipe.task}-{self.recipe.length}-{index}")

    def _draw(self, rng: Random) -> Hidden:
        return hidden.draw(self.grid.kind, rng, self.grid.needles, self.grid.distractors)

    def _turn(self, repeat: int) -> None:
        """Switch to the haystack of a repeat: another text, or the essays from another sentence on."""
        if repeat == self._repeat:
            return
        self._repeat = repeat
        if self.grid.filler == "prose" and self.recipe.sources.haystack == "generated":
            source: Iterator[str] = sentences(self.recipe.seed + repeat)
        else:
            text = NOISE if self.grid.filler == "noise" else self.recipe.sources.essay()
            whole = split(text)
            start = 0 if repeat == 0 else Random(f"niah-{self.recipe.seed}-{repeat}").randrange(len(whole))
            source, self._period = itertools.cycle([*whole[start:], *whole[:start]]), len(whole)
        self._haystack = Prose(source, self.tally)

    def _least(self, one: Hidden) -> int:
        """Return the tokens of the shortest prompt that hides these needles."""
        return self._count(one, self._haystack.upto(LEAST).chunk(0, LEAST))

    def _around(self, one: Hidden) -> tuple[Piece, Piece, Piece]:
        before, after, prefix = self._template.fill(query=one.question, lead=one.lead)
        return Piece(before), Piece(after), Piece(prefix)

    def _count(self, one: Hidden, haystack: Sequence[Piece]) -> int:
        """Return the tokens of a prompt in which all needles stand behind the haystack."""
        before, after, prefix = self._around(one)
        behind = [Piece(f" {text}") for text in (*one.near, *one.sentences)]
        return self.tally.count([before, *haystack, *behind, after, prefix])

    def _fitted(self, one: Hidden, percent: float, rng: Random) -> tuple[Draft, int, int, str]:
        """Return the prompt, its tokens, the number of its haystack's sentences (a cut one included) and the haystack.

        Needles may take more tokens at their depth than at the end. Then the haystack is fitted again to fewer tokens.
        """
        room, state = self.recipe.room, rng.getstate()
        while True:
            haystack, units, cut = self._cut(one, room)
            rng.setstate(state)
            draft = self._placed(one, haystack, units, cut, percent, rng)
            tokens = self.tally.count(draft.pieces())
            if tokens <= self.recipe.room:
                text = "".join(piece.text for piece in haystack.chunk(0, units))
                return draft, tokens, units + bool(cut), text + cut
            room -= tokens - self.recipe.room

    def _cut(self, one: Hidden, room: int) -> tuple[Sentences, int, str]:
        """Return the haystack, how many whole sentences of it fit, and as much of the next sentence as still fits."""
        most = room // 2 + 1  # no sentence has fewer than two tokens
        whole = self._haystack.upto(most)
        low = bisect_right(range(LEAST, most), room, key=lambda units: self._count(one, whole.chunk(0, units)))
        units = LEAST + low - 1
        if units < LEAST:
            raise too_short(self.recipe.length, self._least(one) + self.recipe.reserved)
        body, following = whole.chunk(0, units), "".join(piece.text for piece in whole.chunk(units, units + 1))
        for pattern in (r"\w(?=\W)", r"\w"):  # cut at a word; inside a word if that leaves too much room
            ends = [match.end() for match in re.finditer(pattern, following.rstrip(".!?\"')"))]
            cuts = ["", *(f" {following[:end]}." for end in ends)]
            counts = [self._count(one, [*body, Piece(cut)]) for cut in cuts]
            best = max(at for at, count in enumerate(counts) if count <= room)
            if self.recipe.tokens(counts[best]) >= FILL * self.recipe.length:
                break
        return whole, units, cuts[best]

    def _placed(self, one: Hidden, haystack: Sentences, units: int, cut: str, percent: float, rng: Random) -> Draft:
        """Return the prompt with the needles at their depths and near misses at any other sentence border."""
        borders = Borders(haystack, units, cut, self.tally)
        count = len(one.sentences)
        depths = [percent + at * (100 - percent) / count for at in range(count)]
        places = [borders.at(depth) for depth in depths]
        free = [border for border in range(borders.last + 1) if border not in places] or [places[0]]
        texts = [(place, True, text) for place, text in zip(places, one.sentences, strict=True)]
        texts += [(rng.choice(free), False, text) for text in one.near]
        pieces: list[Piece] = []
        marks, start = [], 0
        for place, real, text in sorted(texts, key=lambda each: each[0]):
            pieces += borders.between(start, place, bool(pieces))
            if real:
                marks.append((0, len(pieces)))
            pieces.append(Piece(f" {text}" if pieces else text))
            start = place
        pieces += borders.between(start, borders.last, True)
        before, after, prefix = self._around(one)
        return Draft([before], [pieces], [after], prefix, one.answers, marks)

    def _facts(self, draft: Draft, tokens: int, units: int, percent: float) -> dict[str, Json]:
        """Return the facts of a sample; `source` names the haystack of a repeat.

        A repeat has the same haystack at every depth and length and for every task. The haystack of a grid without
        repeats, and noise, are parts of the benchmark and no source.
        """
        haystack = "noise" if self.grid.filler == "noise" else self.recipe.sources.haystack
        facts = {"tokens": tokens, "units": units, "unit": "sentences", "haystack": haystack, "repeat": self._repeat}
        if self.grid.repeats > 1 and self.grid.filler == "prose":
            facts["source"] = f"niah haystack {self._repeat}"
        facts["depth_percent"] = percent
        if self._period is not None and units > self._period:
            facts["haystack_repeats"] = round(units / self._period, 2)
        return facts | draft.positions(self.tally)


@dataclass(slots=True)
class Borders:
    """The places for a needle: before each of `units` sentences, after the last of them, and after the `cut` one."""

    haystack: Sentences
    units: int
    cut: str
    tally: Tally
    last: int = field(init=False)  # the border at the end

    def __post_init__(self) -> None:
        self.last = self.units + bool(self.cut)

    def between(self, start: int, end: int, joined: bool) -> list[Piece]:
        """Return the haystack between two borders; with `joined`, a space comes first."""
        pieces = self.haystack.chunk(start, min(end, self.units))
        if pieces and joined:
            pieces.insert(0, Piece(" "))
        return pieces + ([Piece(self.cut)] if start < end == self.last and self.cut else [])

    def at(self, percent: float) -> int:
        """Return the last border at or before `percent` of the haystack's tokens; the end for 100."""
        if percent >= 100:
            return self.last
        target = int(self.tally.count(self.between(0, self.last, False)) * (percent / 100))
        chunk, count = self.haystack.chunk, self.tally.count
        return bisect_right(range(self.units + 1), target, key=lambda border: border and count(chunk(0, border))) - 1


def split(text: str) -> list[str]:
    """Split a text into sentences, each with the marks that end it."""
    whole = " ".join(text.split())
    return re.split(r"(?<=[.!?]) |(?<=[.!?][\"')]) ", whole)


def generate(recipe: Recipe) -> Iterator[Sample]:
    """Yield the samples of a grid, at most `recipe.count`; raise LengthError if the length is too short for one."""
    grid = options(recipe, Grid)
    for name, most in (("depths", MOST_DEPTHS), ("needles", hidden.MOST), ("distractors", hidden.MOST_NEAR)):
        if getattr(grid, name) > most:
            raise CardError(f"{recipe.task}: {name}: {getattr(grid, name)} are more than {most}")
    maker = Maker(recipe, grid, Tally(recipe.tokenizer))
    maker.check()
    for index in range(min(recipe.count, grid.depths * grid.repeats)):
        yield maker.sample(index)
