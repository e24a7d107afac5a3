"""Arms from outside: read without a look at them, imported for those that a user typed, and never let into a run."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from hashlib import sha256
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import pytest

from anchoreval.arms import outside
from anchoreval.arms.arm import Arm, parse_arm
from anchoreval.errors import AnchorEvalError, UnknownName, UnsupportedArm

Write = Callable[[str], str]

KINDS = """
import contextlib
@contextlib.contextmanager
def good(model, value="none"):
    model.append(value)
    yield
    model.pop()
@contextlib.contextmanager
def silent(model):
    if False: yield
@contextlib.contextmanager
def clings(model):
    yield
    raise ValueError("will not go")
@contextlib.contextmanager
def swallows(model):
    with contextlib.suppress(BaseException):
        yield
def raises(model): raise RuntimeError("not on this model\\nat all")
def plain(model): return 3
number = 3
"""


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """`write(text)` is the name of a module with that text, which is forgotten after the test."""
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)

    def written(text: str) -> str:
        name = f"arm_of_test_{len(list(tmp_path.iterdir()))}"
        (tmp_path / f"{name}.py").write_text(text, "utf-8")
        return name

    yield written
    for name in set(sys.modules) - before:
        del sys.modules[name]


def on(arm: Arm, model: list[str]) -> list[Any]:
    with outside.installed(model, arm.outside) as said:
        assert model
        return said


def test_an_arm_is_parsed_without_a_look_at_what_it_names(write: Write) -> None:
    name = write("raise SystemExit('imported')")
    arm = parse_arm(f"fp32+x:{name}:factory")
    assert arm.name == f"fp32+x:{name}:factory" and name not in sys.modules
    assert parse_arm("fp32+x:nothing.of.the.kind:factory:12").outside[0].value == "12"


def test_a_settled_arm_has_the_hash_of_its_source_in_its_fingerprint(write: Write, tmp_path: Path) -> None:
    name = write(KINDS)
    arm = parse_arm(f"fp32+x:{name}:good")
    digest = sha256((tmp_path / f"{name}.py").read_bytes()).hexdigest()
    assert arm.settled("hf").asked()["outside"] == [{"name": f"x:{name}:good", "sha256": digest}]
    assert len({parse_arm("fp32").fingerprint(), arm.fingerprint(), arm.settled("hf").fingerprint()}) == 3
    assert arm.settled("hf").name == arm.name and parse_arm("fp32").settled("hf") == parse_arm("fp32")


def test_a_header_gives_its_hashes_and_nothing_is_looked_up(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outside.metadata, "entry_points", None)
    name = write("raise SystemExit('imported')")
    arm = parse_arm(f"fp32+press:0.5+x:{name}:f", outside={f"x:{name}:f": "ab", "press:0.5": "cd"})
    assert [one["sha256"] for one in arm.asked()["outside"]] == ["cd", "ab"]
    with pytest.raises(UnknownName, match=r"'press:0\.5'"):
        parse_arm("fp32+press:0.5", outside={})


def test_a_factory_is_given_the_model_and_the_value(write: Write) -> None:
    name, model = write(KINDS), ["stock"]
    with outside.installed(model, parse_arm(f"fp32+x:{name}:good:7+x:{name}:good").outside) as said:
        assert model == ["stock", "none", "7"] and [one["factory"] for one in said] == [f"{name}:good"] * 2
    assert model == ["stock"]


@pytest.mark.parametrize(
    ("factory", "says"),
    [
        ("absent", "has no absent"),
        ("number", "cannot be called: it is int"),
        ("raises", "its factory failed: RuntimeError: not on this model at all"),
        ("plain", "its factory returned int, which is no context manager"),
        ("silent", "entering it failed: RuntimeError: generator didn't yield"),
        ("clings", "leaving it failed: ValueError: will not go"),
    ],
)
def test_what_is_no_context_manager_is_refused_in_one_line(write: Write, factory: str, says: str) -> None:
    name = write(KINDS)
    with pytest.raises(UnsupportedArm, match=re.escape(says)) as caught:
        on(parse_arm(f"fp32+x:{name}:{factory}"), ["stock"])
    assert f"'+x:{name}:{factory}'" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("raise SystemExit('gone')", "importing .* failed: SystemExit: gone"),
        ("import no_such_library", "no module 'no_such_library': install it, or put its folder on PYTHONPATH"),
        ("from math import nothing", "failed: ImportError: cannot import name"),
        ("def f(", "failed: SyntaxError"),
    ],
)
def test_a_module_that_cannot_be_imported_is_one_line(write: Write, text: str, says: str) -> None:
    with pytest.raises(UnsupportedArm, match=says) as caught:
        parse_arm(f"fp32+x:{write(text)}:f").settled("hf")
    assert "\n" not in str(caught.value)


def test_a_source_that_changed_since_it_was_imported_is_refused(write: Write, tmp_path: Path) -> None:
    name = write(KINDS)
    arm = parse_arm(f"fp32+x:{name}:good").settled("hf")
    (tmp_path / f"{name}.py").write_text(KINDS + "# other\n", "utf-8")
    with pytest.raises(UnsupportedArm, match="changed since it was imported: start Python anew"):
        arm.settled("hf")


def test_another_source_than_that_of_the_run_is_refused(write: Write) -> None:
    name = write(KINDS)
    with pytest.raises(UnsupportedArm, match=r"its source here has sha256 .*, that of the run abcd"):
        on(parse_arm(f"fp32+x:{name}:good", outside={f"x:{name}:good": "abcd"}), ["stock"])


@pytest.mark.parametrize("factory", ["good", "swallows", "clings"])
def test_errors_of_the_run_are_not_the_arm_s_to_swallow_and_it_is_taken_off_after_them(
    write: Write, factory: str
) -> None:
    name, model = write(KINDS), ["stock"]
    with pytest.raises(KeyError), outside.installed(model, parse_arm(f"fp32+x:{name}:{factory}").outside):
        raise KeyError
    assert model == ["stock"]


def offer(monkeypatch: pytest.MonkeyPatch, **places: str) -> None:
    points = EntryPoints(EntryPoint(name, place, outside.GROUP) for name, place in places.items())
    monkeypatch.setattr(outside.metadata, "entry_points", points.select)


def test_an_installed_package_offers_an_arm_by_name(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    name = write(KINDS)
    offer(monkeypatch, press=f"{name}:good")
    arm = parse_arm("fp32+press:0.5")
    assert name not in sys.modules and arm.name == "fp32+press:0.5"
    assert on(arm, ["stock"])[0]["factory"] == f"{name}:good"
    with pytest.raises(UnknownName, match="did you mean press"):
        parse_arm("fp32+pres")


def test_a_name_that_no_package_offers_any_more_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, press="gone:good")
    arm = parse_arm("fp32+press")
    offer(monkeypatch)
    with pytest.raises(UnsupportedArm, match=r"0 installed packages offer it .* group anchoreval\.arms"):
        arm.settled("hf")


@pytest.mark.parametrize("backend", ["fake", "openai", "vllm"])
def test_other_backends_refuse_it_by_name_and_say_which_can(backend: str) -> None:
    with pytest.raises(UnsupportedArm, match=f"{backend} cannot compute outside 'x:a:f', only hf can"):
        parse_arm("fp32+x:a:f").settled(backend)


def test_no_spelling_leaves_the_grammar() -> None:
    for text in ("x", "x:", "x:a", "x:a:", "x:.a:f", "x:a-b:f", "x:a:f:", "x:a:f:1:2", "x:a:f:b=c", "X:a:f", "prêt"):
        with pytest.raises(AnchorEvalError):
            parse_arm(f"fp32+{text}")
