"""Our model in lm-eval against its own `hf` model: the same rows, the same tasks, the same weights."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from lm_eval_files import TINY, answers, write_folder
from other_models import other_weights

from anchoreval import evaluate
from anchoreval.errors import ModelError, UnsupportedArm

pytest.importorskip("lm_eval", reason="LM-EVAL ABSENT: pip install 'anchoreval[lm-eval]'; no plugin was tried")

pytestmark = pytest.mark.numeric
CHAT = (
    "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
# Rounding of a log-probability in float32: u per operation, at most `width` of them one after the other in a product,
# two products a sublayer, two sublayers a layer; errors add up like their root (Higham and Mary 2019), six deviations
# taken, on numbers up to 32.
CONFIG = json.loads((TINY / "config.json").read_text())
PER_TOKEN = 6 * 32 * 2**-24 * math.sqrt(CONFIG["intermediate_size"] * 4 * CONFIG["num_hidden_layers"])


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from lm_eval.tasks import TaskManager

    folder = write_folder(tmp_path_factory.mktemp("tasks"))
    return TaskManager(include_path=str(folder), include_defaults=False)


def run(model: str, tasks: Any, names: list[str] | None = None, **given: Any) -> dict[str, Any]:
    """What `simple_evaluate` makes of the tasks with a model by its name."""
    from lm_eval import simple_evaluate

    from anchoreval.lm_eval_plugin import register

    pytest.importorskip("accelerate", reason="ACCELERATE ABSENT: lm-eval's hf model, which is compared with, needs it")
    register()
    arguments = {"pretrained": str(TINY), "dtype": "float32", "device": "cpu"} | given.pop("args", {})
    chosen = names or ["own_choices", "own_pairs", "own_texts", "own_questions"]
    found: dict[str, Any] = simple_evaluate(
        model, arguments, tasks=chosen, bootstrap_iters=0, task_manager=tasks, **given
    )
    return found


def tokens(text: str) -> int:
    from anchoreval.tokenizer import load_tokenizer

    return load_tokenizer(TINY).count(text)


def assert_equal(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    for task, samples in theirs["samples"].items():
        mine = ours["samples"][task]
        assert [s["prompt_hash"] for s in mine] == [s["prompt_hash"] for s in samples]
        for row, (own, other) in enumerate(zip(answers(mine), answers(samples), strict=True)):
            for choice, (a, b) in enumerate(zip(own, other, strict=True)):
                if isinstance(b, str):
                    assert a == b, (task, row)
                    continue
                said = samples[row]["arguments"][choice][-1]
                (first, greedy), (second, likely) = (x if isinstance(x, tuple) else (x, None) for x in (a, b))
                assert greedy == likely, (task, row, choice)
                assert first == pytest.approx(second, abs=PER_TOKEN * (tokens(said) + 1)), (task, row, choice)
    for task, metrics in theirs["results"].items():
        for name, value in metrics.items():
            if isinstance(value, float):
                assert ours["results"][task][name] == pytest.approx(value, rel=1e-4), (task, name)


@pytest.fixture(scope="module")
def plain(tasks: Any) -> dict[str, Any]:
    return run("anchoreval", tasks)


def test_every_answer_and_log_probability_is_that_of_its_hf_model(tasks: Any, plain: dict[str, Any]) -> None:
    assert 1e-5 < PER_TOKEN < 3e-3
    assert_equal(plain, run("hf", tasks))
    assert all(text for (text,) in answers(plain["samples"]["own_questions"]))


def test_long_contexts_are_cut_as_its_hf_model_cuts_them(
    tasks: Any, plain: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    more = {"max_length": 48, "add_bos_token": True, "prefix_token_id": 5}
    ours, theirs = run("anchoreval", tasks, args=more), run("hf", tasks, args=more)
    assert_equal(ours, theirs)
    assert ours["config"]["anchoreval"]["cut_on_the_left"] > 10
    assert "prompts are cut on the left to 48 positions" in caplog.text
    assert answers(ours["samples"]["own_texts"]) != answers(plain["samples"]["own_texts"])


def test_chat_prompts_and_examples_are_those_of_its_hf_model(tasks: Any, tmp_path: Path) -> None:
    folder = shutil.copytree(TINY, tmp_path / "chatty")
    (folder / "chat_template.jinja").write_text(CHAT)
    given: dict[str, Any] = {
        "names": ["own_choices", "own_questions"], "num_fewshot": 2, "apply_chat_template": True, "limit": 3,
        "system_instruction": "Be brief.", "fewshot_as_multiturn": True, "args": {"pretrained": str(folder)},
    }  # fmt: skip
    ours, theirs = run("anchoreval", tasks, **given), run("hf", tasks, **given)
    assert_equal(ours, theirs)
    prompt = ours["samples"]["own_questions"][0]["arguments"][0][0]
    assert (
        prompt.startswith("<|bos|>")
        and prompt.count("<user>") == 3
        and "<system>Be brief." in prompt
        and prompt.endswith("<assistant>")
    )
    with pytest.raises(ModelError, match="no chat template"):
        run("anchoreval", tasks, **given | {"args": {}})


def test_the_tokenizer_is_that_of_run_where_transformers_class_loses_blanks(tmp_path: Path) -> None:
    from anchoreval.lm_eval_plugin.model import AnchorEvalLM
    from anchoreval.tokenizer import load_tokenizer
    from anchoreval.tokenizer.check import ORDINARY

    folder = shutil.copytree(TINY, tmp_path / "llama")
    told = json.loads((folder / "tokenizer_config.json").read_text()) | {"tokenizer_class": "LlamaTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps({k: v for k, v in told.items() if k != "backend"}))
    model = AnchorEvalLM(pretrained=str(folder))
    assert model.tok_encode(ORDINARY) == load_tokenizer(TINY).encode(ORDINARY, special_tokens=True)
    assert (model.prefix_token_id, model.eot_token_id) == (0, 1)


def test_a_template_that_never_ends_is_stopped_before_it_is_rendered_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from anchoreval.lm_eval_plugin.model import AnchorEvalLM
    from anchoreval.tokenizer import chat_template

    monkeypatch.setattr(chat_template, "SECONDS", 1)
    folder = shutil.copytree(TINY, tmp_path / "endless")
    loop = "{% for x in range(99999) %}"
    (folder / "chat_template.jinja").write_text(f"{loop}{loop}{'{% endfor %}' * 2}")
    with pytest.raises(ModelError, match="takes longer than 1 s"):
        AnchorEvalLM(pretrained=str(folder)).apply_chat_template([{"role": "user", "content": "x"}])


def test_a_template_that_hangs_over_one_turn_alone_is_stopped_and_goes_on_with_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from anchoreval.tokenizer import chat_template

    monkeypatch.setattr(chat_template, "SECONDS", 1)
    loop = "{% for x in range(99999) %}{% for y in range(99999) %}{% endfor %}{% endfor %}"
    bad = {"loop": loop, "pad": "{{ '%0999999999d' % 1 }}", "zero": "{{ 1 // 0 }}", "deep": "{{ f(f) }}"}
    cases = "".join(f"{{% if '{name}' in t %}}{text}{{% endif %}}" for name, text in bad.items())
    macro = "{% macro f(g) %}{{ g(g) }}{% endmacro %}{% set t = messages[0].content %}"
    renderer = chat_template.Renderer(macro + cases + "{{ bos_token }}<{{ t }}>", {"bos_token": "<s>"})
    kind = {"add_generation_prompt": True, "continue_final_message": False}
    says = {"loop": "longer than 1 s", "pad": "more than 256 MB", "zero": "ZeroDivisionError", "deep": "RecursionError"}
    for name, what in says.items():
        assert renderer.text([{"role": "user", "content": "a\nb"}], kind) == "<s><a\nb>"
        with pytest.raises(ModelError, match=what) as caught:
            renderer.text([{"role": "user", "content": name}], kind)
        assert "\n" not in str(caught.value)
    text = "é🙂 " * 400_000
    assert renderer.text([{"role": "user", "content": text}], kind) == f"<s><{text}>"


def test_choices_behind_one_context_are_one_request_and_contexts_share_their_beginning(
    tasks: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from anchoreval.backends.hf.backend import HfBackend
    from anchoreval.schema import Request

    sent: list[Request] = []
    answer = HfBackend.answer

    def counted(self: HfBackend, requests: Any) -> Any:
        sent.extend(requests)
        return answer(self, requests)

    monkeypatch.setattr(HfBackend, "answer", counted)
    run("anchoreval", tasks, ["own_choices"])
    # the blank at the end of the last context goes to its endings, so that its context is the first one's
    assert sorted(len(request.choices) for request in sent) == [5, 5, 5, 10]


def test_the_results_say_which_arm_was_computed(tasks: Any, plain: dict[str, Any]) -> None:
    args = {"rope": "bf16", "positions": "shift:4096"}
    shifted = run("anchoreval", tasks, ["own_choices"], limit=2, args=args)
    said = shifted["config"]["anchoreval"]
    assert said["arm"]["asked"]["name"] == "bf16+shift:4096" and said["arm"]["applied"]["positions"] == "shift:4096"
    assert said["backend"]["engine"] == "hf" and shifted["config"]["model_num_parameters"] > 1e6
    assert len({shifted["config"]["model_sha"], plain["config"]["model_sha"]}) == 1
    assert said["fingerprint"] != plain["config"]["anchoreval"]["fingerprint"]
    assert answers(shifted["samples"]["own_choices"])[0] != answers(plain["samples"]["own_choices"])[0]


def test_answers_are_greedy_or_refused(tasks: Any) -> None:
    for changed in ({"do_sample": True, "temperature": 0.7}, {"num_beams": 2}, {"max_gen_toks": 9000}):
        with pytest.raises(Exception, match="own_questions: ") as raised:
            run("anchoreval", tasks, ["own_questions"], gen_kwargs=changed, limit=1)
        assert type(raised.value).__name__ == "BadArgument"
    short = run("anchoreval", tasks, ["own_questions"], gen_kwargs={"max_gen_toks": 3, "top_p": 0.9}, limit=1)
    assert tokens(answers(short["samples"]["own_questions"])[0][0]) <= 3


def test_an_arm_that_needs_an_anchor_is_refused_for_prompts_without_one(tasks: Any) -> None:
    anchored = {"attention": "anchor"}
    with pytest.raises(UnsupportedArm, match="first token is the anchor"):
        run("anchoreval", tasks, ["own_questions"], limit=1, args=anchored | {"add_bos_token": False})
    whole = run("anchoreval", tasks, ["own_questions"], limit=1, args=anchored | {"add_bos_token": True})
    full = run("anchoreval", tasks, ["own_questions"], limit=1, args={"add_bos_token": True})
    assert answers(whole["samples"]["own_questions"]) == answers(full["samples"]["own_questions"])


@pytest.mark.parametrize(
    ("name", "arm", "length", "blocks"),
    [("niah_single_1", "bf16", 1024, None), ("vt", "anchor/fp32+anchor-reset", 512, 64)],
)
def test_answers_to_our_tasks_are_those_of_anchoreval_run_record_for_record(
    name: str, arm: str, length: int, blocks: int | None, tmp_path: Path
) -> None:
    from lm_eval.tasks import TaskManager

    from anchoreval.lm_eval_plugin.names import write_tasks

    limit, task = 6, f"anchor_ruler_{name}_{length}"
    given: dict[str, Any] = {"lengths": [length], "rope": arm, "limit": limit, "document_tokens": blocks}
    done = evaluate("anchor-tiny", f"ruler/{name}", output=tmp_path / "runs", **given)
    record_of = sorted(done.records, key=lambda record: record.index)
    (tmp_path / "tasks").mkdir()
    write_tasks(tmp_path / "tasks", [task], limit)
    args: dict[str, Any] = {"pretrained": "anchor-tiny", "arm": arm, "document_tokens": blocks}
    manager = TaskManager(include_path=str(tmp_path / "tasks"), include_defaults=False, metadata=args)
    found = run("anchoreval", manager, [task], args=args, limit=limit)
    samples = sorted(found["samples"][task], key=lambda sample: sample["doc_id"])
    assert [s["score"] for s in samples] == [record.score for record in record_of]
    assert [s["resps"][0][0] for s in samples] == [record.output for record in record_of]
    assert [s["prompt_hash"] for s in samples] == [record.prompt_sha256 for record in record_of]
    assert len(samples) == limit and found["results"][task]["score,none"] == pytest.approx(
        sum(record.score or 0 for record in record_of) / limit
    )


def test_two_models_have_the_scores_of_run_sample_by_sample(tmp_path: Path) -> None:
    from lm_eval.tasks import TaskManager

    from anchoreval.lm_eval_plugin.names import write_tasks

    models, task, limit = [tmp_path / "one", tmp_path / "two"], "anchor_ruler_vt_512", 2
    for folder in models:
        shutil.copytree(TINY, folder)
    other_weights(models[1])
    names = [str(folder) for folder in models]
    runs = evaluate(names, "ruler/vt", lengths=[512], arms="fp32", limit=limit, output=tmp_path / "runs")
    (tmp_path / "tasks").mkdir()
    write_tasks(tmp_path / "tasks", [task], limit)
    scores = []
    for name, done in zip(names, runs, strict=True):
        args = {"pretrained": name, "arm": "fp32", "dtype": "auto"}
        manager = TaskManager(include_path=str(tmp_path / "tasks"), include_defaults=False, metadata=args)
        samples = run("anchoreval", manager, [task], args=args, limit=limit)["samples"][task]
        theirs = {s["doc_id"]: (s["score"], s["resps"][0][0], s["prompt_hash"]) for s in samples}
        assert theirs == {r.index: (r.score, r.output, r.prompt_sha256) for r in done.records}
        scores.append([theirs[i][1] for i in sorted(theirs)])
    assert len(scores[0]) == limit and scores[0] != scores[1]


@pytest.mark.parametrize("bos", [None, True, False])
def test_token_ids_of_texts_are_those_of_its_hf_model(bos: bool | None) -> None:
    from lm_eval.models.huggingface import HFLM

    from anchoreval.lm_eval_plugin.model import AnchorEvalLM

    theirs = HFLM.__new__(HFLM)  # its tokenizer alone: no weights
    ours = AnchorEvalLM(pretrained=str(TINY), **({} if bos is None else {"add_bos_token": bos}))
    theirs.tokenizer, theirs.backend = ours.tokenizer, "causal"
    theirs.add_bos_token, theirs.custom_prefix_token_id = bos, None
    for text in ("On day 3", "<|bos|>On day 3", " <|bos|>On day 3 ", "<|eos|>", "\n\n", "Zoë \u4e2d"):
        assert ours._prompt_ids(text) == theirs.tok_batch_encode([text])[0][0].tolist(), text
        for special in (None, True, False):
            assert ours.tok_encode(text, special) == theirs.tok_encode(text, special), (text, special)
    assert (ours.prefix_token_id, ours.eot_token_id) == (theirs.prefix_token_id, theirs.eot_token_id)
    assert len(ours._prompt_ids("On day 3")) - len(ours.tok_encode("On day 3", False)) == (bos is not False)


def test_one_process_and_a_tokenizer_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from anchoreval.lm_eval_plugin.model import AnchorEvalLM

    folder = shutil.copytree(TINY, tmp_path / "words")
    model = AnchorEvalLM(pretrained="anchor-tiny", tokenizer=str(folder), batch_size=8)
    assert model.tokenizer_name.startswith(str(folder).replace("/", "__")) and model.max_length == 8192
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(Exception, match="in one process"):
        AnchorEvalLM(pretrained="anchor-tiny")
