"""Runs whose prompts have another form, made again from their headers: template arguments, our anchor or none."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from anchoreval import evaluate
from anchoreval.cards import find_model
from anchoreval.cli import parser as cli
from anchoreval.errors import AnchorEvalError, UnsupportedArm
from anchoreval.records.run import Run
from anchoreval.runs.verify.records import findings

TINY = Path(find_model("anchor-tiny")[1].checkpoint)
TEMPLATE = (
    "{{ eos_token }}{{ '<|pad|>system\\nmade by people who care. Some\\n' }}{% for m in messages %}"
    "{{ '<|pad|>' + m['role'] + '\\n' + m['content'] + '\\n' }}{% endfor %}{{ '<|pad|>assistant\\n' }}"
    "{% if thinking is defined and not thinking %}{{ 'no thoughts\\n' }}{% endif %}"
)


@pytest.fixture(scope="module")
def olmo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model with a tokenizer that names no BOS and puts nothing in front, and a template that begins with
    EOS.
    """
    place = tmp_path_factory.mktemp("models") / "olmo"
    shutil.copytree(TINY, place)
    told = json.loads((place / "tokenizer_config.json").read_text("utf-8")) | {"bos_token": None}
    (place / "tokenizer_config.json").write_text(json.dumps(told))
    rules = json.loads((place / "tokenizer.json").read_text("utf-8")) | {"post_processor": None}
    (place / "tokenizer.json").write_text(json.dumps(rules))
    (place / "chat_template.jinja").write_text(TEMPLATE)
    return place


def run(model: Path, output: Path, told: list[str] | None = None, **changes: Any) -> Run:
    asked: dict[str, Any] = {"lengths": [512], "limit": 1, "backend": "fake", "haystack": "generated"}
    tell = (told if told is not None else []).append
    return evaluate(str(model), "ruler/niah_single_1", output=output, tell=tell, **{**asked, **changes})


def assert_made_again(result: Run) -> None:
    assert [finding for finding in findings(result.path) if finding.differs] == []


def test_an_anchor_that_the_tokenizer_does_not_put_is_said_to_be_ours(olmo: Path, tmp_path: Path) -> None:
    told: list[str] = []
    ours = run(olmo, tmp_path, told)
    assert ours.header["tokenizer"]["anchor_from"] == "anchoreval"
    assert ours.header["tokenizer"]["anchor_token"] == "<|eos|>"
    assert ours.header["tokenizer"]["read_by_transformers"] == "TokenizersBackend, the same tokens"
    assert [line for line in told if "puts no token in front" in line and "'<|eos|>'" in line and "EOS" in line]
    assert run(TINY, tmp_path).header["tokenizer"]["anchor_from"] == "tokenizer"
    told = []
    bare = run(olmo, tmp_path, told, anchor="none")
    said = bare.header["tokenizer"]
    assert (said["anchor_from"], said["anchor_token"], bare.header["identity"]["anchor"]) == ("none", None, "none")
    assert not [line for line in told if "in front" in line]
    assert bare.records[0].prompt_tokens == ours.records[0].prompt_tokens - 1
    assert bare.records[0].prompt_sha256 == ours.records[0].prompt_sha256 and bare.path != ours.path
    assert_made_again(ours)
    assert_made_again(bare)


def test_without_an_anchor_arms_that_act_on_it_are_refused_by_name(olmo: Path, tmp_path: Path) -> None:
    for arm in ("anchor/fp32", "fp32+anchor-shift:8", "fp32+anchor-reset"):
        with pytest.raises(UnsupportedArm, match="needs the anchor token: leave out --anchor none"):
            run(olmo, tmp_path, rope=f"bf16,{arm}", anchor="none")
    kept = run(olmo, tmp_path, rope="bf16,intra-doc/fp32+reset", anchor="none")
    assert {record.arm for record in kept.records} == {"bf16", "intra-doc/fp32+reset"}


def test_a_template_that_begins_with_eos_is_used_and_its_words_are_left_alone(olmo: Path, tmp_path: Path) -> None:
    told: list[str] = []
    result = run(olmo, tmp_path, told, template="chat")
    assert result.header["tokenizer"]["anchor_from"] == "tokenizer" and not told[1:]
    assert_made_again(result)
    (olmo / "chat_template.jinja").write_text(TEMPLATE.replace("people", "folk"))
    again = run(olmo, tmp_path, template="chat")
    assert again.path != result.path
    with pytest.raises(AnchorEvalError, match=r"chat template of .* is not the one that the run"):
        list(findings(result.path))
    (olmo / "chat_template.jinja").write_text(TEMPLATE)


def test_arguments_of_a_template_are_part_of_the_run(olmo: Path, tmp_path: Path) -> None:
    plain, args = run(olmo, tmp_path, template="chat"), {"thinking": False}
    result = run(olmo, tmp_path, template="chat", template_args=args)
    assert result.header["identity"]["template_args"] == result.header["template_args"] == args
    assert result.path != plain.path and result.records[0].prompt_sha256 != plain.records[0].prompt_sha256
    assert_made_again(result)
    with pytest.raises(AnchorEvalError, match="add --template chat"):
        run(olmo, tmp_path, template_args=args)


def code_of(words: list[str]) -> int | str | None:
    """The exit code of a command; the parser ends by SystemExit."""
    try:
        return cli.main(words)
    except SystemExit as error:
        return error.code


def test_the_command_line_takes_template_arguments(olmo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    show = ["show", "ruler/niah_single_1@512#0", "--tokenizer", str(olmo), "--haystack", "generated"]
    assert cli.main([*show, "--template", "chat", "--template-args", "thinking=false"]) == 0
    text = capsys.readouterr().out
    assert "made by people who care. Some\n" in text and "A special magic number is hidden" in text
    assert "no thoughts\n" in text
    for more, says in (
        (["--template-args", "thinking=false"], "add --template chat"),
        (["--template", "chat", "--template-args", "thinkng=1"], "reads no thinkng"),
        (["--template", "chat", *["--template-args", "thinking=1"] * 2], "given twice"),
    ):
        assert code_of([*show, *more]) == 2
        error = capsys.readouterr().err
        assert says in error and error.count("\n") == 1


def test_api_chat_with_a_chat_template_of_ours_is_refused_before_anything_is_asked(olmo: Path, tmp_path: Path) -> None:
    options = {"base_url": "http://127.0.0.1:9/v1", "api": "chat"}
    given: dict[str, Any] = {"backend": "openai", "tokenizer": str(olmo), "options": options, "template": "chat"}
    with pytest.raises(AnchorEvalError, match="the server applies the chat template itself"):
        run(olmo, tmp_path, **given)
