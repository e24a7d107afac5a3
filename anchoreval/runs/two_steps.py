"""Samples that are asked in two steps: a second prompt is made of the first answer, and its answer is the one judged.

A record has one line for both: prompt, key and hash are those of the first prompt, output, finish and the
log-probability of the reference those of the second, the seconds those of both. The first answer stands in its facts,
from which the second prompt can be made again. What an arm said first is its own, so the second prompts of two arms,
and the log-probabilities behind them, are not of the same text. Until then first answers are kept beside the records,
so that a run that is cut between the steps goes on behind them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from anchoreval.backends import Backend
from anchoreval.errors import OverlongPrompt
from anchoreval.records.kept import Kept
from anchoreval.schema import PROMPT_READ, SCORED, SECOND_PROMPT_READ, Json, Output, Request, Sample

FIRST = "reasoning"  # the fact that holds the first answer
FIRST_FACTS = (FIRST, f"{FIRST}_tokens", f"{FIRST}_finish")
#: What is kept of a first answer, and its kind.
_KEPT: Mapping[str, type | tuple[type, ...]] = {
    "text": str,
    "token_ids": (list, tuple),
    "finish": str,
    "seconds": (int, float),
    "facts": dict,
}
#: A sample and the answer to its prompt -> its second prompt, as text and as sent; OverlongPrompt where that is long.
Second = Callable[[Sample, str], tuple[Sample, Request]]


@dataclass(frozen=True, slots=True)
class Answered:
    """What a record is made of: the sample with all of its facts, its first prompt, the output that is judged."""

    sample: Sample
    request: Request
    output: Output

    @property
    def goes_on(self) -> bool:
        """Whether a second prompt follows from the output."""
        return bool(self.sample.then) and self.output.outcome in SCORED


def answers(
    backend: Backend, asked: Mapping[str, tuple[Sample, Request]], second: Second, keys: Mapping[str, str], firsts: Kept
) -> Iterator[Answered]:
    """Every sample of `asked`, by id, with its last output; where the first step got no answer, that is the last.

    `firsts` are the first answers that were given before, and get those that are given now, by key.
    """
    waiting = first_answers(asked, keys, firsts)
    fresh = [request for name, (_, request) in asked.items() if name not in waiting]
    for output in backend.answer(fresh) if fresh else ():
        one = Answered(*asked[output.sample_id], output)
        if one.goes_on:
            waiting[output.sample_id] = one
            keep(firsts, keys[output.sample_id], output)
        else:
            yield one
    if waiting:
        yield from _second_step(backend, {name: waiting[name] for name in asked if name in waiting}, second)


def first_answers(
    asked: Mapping[str, tuple[Sample, Request]], keys: Mapping[str, str], firsts: Kept
) -> dict[str, Answered]:
    """The samples of two steps whose first answer is kept, by id; what has another shape counts as not kept."""
    found = {}
    for name, (sample, request) in asked.items():
        said = firsts.lines.get(keys[name]) if sample.then else None
        if isinstance(said, dict) and said.keys() == _KEPT.keys() and _are_kinds(said):
            output = Output(name, said["text"], tuple(said["token_ids"]), said["finish"], None, said["seconds"])
            found[name] = Answered(sample, request, replace(output, facts=said["facts"]))
    return found


def keep(firsts: Kept, key: str, output: Output) -> None:
    """Keep the first answer of a sample, on the disk before this returns."""
    firsts.add(key, {name: getattr(output, name) for name in _KEPT})


def _are_kinds(said: Mapping[str, Json]) -> bool:
    whole = all(isinstance(said[name], kind) for name, kind in _KEPT.items())
    return whole and said["finish"] in ("stop", "length") and all(type(token) is int for token in said["token_ids"])


def _second_step(backend: Backend, waiting: Mapping[str, Answered], second: Second) -> Iterator[Answered]:
    made, lost = seconds(waiting, second)
    yield from lost
    for output in backend.answer([request for _, request in made.values()]):
        yield both(waiting[output.sample_id], made[output.sample_id], output)


def seconds(
    waiting: Mapping[str, Answered], second: Second
) -> tuple[dict[str, tuple[Sample, Request]], list[Answered]]:
    """The second prompts by sample id, and the samples whose second prompt does not fit."""
    made: dict[str, tuple[Sample, Request]] = {}
    lost: list[Answered] = []
    for name, one in waiting.items():
        try:
            made[name] = second(one.sample, one.output.text)
        except OverlongPrompt as error:
            why = f"second prompt: {error}"
            output = Output(name, "", (), "error", None, one.output.seconds, why, lost="does_not_fit")
            lost.append(replace(one, output=output))
    return made, lost


def both(one: Answered, second: tuple[Sample, Request], output: Output) -> Answered:
    """The two steps of a sample as one: `one` is the first, `output` what was said to the second prompt."""
    prompt, request = second
    first = zip(FIRST_FACTS, (one.output.text, len(one.output.token_ids), one.output.finish), strict=True)
    facts = {**one.sample.facts, **dict(first), **facts_of(prompt, request)}
    return Answered(
        replace(one.sample, facts=facts),
        replace(one.request, reference_ids=request.reference_ids),
        replace(output, seconds=one.output.seconds + output.seconds, facts=_facts_of_both(one.output, output)),
    )


def _facts_of_both(one: Output, output: Output) -> dict[str, Json]:
    """What two outputs say besides: the tokens read of either prompt, and of the second output the rest."""
    rest = {name: value for name, value in output.facts.items() if name != PROMPT_READ}
    pairs = ((PROMPT_READ, one), (SECOND_PROMPT_READ, output))
    return rest | {name: each.facts[PROMPT_READ] for name, each in pairs if PROMPT_READ in each.facts}


def facts_of(prompt: Sample, request: Request) -> dict[str, Json]:
    """What a record says of its second prompt: its hash, and its tokens with the anchor."""
    return {"second_prompt_sha256": prompt.prompt_sha256, "second_prompt_tokens": len(request.token_ids)}
