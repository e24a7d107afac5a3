"""What lm-eval's command line and its API make of `--model_args` and `--metadata`, as we read it."""

from __future__ import annotations

from typing import Any

import pytest

from anchoreval.arms.arm import parse_arm
from anchoreval.errors import UnsupportedArm
from anchoreval.lm_eval_plugin import names
from anchoreval.lm_eval_plugin.arguments import BadArgument, model_arguments, prompt_arguments, settings
from anchoreval.suites import settings as settings_of_suites

pytest.importorskip("lm_eval", reason="LM-EVAL ABSENT: pip install 'anchoreval[lm-eval]'; no arguments were read")


def parsed(text: str) -> dict[str, Any]:
    """What lm-eval's command line makes of a value of --model_args."""
    from lm_eval._cli.utils import key_val_to_dict

    return {"pretrained": "anchor-tiny"} | key_val_to_dict(text)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("", "native"),
        ("rope=fp32", "fp32"),
        ("rope=bf16,positions=shift:64,attention=anchor", "anchor/bf16+shift:64"),
        ("positions=reset", "native+reset"),
        ("arm=intra-doc/fp32+reset", "intra-doc/fp32+reset"),
        ("arm=fp32~placebo", "fp32~placebo"),
        ('rope="rope:angle=bf16,rotate=bf16"', "rope:angle=bf16,rotate=bf16"),
    ],
)
def test_an_arm_is_named_by_its_parts_or_in_one_word(text: str, name: str) -> None:
    assert model_arguments(parsed(text)).as_arm("auto") == parse_arm(name)


def test_what_the_command_line_makes_floats_of_are_whole_numbers() -> None:
    assert parsed("seed=-1")["seed"] == -1.0 and isinstance(parsed("seed=-1")["seed"], float)  # the trap
    seed = prompt_arguments(parsed("seed=-1")).seed
    assert seed == -1 and isinstance(seed, int)
    assert model_arguments(parsed("max_length=2e3")).max_length == 2000
    assert model_arguments({"pretrained": "M", "rows": "4", "add_bos_token": "False"}).engine() == {"rows": 4}
    assert settings(parsed("depths=3.0,needles=2,depth_spacing=sigmoid"), ["depths", "depth_spacing"]) == {
        "depths": 3, "depth_spacing": "sigmoid",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("ropes=fp32", "unknown ropes (known: pretrained, "),
        ("backend=causal", "the name of the model chooses"),
        ("max_length=1.5", "max_length=1.5 is not a whole number"),
        ("rows=many", "rows='many' is not a whole number"),
        ("rows=True", "rows=True is not a whole number"),
        ("trust_remote_code=1", "neither True nor False"),
        ("pretrained=", "pretrained=MODEL is needed"),
        ("template=chats", "not one of base, chat"),
    ],
)
def test_an_argument_that_is_wrong_is_named_with_what_it_may_be(text: str, says: str) -> None:
    with pytest.raises(BadArgument) as raised:
        model_arguments(parsed(text))
        prompt_arguments(parsed(text))
    assert says in str(raised.value)


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("template_args=enable_thinking=false", {"enable_thinking": False}),
        ("template_args=enable_thinking=False;mood=calm;n=2", {"enable_thinking": False, "mood": "calm", "n": 2}),
        ('template_args={"enable_thinking": false}', {"enable_thinking": False}),
    ],
)
def test_arguments_of_a_chat_template_and_no_anchor_are_taken(text: str, read: dict[str, Any]) -> None:
    asked = prompt_arguments(parsed(f"{text},template=chat,anchor=none"))
    assert asked.template_args == read and (asked.template, asked.anchor) == ("chat", "none")
    assert prompt_arguments({}).template_args is None and prompt_arguments({}).anchor == "auto"


@pytest.mark.parametrize("value", ["thinking", "a=[1]", {"a": [1]}])
def test_arguments_of_a_chat_template_that_are_none_are_named(value: Any) -> None:
    with pytest.raises(BadArgument, match="template_args"):
        prompt_arguments({"template_args": value})


def test_no_anchor_reaches_the_prompts_of_our_tasks() -> None:
    from anchoreval.lm_eval_plugin.model import AnchorEvalLM
    from anchoreval.lm_eval_plugin.tasks import documents, sample_of

    given = {"pretrained": "anchor-tiny", "anchor": "none"}
    doc = documents(given | {"anchoreval": {"task": "ruler/vt", "length": 512, "limit": 1}})[0]
    sample = sample_of(doc)
    assert sample is not None
    bare, whole = (AnchorEvalLM(**given | {"anchor": each})._own(sample) for each in ("none", "auto"))
    assert whole.token_ids[1:] == bare.token_ids and -1 not in bare.segment_ids
    with pytest.raises(UnsupportedArm, match="needs the anchor token"):
        AnchorEvalLM(**given, arm="anchor/fp32")


def test_an_arm_in_one_word_is_all_of_it() -> None:
    with pytest.raises(BadArgument, match="leave out positions"):
        model_arguments(parsed("arm=fp32,positions=reset")).as_arm("auto")


def test_whatever_else_lm_eval_hands_to_a_builder_is_left_alone() -> None:
    given = parsed("max_seq_lengths=[4096,8192],rope=bf16,seed=7") | {"config_source": "x", "version": 1.0}
    assert given["max_seq_lengths"] == [4096, 8192]
    assert prompt_arguments(given).seed == 7


def test_every_setting_of_a_suite_may_stand_among_the_arguments_of_a_model() -> None:
    assert model_arguments({"pretrained": "M"} | dict.fromkeys(settings_of_suites(), 3)).pretrained == "M"


def test_options_of_the_engine_are_model_arguments_and_those_of_hf_are_not() -> None:
    given = {"pretrained": "anchor-tiny", "max_num_seqs": 8.0, "rope": "fp32"}
    assert model_arguments(given, "vllm").engine() == {"max_num_seqs": 8}
    with pytest.raises(BadArgument, match=r"unknown chunk_tokens \(known: .*tensor_parallel_size"):
        model_arguments({"pretrained": "anchor-tiny", "chunk_tokens": 64}, "vllm")


def test_lengths_are_what_names_end_with() -> None:
    asked = ["anchor_ruler_vt_777", "anchor_ruler_96", "hellaswag_5", "anchor_ruler_*", "anchor_niah_single_0"]
    assert names.asked_lengths(asked) == {777, 96}
    assert [names.certainly_ours(name) for name in ("anchor_ruler_vt_777", "anchoreval", "a*", "hellaswag")] == [
        True, True, False, False,
    ]  # fmt: skip
