"""Workers that die, without a cluster: which sample has failed, who computes the rest, when no more are opened."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from anchoreval import evaluate
from anchoreval.backends.fake import FakeBackend
from anchoreval.errors import RunError
from anchoreval.records.run import Run
from anchoreval.runs.identity import environment_of
from anchoreval.runs.verify.records import findings
from anchoreval.runs.workers.actors import TRIES, Fleet, Opening
from anchoreval.schema import Request


class ActorDied(Exception):
    """As Ray says it."""


class TaskFailed(Exception):
    """As Ray says it."""


class NoCluster:
    """What the fleet uses of Ray, in this process: `dies` says of a sample, `opens` of a worker by its number."""

    exceptions = SimpleNamespace(RayActorError=ActorDied, RayTaskError=TaskFailed)

    def __init__(self, dies: Callable[[str], bool], opens: Callable[[int], bool] = lambda _: True) -> None:
        self.dies, self.opens, self.opened, self.sent, self.deaths = dies, opens, 0, list[list[str]](), list[str]()

    def put(self, value: Any) -> Any:
        return value

    def remote(self, _: Any) -> Any:
        return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=self._worker))

    def _worker(self, opening: Opening) -> Any:
        number, self.opened = self.opened, self.opened + 1
        backend = FakeBackend.open(opening.model, **opening.options)

        def about() -> Any:
            if not self.opens(number):
                return ActorDied("The actor died unexpectedly: out of memory")
            return backend.fingerprint, backend.describe() | {"environment": environment_of(backend.describe())}

        def applied(arm: Any) -> Any:
            with backend.under(arm) as said:
                return dict(said)

        def answer(_: Any, requests: Sequence[Request]) -> Iterator[Any]:
            self.sent.append([request.sample_id for request in requests])
            for request in requests:
                if self.dies(request.sample_id):
                    self.deaths.append(request.sample_id)
                    yield ActorDied("killed")
                    return
                yield from backend.answer([request])

        return SimpleNamespace(**{each.__name__: SimpleNamespace(remote=each) for each in (about, applied, answer)})

    @staticmethod
    def wait(waiting: list[Any], **_: Any) -> tuple[list[Any], list[Any]]:
        return waiting[:1], waiting[1:]

    @staticmethod
    def get(value: Any) -> Any:
        if isinstance(value, Exception):
            raise value
        return value

    def kill(self, _: Any) -> None:
        """Nothing."""


def run(output: Path, ray: NoCluster, monkeypatch: pytest.MonkeyPatch, workers: int = 2, **changes: Any) -> Run:
    def opened(opening: Opening, _: Any) -> Fleet:
        fleet = Fleet(opening.workers or 1, ray, opening, {"num_cpus": 1})
        fleet._start()
        return fleet

    monkeypatch.setattr(Fleet, "open", opened)
    asked: dict[str, Any] = {"lengths": [512], "rope": "bf16", "backend": "fake", "ray": "local", "limit": 6} | changes
    return evaluate("anchor-tiny", "ruler/vt", output=output, workers=workers, **asked)


def outcomes(result: Run) -> dict[int, str | None]:
    return {record.index: record.outcome for record in result.records}


def test_a_sample_that_kills_its_worker_fails_alone_after_three_deaths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = NoCluster(lambda name: name.endswith("#2"))
    result = run(tmp_path, ray, monkeypatch)
    assert outcomes(result) == {0: "answered", 1: "answered", 2: "failed"} | dict.fromkeys((3, 4, 5), "answered")
    assert ray.deaths == ["ruler/vt@512#2"] * TRIES
    (lost,) = [record for record in result.records if record.score is None]
    assert (lost.sample_id, lost.why) == ("ruler/vt@512#2", "3 workers died on it")
    assert not [str(each) for each in findings(result.path) if each.differs]


def test_what_came_before_a_death_is_not_computed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deaths = iter([True])
    ray = NoCluster(lambda name: name.endswith("#3") and next(deaths, False))
    assert set(outcomes(run(tmp_path, ray, monkeypatch)).values()) == {"answered"}
    assert ray.sent == [[f"ruler/vt@512#{i}" for i in range(6)], [f"ruler/vt@512#{i}" for i in range(3, 6)]]


def test_several_samples_that_kill_fail_and_the_others_have_their_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = NoCluster(lambda name: name.endswith(("#0", "#4")))
    found = outcomes(run(tmp_path, ray, monkeypatch, rope="bf16"))
    assert [index for index, outcome in found.items() if outcome == "failed"] == [0, 4]
    assert len(found) == 6


def test_the_next_call_asks_what_killed_its_worker_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path, NoCluster(lambda name: name.endswith("#0")), monkeypatch, limit=2)
    ray = NoCluster(lambda _: False)
    assert set(outcomes(run(tmp_path, ray, monkeypatch, limit=3)).values()) == {"answered"}
    assert ray.sent == [["ruler/vt@512#2"], ["ruler/vt@512#0"]]


def test_workers_that_cannot_open_are_tried_a_number_of_times_and_named_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for workers in (1, 4):
        ray = NoCluster(lambda _: False, opens=lambda _: False)
        with pytest.raises(RunError, match=r"^3 workers died while they opened their backend: .*memory") as caught:
            run(tmp_path, ray, monkeypatch, workers=workers)
        assert "\n" not in str(caught.value) and ray.opened == TRIES - 1 + workers
        assert not list(tmp_path.iterdir())


def test_a_run_ends_with_the_workers_that_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = NoCluster(lambda _: False, opens=lambda number: number == 0)
    result = run(tmp_path, ray, monkeypatch, workers=3, rope="bf16,fp32")
    assert len(result.records) == 12 and ray.opened <= 3 + TRIES


def test_the_arms_of_a_group_share_one_copy_of_its_prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = NoCluster(lambda _: False)
    put: list[int] = []
    monkeypatch.setattr(ray, "put", lambda requests: put.append(len(requests)) or requests)
    result = run(tmp_path, ray, monkeypatch, rope="bf16,fp32,bf16-table")
    assert put == [6] and len(result.records) == 18 and result.header["workers"] == 2
