"""Sample -> Request: the anchor first and once, every token in a segment, nothing truncated."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest
import tokenizers
from tokenizers import models, pre_tokenizers

from anchoreval.cards import find_model
from anchoreval.errors import ModelError, OverlongPrompt
from anchoreval.prompt import anchor_token, reference_text, to_request, wrap_of
from anchoreval.schema import Choice, Sample, Segment, Wrap
from anchoreval.tokenizer import TextTokenizer, load_tokenizer

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


def test_a_prompt_that_brings_its_own_anchor_is_refused() -> None:
    with pytest.raises(ModelError, match="starts with the anchor token"):
        to_request(sample("<bos> read this"), words({"bos_token": "<bos>"}), "comma", None)


def test_the_chat_template_becomes_text_around_the_turn_without_its_bos() -> None:
    tokenizer = words({"bos_token": "<bos>", "chat_template": LLAMA_CHAT})
    assert wrap_of(tokenizer, "chat") == Wrap("<|start|>user\n", "<|end|><|start|>assistant\n")
    assert wrap_of(tokenizer, "base") == Wrap()


@pytest.mark.parametrize(
    ("template", "says"),
    [(None, "has no chat template"), ("{{ oops", "cannot be rendered"), ("fixed", "drops the user's turn"),
     ("{{ raise_exception('system first') }}", "system first")],
)  # fmt: skip
def test_a_chat_template_that_cannot_serve_is_named(template: str | None, says: str) -> None:
    with pytest.raises(ModelError, match=says):
        wrap_of(words({"bos_token": "<bos>", "chat_template": template}), "chat")


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
