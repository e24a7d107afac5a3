"""LongBench v2's prompts, byte for byte, and how they are filled in.

Source: prompts/*.txt of THUDM/LongBench at 2e00731 (MIT, Copyright (c) 2023 THU-KEG & Zhipu AI). `choices` is no prompt
of LongBench v2. It is the prompt of lm-evaluation-harness 0.4.13 (longbench2), which ends with the cue "Answer:" where
upstream describes the form of an answer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from anchoreval.schema import Role, Segment

_QUESTION = "What is the correct answer to this question: $Q$\nChoices:\n(A) $C_A$\n(B) $C_B$\n(C) $C_C$\n(D) $C_D$\n\n"
_TEXT = "<text>\n$DOC$\n</text>\n\n"
_FORM = 'Format your response as follows: "The correct answer is (insert answer here)".'
_LIKELIEST = "what is the single, most likely answer choice? "
_ANSWER = "Please read the following text and answer the question below.\n\n"
_ANSWERS = "Please read the following text and answer the questions below.\n\n"
_STEPS = "Let\u2019s think step by step:"

PROMPTS: dict[str, str] = {
    "zero_shot": f"{_ANSWER}{_TEXT}{_QUESTION}{_FORM}",
    "cot": f"{_ANSWERS}{_TEXT}{_QUESTION}{_STEPS}",
    "cot_answer": f"{_ANSWERS}The text is too long and omitted here.\n\n{_QUESTION}{_STEPS} $COT$\n\n"
    f"Based on the above, {_LIKELIEST}{_FORM}",
    "no_context": f"{_QUESTION}What{_LIKELIEST[4:]}{_FORM}",
    "choices": f"{_ANSWER}{_TEXT}{_QUESTION}Answer:",
}
MARKER = re.compile(r"\$(DOC|Q|C_[A-D]|COT)\$")


def filled(prompt: str, texts: Mapping[str, str]) -> list[Segment]:
    """Return the prompt with `texts` in place of its markers; the document and the cue are segments of their own.

    All markers are replaced in one pass. Upstream replaces one marker after the other, which changes a document that
    holds "$Q$".
    """
    segments: list[Segment] = []
    role: Role = "preamble" if "$DOC$" in prompt else "query"
    for at, part in enumerate(MARKER.split(prompt)):
        document = at % 2 == 1 and part == "DOC"
        segments.append(Segment("document" if document else role, texts[part] if at % 2 else part))
        role = "query" if document else role
    if prompt.endswith(":"):
        rest, line, cue = segments.pop().text.rpartition("\n")
        segments += [Segment("query", rest + line), Segment("answer_prefix", cue)]
    return segments
