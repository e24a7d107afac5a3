"""Sample -> Request: the anchor first and once, every token in a segment, nothing truncated."""

from __future__ import annotations

import dataclasses
import re
from types import SimpleNamespace
from typing import Any

import pytest
import tokenizers
from tokenizers import models, pre_tokenizers

from anchoreval.arms.arm import parse_arm
from anchoreval.backends.openai.answers import Asking
from anchoreval.cards import find_model
from anchoreval.errors import ModelError, OverlongPrompt, UnsupportedArm
from anchoreval.prompt import (
    anchor_token,
    first_token,
    reference_text,
    require_no_anchor,
    template_text,
    to_request,
    trimmed,
    wrap_of,
)
from anchoreval.schema import Choice, Sample, Segment, Wrap
from anchoreval.tokenizer import TextTokenizer, chat_template, load_tokenizer

LLAMA_CHAT = (
    "{{ bos_token }}{% for message in messages %}<|start|>{{ message['role'] }}\n{{ message['content'] | trim }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def tiny() -> TextTokenizer:
    return load_tokenizer(find_model("anchor-tiny")[1].checkpoint)


def words(config: dict[str, object]) -> TextTokenizer:
    """A tokenizer of whole words, with the special tokens that `config` names."""
    names = ["<bos>", "<eos>", "read", "this", "please", "?", "Answer", ":", "forty", "two"]
    inner = tokenizers.Tokenizer(models.WordLevel({name: index for index, name in enumerate(names)}, "?"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.add_special_tokens(["<bos>", "<eos>"])
    return TextTokenizer(inner, config)


def sample(*texts: str, references: tuple[str, ...] = ("42",), budget: int = 8) -> Sample:
    roles = ("preamble", "document", "query", "answer_prefix")
    segments = tuple(Segment(role, text) for role, text in zip(roles, texts, strict=False))
    return Sample("suite/task", 64, 0, segments, references, budget)


def test_tokens_are_those_of_the_whole_text_behind_one_bos(tiny: TextTokenizer) -> None:
    item = sample("Read this.\n", "A long lamp. A small boat.", "\nWhat is it?", " Answer:")
    request = to_request(item, tiny, "comma", None)
    assert request.token_ids == (tiny.bos[1], *tiny.encode(item.prompt))  # type: ignore[index]
    assert request.token_ids.count(tiny.bos[1]) == 1  # type: ignore[index]


def test_every_token_belongs_to_the_segment_that_it_starts_in(tiny: TextTokenizer) -> None:
    item = sample("Read this.\n", "A long lamp. A small boat.", "\nWhat is it?", " Answer:")
    request = to_request(item, tiny, "comma", None)
    assert request.segment_ids[0] == -1
    texts = [
        "".join(tiny.decode([t]) for t, s in zip(request.token_ids, request.segment_ids, strict=True) if s == i)
        for i in range(4)
    ]
    assert texts == [segment.text for segment in item.segments]


def test_a_prompt_that_exceeds_the_window_is_an_error_and_one_that_just_fits_is_not(tiny: TextTokenizer) -> None:
    item = sample("Read this.\n", "A small boat.")
    needed = len(tiny.encode(item.prompt)) + item.max_new_tokens
    assert to_request(item, tiny, "comma", needed)
    with pytest.raises(OverlongPrompt, match=f"needs {needed} positions, the model has {needed - 1}"):
        to_request(item, tiny, "comma", needed - 1)


def test_the_reference_goes_on_where_the_prompt_ends(tiny: TextTokenizer) -> None:
    spaced = to_request(sample("They are: "), tiny, "comma", None)
    glued = to_request(sample("They are:"), tiny, "comma", None)
    assert tiny.decode(list(spaced.reference_ids)) == "42"
    assert tiny.decode(list(glued.reference_ids)) == " 42"
    assert list(glued.token_ids[1:] + glued.reference_ids) == tiny.encode("They are: 42")


def test_without_references_nothing_is_teacher_forced(tiny: TextTokenizer) -> None:
    assert to_request(sample("Hello", references=()), tiny, "comma", None).reference_ids == ()


@pytest.mark.parametrize(
    ("form", "text"), [("comma", "a, b"), ("space", "a b"), ("numbered", "1. a 2. b"), ("first", "a")]
)
def test_references_are_written_out_as_the_task_writes_its_answers(form: str, text: str) -> None:
    assert reference_text(["a", "b"], form) == text  # type: ignore[arg-type]


def test_a_tokenizer_without_bos_has_its_eos_as_anchor() -> None:
    assert anchor_token(words({"eos_token": "<eos>"})) == ("<eos>", 1)


def test_a_tokenizer_without_bos_and_eos_is_refused() -> None:
    with pytest.raises(ModelError, match="neither a BOS nor an EOS"):
        anchor_token(words({}))


def test_a_text_that_begins_with_the_anchor_gets_no_second_one() -> None:
    tokenizer = words({"bos_token": "<bos>"})
    request = to_request(sample("<bos> read this <bos>"), tokenizer, "comma", None)
    assert (request.token_ids, request.segment_ids) == ((0, 2, 3, 0), (-1, 0, 0, 0))


def test_the_chat_template_becomes_text_around_the_turn_without_its_bos() -> None:
    tokenizer = words({"bos_token": "<bos>", "chat_template": LLAMA_CHAT})
    assert wrap_of(tokenizer, "chat") == Wrap("<|start|>user\n", "<|end|><|start|>assistant\n", trims=True)
    assert wrap_of(tokenizer, "base") == Wrap()


@pytest.mark.parametrize(
    ("template", "says"),
    [(None, "has no chat template"), ("{{ oops", "cannot be rendered"), ("fixed", "drops the user's turn"),
     ("{{ raise_exception('system first') }}", "system first")],
)  # fmt: skip
def test_a_chat_template_that_cannot_serve_is_named(template: str | None, says: str) -> None:
    with pytest.raises(ModelError, match=says):
        wrap_of(words({"bos_token": "<bos>", "chat_template": template}), "chat")


#: Templates as the families write them, shortened; each keeps what sets it apart.
TURNS = "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content + '\\n' }}{% endfor %}"
ASKS = "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
FAMILIES = {
    "SmolLM3: generation blocks, thinking": """{%- if enable_thinking is not defined -%}
{%- set enable_thinking = true -%}{%- endif -%}
{{ "<|system|>\n" }}{%- if enable_thinking -%}{{ "think" }}{%- else -%}{{ "no think" }}{%- endif -%}
{{ "\n" }}{%- for m in messages -%}{%- if m.role == "user" -%}{{ "<|user|>" + m.content + "\n" }}
{%- elif m.role == "assistant" -%}{% generation %}{{ m.content }}{% endgeneration %}{%- endif -%}{%- endfor -%}
{%- if add_generation_prompt -%}{{ "<|assistant|>\n" }}{%- endif -%}""",
    "Qwen3: thinking left out": TURNS
    + ASKS
    + "{%- if enable_thinking is defined and enable_thinking is false %}"
    + "{{ '<think>\\n\\n</think>\\n\\n' }}{%- endif %}",
    "Llama 3.1: date, tools, documents": """{{- bos_token }}
{%- if custom_tools is defined %}
    {%- set tools = custom_tools %}
{%- endif %}
{%- if not date_string is defined %}
    {%- set date_string = "26 Jul 2024" %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{{- "<|system|>" }}{%- if tools is not none %}{{- "Environment: ipython" }}{%- endif %}
{%- if documents is not none %}{{- documents | tojson }}{%- endif %}
{{- "Today Date: " + date_string + "\n" }}{{- {"b": "<x>", "a": 1} | tojson }}
{%- for message in messages %}
    {{- "<|" + message["role"] + "|>\n\n" + message["content"] | trim + "<|eot|>" }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- "<|assistant|>\n\n" }}
{%- endif %}""",
    "OLMo: EOS first": "{{ eos_token }}" + TURNS + ASKS,
    "Mistral: blanks around the turn": "{{ bos_token }}{% for m in messages %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "{{ '[INST] ' + m.content + ' [/INST]' }}{% endfor %}",
    "Gemma: no system turn": "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}{% for m in messages %}"
    "{{ '<start_of_turn>' + m.role + '\\n' + m.content | trim + '<end_of_turn>\\n' }}{% endfor %}" + ASKS,
    "trimmed, nothing behind the turn": "{{ bos_token }}User: {{ messages[0].content | trim }}",
    "trimmed, white space behind the turn": "{{ bos_token }}User: {{ messages[0].content | trim }}{{ '\\n\\n' }}",
    "trimmed, nothing before the turn": "{{ bos_token }}{{ messages[0].content | trim }}<|end|>",
    "white space before BOS": "\n{# a comment #}\n  {{ bos_token }}" + TURNS + ASKS,
}
ARGS: dict[str, dict[str, Any]] = {
    "SmolLM3: generation blocks, thinking": {"enable_thinking": False},
    "Qwen3: thinking left out": {"enable_thinking": False},
    "Llama 3.1: date, tools, documents": {"date_string": "01 Dec 2025"},
}


def upstream(template: str, special: dict[str, str], text: str, **args: Any) -> str:
    """What transformers itself makes of one user turn."""
    from transformers import PreTrainedTokenizerFast

    inner = tokenizers.Tokenizer(models.WordLevel({"?": 0, "<bos>": 1, "<eos>": 2}, "?"))
    theirs = PreTrainedTokenizerFast(tokenizer_object=inner, chat_template=template, **special)
    turn = [{"role": "user", "content": text}]
    return str(theirs.apply_chat_template(turn, tokenize=False, add_generation_prompt=True, **args))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_under_a_chat_template_is_what_transformers_renders(family: str) -> None:
    text, template, args = " What is 1 < 2?\n", FAMILIES[family], ARGS.get(family, {})
    special = {"eos_token": "<eos>"} | ({} if family.startswith(("OLMo", "Qwen", "Smol")) else {"bos_token": "<bos>"})
    want = upstream(template, special, text, **args)
    tokenizer = words({**special, "chat_template": template})
    wrap, anchor = wrap_of(tokenizer, "chat", args), anchor_token(tokenizer)[0]
    segments = (Segment("preamble", wrap.opening), Segment("query", text), Segment("answer_prefix", wrap.closing))
    item = trimmed(Sample("suite/task", 64, 0, segments, ("42",), 8), wrap, tokenizer)
    put = anchor if want.lstrip().startswith(anchor) else ""  # it stands first in the ids, once
    assert put + item.prompt == want.lstrip() if put else item.prompt == want
    ids = to_request(item, tokenizer, "comma", None).token_ids
    assert ids[0] == anchor_token(tokenizer)[1] and ids.count(ids[0]) == 1
    front = first_token(tokenizer, "chat", args, "auto")
    assert front["anchor_from"] == ("tokenizer" if put else "anchoreval")
    bare = wrap_of(tokenizer, "chat", args, anchor="none")
    assert bare.opening + (text.strip() if wrap.trims else text) + bare.closing == want


def test_a_turn_is_trimmed_before_the_answer_prefix_where_nothing_stands_between() -> None:
    wrap = Wrap("User: ", "\n", trims=True)
    segments = (Segment("preamble", "User:  read"), Segment("query", " this \n"), Segment("answer_prefix", " Answer:"))
    made = trimmed(Sample("suite/task", 64, 0, segments, ("42",), 8), wrap, words({"bos_token": "<bos>"}))
    assert made.prompt == "User: read this\n Answer:"


def test_the_date_of_a_template_is_one_date() -> None:
    template = "{{ strftime_now('%d %B %Y') }} {{ messages[0].content }}"
    assert wrap_of(words({"bos_token": "<bos>", "chat_template": template}), "chat").opening == "01 January 2025 "


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "longer than 1 s"),
        ("{{ 'x' * 999999999 }}", "more than 256 MB"),
        ("{{ 'x' * 2000000 }}{{ messages[0].content }}", "2,000,[0-9]+ characters around"),
        ("{{ messages[0].content }} or {{ messages[0].content }}", "more than once"),
        ("{{ messages[0].content | tojson }}", "changes the text"),
        ("{{ messages[0].content.strip('\\n') }}", "changes the white space"),
        ("{{ messages[0].content | upper }}", "drops the user's turn"),
        ("{{ bos_token }}{{ bos_token }}{{ messages[0].content }}", "twice"),
        ("{{ range(999999) | list }}", "OverflowError"),
        ("{{ [].append.__globals__ }}{{ messages[0].content }}", "SecurityError"),
    ],
)
def test_a_template_that_cannot_be_used_is_one_line(template: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template, "SECONDS", 1)
    with pytest.raises(ModelError, match=says) as error:
        wrap_of(words({"bos_token": "<bos>", "chat_template": template}), "chat")
    assert "\n" not in str(error.value)


def test_arguments_that_no_template_reads_or_that_are_given_anyway_are_refused() -> None:
    tokenizer = words({"bos_token": "<bos>", "chat_template": LLAMA_CHAT})
    for name, says in (("enable_thinkng", "reads no"), ("messages", "gives it"), ("bos_token", "gives it")):
        with pytest.raises(ModelError, match=says):
            wrap_of(tokenizer, "chat", {name: False})
    with pytest.raises(ModelError, match="add --template chat"):
        wrap_of(tokenizer, "base", {"enable_thinking": False})


def test_another_text_of_the_template_is_another_identity() -> None:
    assert template_text(Wrap("a", "b")) == template_text(Wrap("a", "b"))
    assert len({template_text(Wrap(*texts)) for texts in (("a", "b"), ("a", "c"), ("ab", ""), ("", "ab"))}) == 4


def test_without_an_anchor_the_ids_are_those_of_the_text(tiny: TextTokenizer) -> None:
    item = sample("Read this.\n", "A long lamp.", "\nWhat is it?", " Answer:")
    bare, usual = to_request(item, tiny, "comma", None, anchor="none"), to_request(item, tiny, "comma", None)
    assert bare.token_ids == tuple(tiny.encode(item.prompt)) == usual.token_ids[1:]
    assert bare.segment_ids == usual.segment_ids[1:] and bare.reference_ids == usual.reference_ids
    asking = Asking(None, None, "chat", tiny, 0, None)  # type: ignore[arg-type]
    assert [asking._prompt(each)["messages"][0]["content"] for each in (bare, usual)] == [item.prompt] * 2


def test_text_of_special_tokens_stays_in_a_turn(tiny: TextTokenizer) -> None:
    item = sample("The sky <|eos|> is <|bos|> blue.")
    asking = Asking(None, None, "chat", tiny, 0, None)  # type: ignore[arg-type]
    (turn,) = asking._prompt(to_request(item, tiny, "comma", None))["messages"]
    assert turn["content"] == item.prompt


def test_arms_that_act_on_the_anchor_need_one() -> None:
    for name in ("bf16", "intra-doc/bf16+reset", "bf16+shift:4"):
        require_no_anchor(parse_arm(name))
    for name in ("anchor/bf16", "bf16+anchor-shift:4", "bf16+anchor-reset"):
        with pytest.raises(UnsupportedArm, match=f"'{re.escape(name)}'.*needs the anchor token"):
            require_no_anchor(parse_arm(name))


def chosen(*choices: Choice, gold: int = 0) -> Sample:
    item = sample("Read this.\n", "A small boat.", "\nWhat is it?", " Answer: ", budget=1)
    return dataclasses.replace(item, choices=choices, facts={"gold": gold}, max_new_tokens=0)


def peer_pair(tokenizer: TextTokenizer, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """What lm-evaluation-harness makes of a context and a continuation."""
    from lm_eval.api.model import TemplateLM

    stand_in = SimpleNamespace(backend="causal", tok_encode=tokenizer.encode)
    return TemplateLM._encode_pair(stand_in, context, continuation)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "choices",
    [
        (Choice("boat"), Choice("lamp")),
        (Choice("a long boat"), Choice("a long lamp"), Choice("a")),
        (Choice(" that sails.", "The boat is it"), Choice(" that sails.", "The lamp is it ")),
        (Choice("  two blanks", "\n\n"), Choice("x")),
    ],
)
def test_choices_are_tokenised_as_lm_eval_does(tiny: TextTokenizer, choices: tuple[Choice, ...]) -> None:
    item = chosen(*choices)
    request = to_request(item, tiny, "first", None)
    assert len(request.token_ids) == len(request.segment_ids) and not request.reference_ids
    for choice, made in zip(choices, request.choices, strict=True):
        context, continuation = peer_pair(tiny, item.prompt + choice.before, choice.text)
        assert [*request.token_ids[1:], *made.token_ids] == context + continuation
        assert made.counted == len(continuation)


def test_the_right_choice_gives_the_number_of_reference_tokens(tiny: TextTokenizer) -> None:
    request = to_request(chosen(Choice("x"), Choice("a long and winding boat"), gold=1), tiny, "first", None)
    assert request.gold == 1 and request.reference_tokens == request.choices[1].counted > 2


def test_the_longest_choice_must_fit_into_the_window(tiny: TextTokenizer) -> None:
    item = chosen(Choice("x"), Choice("a long and winding boat " * 20))
    needed = max(len(tiny.encode(item.prompt + choice.text)) for choice in item.choices)
    assert to_request(item, tiny, "first", needed)
    with pytest.raises(OverlongPrompt, match=str(needed)):
        to_request(item, tiny, "first", needed - 1)
