"""Suites from outside the package: a task card with its module beside it, named by the user.

`--tasks ./mine/toy.yaml` names a card, `./mine/toy.yaml/first` one of its tasks, and `toy` a suite that an installed
package offers in the entry point group `anchoreval.suites` (a module, with `toy.yaml` beside it). The suite is called
like its card. A card's key `module` names the Python file beside it that has `SUITE`; a card without one uses the
generators and scorers of the package.

Only what a user names is run. A header holds the SHA-256 of card and module, and never leads to them.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from types import ModuleType

from anchoreval.cards import BETWEEN, Origin, SuiteCard, Task, load_card, load_tasks, pick, tasks_of
from anchoreval.cards.strict_yaml import one_line
from anchoreval.errors import AnchorEvalError, CardError, UnknownName
from anchoreval.files.source import executed, imported, line_of
from anchoreval.schema import Json, Sample, Score
from anchoreval.suites import NO_FACTS, Average, Generator, Rule, Scorer, Suite, generators, scorers
from anchoreval.suites.recipe import Make, Recipe

GROUP = "anchoreval.suites"
_CARD = re.compile(r"(?P<path>.*?\.yaml)(/(?P<rest>.+))?")
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*", re.ASCII)


@dataclass(frozen=True, slots=True)
class Named:
    """A suite from outside that a user named in this process."""

    place: str
    origin: Origin
    suite: Suite
    tasks: Mapping[str, Task]
    sets: Mapping[str, tuple[str, ...]]


#: Every suite that was named, by the hashes of its card and module; the newest last.
_NAMED: dict[Origin, Named] = {}


def pick_outside(
    names: str, tasks: dict[str, Task], sets: dict[str, tuple[str, ...]]
) -> tuple[list[Task], frozenset[str]]:
    """Return what `suites.select_tasks` returns for names of which some are of suites from outside, which are run."""
    chosen: list[str] = []
    for name in re.split(BETWEEN, names.strip()):
        card = _CARD.fullmatch(name)
        suite, _, rest = name.partition("/")
        if card is not None:
            suite_named, rest = of_card(Path(card["path"]).expanduser()), card["rest"] or ""
        elif suite not in {task.suite for task in tasks.values()} and suite in offered():
            suite_named = of_package(suite)
        else:
            chosen.append(name)
            continue
        suite = next(iter(suite_named.tasks)).partition("/")[0]
        if any(task.suite == suite and task.outside != suite_named.origin for task in tasks.values()):
            raise CardError(f"{suite_named.place}: another suite of this command is called {suite}: rename the file")
        tasks, sets = {**tasks, **suite_named.tasks}, {**sets, **suite_named.sets}
        chosen.append(rest if rest in suite_named.sets else f"{suite}/{rest}" if rest else suite)
    return pick(",".join(chosen), tasks, sets)


def name_suites(names: str) -> None:
    """Run the suites that `names` stand for, cards or suites of installed packages; raise CardError for other names."""
    for name in filter(None, re.split(BETWEEN, names.strip())):
        if _CARD.fullmatch(name):
            of_card(Path(name).expanduser())
        elif name in offered():
            of_package(name)
        else:
            raise UnknownName("suite from outside the package (a path to CARD.yaml)", name, offered())


def of_card(path: Path) -> Named:
    """Return the suite of a card; run the module beside it. Raise CardError with the file and what is wrong."""
    card = load_card(path, SuiteCard)
    if card.module is None:
        return _named(str(path), path, None, Suite(generators={}))
    source = path.parent / card.module
    if source.parent != path.parent or source.suffix != ".py":
        raise CardError(f"{path}: module: {card.module!r} is no name of a Python file beside the card")
    try:
        module, digest = executed(source)
    except ImportError as error:
        raise CardError(f"{path}: module: {error}") from error
    return _named(str(path), path, digest, _suite(source, module))


def of_package(name: str) -> Named:
    """Return the suite that an installed package offers under a name; its module is imported."""
    points = {point.value for point in metadata.entry_points(group=GROUP, name=name)}
    if len(points) != 1:
        raise CardError(f"suite {name}: {len(points)} installed packages offer it in the entry point group {GROUP}")
    (module_name,) = points
    try:
        module, digest = imported(module_name)
    except ImportError as error:
        raise CardError(f"suite {name} of an installed package: {error}") from error
    source = Path(str(module.__file__))
    return _named(name, source.with_name(f"{name}.yaml"), digest, _suite(source, module))


def offered() -> frozenset[str]:
    """Return the names that installed packages offer; this reads only their metadata."""
    return frozenset(metadata.entry_points(group=GROUP).names)


def _suite(source: Path, module: ModuleType) -> Suite:
    """Return the module's suite, whose generators and scorers raise nothing but one line that names the file."""
    suite = getattr(module, "SUITE", None)
    if not isinstance(suite, Suite):
        raise CardError(f"{source}: SUITE is {type(suite).__name__}, no anchoreval.suites.Suite")
    for values, kind in ((suite.generators, Generator), (suite.scorers, Scorer), (suite.averages, Average)):
        if wrong := [name for name, value in values.items() if not isinstance(value, kind)]:
            raise CardError(f"{source}: SUITE: {wrong[0]!r} is {type(values[wrong[0]]).__name__}, no {kind.__name__}")
    generators, scorers = {}, {}
    for name, generator in suite.generators.items():
        generators[name] = replace(generator, make=_guarded_make(f"{source}: {name}", generator.make))
    for name, scorer in suite.scorers.items():
        scorers[name] = replace(scorer, rule=_guarded_rule(f"{source}: {name}", scorer.rule))
    return replace(suite, generators=generators, scorers=scorers)


def _guarded_make(where: str, make: Make) -> Make:
    def guarded(recipe: Recipe) -> Iterator[Sample]:
        with _one_line(f"{where} failed at {recipe.task}"):
            yield from make(recipe)

    return guarded


def _guarded_rule(where: str, rule: Rule) -> Rule:
    def guarded(answer: str, references: Sequence[str], facts: Mapping[str, Json] = NO_FACTS) -> Score:
        with _one_line(f"{where} failed at the answer {answer[:40]!r}"):
            score = rule(answer, references, facts)
        if not isinstance(score, Score):
            raise CardError(f"{where} returned {type(score).__name__}, no Score")
        return score

    return guarded


@contextlib.contextmanager
def _one_line(what: str) -> Iterator[None]:
    """Raise CardError of one line for the errors of code from outside."""
    try:
        yield
    except AnchorEvalError:
        raise
    except Exception as error:
        raise CardError(f"{what}: {line_of(error)}") from error


def _named(place: str, path: Path, module: str | None, suite: Suite) -> Named:
    """Return the suite with its tasks, and keep it; raise CardError for a card that does not go with it."""
    if not _NAME.fullmatch(path.stem):
        raise CardError(f"{path}: the suite is called like its card: letters, digits, '.', '_' and '-'")
    rows, sets = tasks_of(path)
    origin = Origin(card=hashlib.sha256(path.read_bytes()).hexdigest(), module=module)
    for task in rows:
        if not _NAME.fullmatch(task.name):
            raise CardError(f"{path}: tasks > {task.name!r}: a name has letters, digits, '.', '_' and '-'")
        kinds = (("generator", suite.generators, generators()), ("scorer", suite.scorers, scorers()))
        for kind, own, known in kinds:
            if (name := getattr(task, kind)) not in {**own, **known}:
                raise CardError(f"{path}: tasks > {task.name} > {UnknownName(kind, name, [*own, *known])}")
    tasks = {task.address: task.model_copy(update={"outside": origin}) for task in rows}
    if not tasks:
        raise CardError(f"{path}: tasks: there is none")
    if taken := load_tasks()[1].keys() & {path.stem, *sets}:
        raise CardError(f"{path}: a suite or set of the package is called {min(taken)}: rename it")
    members = {name: tuple(f"{path.stem}/{member}" for member in of) for name, of in sets.items()}
    named = Named(place, origin, suite, tasks, {path.stem: tuple(tasks), **members})
    _NAMED.pop(origin, None)
    _NAMED[origin] = named
    return named


def named_suites() -> list[Named]:
    """Return the suites that were named in this process, the newest first."""
    return list(reversed(_NAMED.values()))


def known_tasks() -> tuple[dict[str, Task], dict[str, tuple[str, ...]]]:
    """Return all tasks and sets of the package and of the suites that were named, the newest of each name."""
    tasks, sets = load_tasks()
    for one in named_suites():
        tasks, sets = {**one.tasks, **tasks}, {**one.sets, **sets}
    return tasks, sets


def named(origin: Origin | Mapping[str, Json], task: str) -> Named:
    """Return the suite of these hashes; raise CardError if the user did not name it, or named another one."""
    if not isinstance(origin, Origin):
        origin = Origin(card=origin["card"], module=origin.get("module"))
    if origin in _NAMED:
        return _NAMED[origin]
    suite = task.partition("/")[0]
    asked = f"{task} is of a suite from outside the package ({_hashes(origin)})"
    for other in named_suites():
        if any(one.suite == suite for one in other.tasks.values()):
            is_ = f"{other.place} is another ({_hashes(other.origin)})"
            raise CardError(f"{asked}, and {is_}: name the card and module that the run was made with")
    raise CardError(f"{asked}, which is run only where you name it: --tasks PATH/{suite}.yaml")


def _hashes(origin: Origin) -> str:
    card, module = (one_line(digest[:12]) if digest else "none" for digest in (origin.card, origin.module))
    return f"card {card}, module {module}"
