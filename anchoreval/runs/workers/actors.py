"""Backends as Ray actors. The driver makes the prompts, hands out units and is the only process that writes records.

Outputs stream back one by one, so each answer of a worker is on disk before the worker goes on. A worker that dies is
replaced, on another node if its own is gone, and its remaining requests go to any free worker. A unit that kills a
second worker is handed out sample by sample, and a sample that kills a third worker has failed.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from anchoreval.arms.arm import Arm
from anchoreval.backends import Backend, open_backend
from anchoreval.errors import AnchorEvalError, MissingExtra, RunError
from anchoreval.files import forget
from anchoreval.model.checkpoint import folder_of
from anchoreval.runs.identity import environment_of
from anchoreval.runs.units import Unit
from anchoreval.schema import Json, Output, Request, lost_output

TRIES = 3  # a sample fails when so many workers died on it; no worker is opened again after so many died opening
_TOKEN = Path("~/.ray/auth_token")
GIVEN = 4  # lists of requests that Ray keeps for the arms that are still to come
START_SECONDS = 600.0  # the longest wait for a first worker


@dataclass(frozen=True, slots=True)
class Opening:
    """How to open a backend, in this process or in every worker."""

    backend: str
    model: str
    options: Mapping[str, Json]
    rehash: bool = False  # True: hash files again even if the worker's node knows their hashes
    ray: str | None = None  # the cluster on which workers open the backend; None: this process opens it
    workers: int | None = None


class Worker:
    """The class that runs in a Ray actor: one backend that answers one unit at a time."""

    def __init__(self, opening: Opening) -> None:
        self._opening = opening

    def about(self) -> tuple[str, dict[str, Json]]:
        """Open the backend and return its fingerprint and description."""
        described = self._backend.describe()
        return self._backend.fingerprint, described | {"environment": environment_of(described)}

    @cached_property
    def _backend(self) -> Backend:
        if self._opening.rehash:
            forget(folder_of(self._opening.model))
        return open_backend(self._opening.backend, self._opening.model, **self._opening.options)

    def applied(self, arm: Arm) -> dict[str, Json]:
        """Return the arm as applied; raise UnsupportedArm with the name of the field that cannot be."""
        with self._backend.under(arm) as applied:
            return dict(applied)

    def answer(self, arm: Arm, requests: Sequence[Request]) -> Iterator[Output]:
        """Yield one output per request, as they come."""
        with self._backend.under(arm):
            for output in self._backend.answer(requests):  # noqa: UP028 - Ray calls `send`, which lists do not have
                yield output


@dataclass(slots=True)
class _Hand:
    """A worker as the driver sees it: its actor, the Ray reference or stream to wait for, and its unit."""

    actor: Any
    waiting: Any
    ready: bool = False
    unit: Unit | None = None
    environment: Mapping[str, Json] = field(default_factory=dict)


@dataclass(slots=True)
class Fleet:
    """Workers that answer units; open it with `Fleet.open`, close it with `close`.

    The first worker describes the engine. A worker with another fingerprint (other weights on its node) is an error.
    Nodes may differ in versions and processors: each output is stored with the environment that computed it.
    """

    workers: int
    _ray: Any
    _opening: Opening
    _resources: Mapping[str, float]
    _fingerprint: str = ""
    _about: dict[str, Json] = field(default_factory=dict)
    _hands: list[_Hand] = field(default_factory=list)
    came: int = 0  # the most workers that were open at once
    _owned: bool = False
    #: The lists handed out last, by the identity of their requests, each with its reference.
    _given: dict[tuple[int, ...], tuple[list[Request], Any]] = field(default_factory=dict)
    _unopened: int = 0  # workers that died opening their backend since the last one that succeeded

    @classmethod
    def open(cls, opening: Opening, tell: Callable[[str], None] = lambda _: None) -> Fleet:
        """Return a fleet with at least one open worker on the cluster at `opening.ray`.

        `local` starts Ray here; `auto` is RAY_ADDRESS or the cluster that runs on this machine; anything else is
        host:port. Without `opening.workers` there is one worker per GPU (per `tensor_parallel_size` GPUs), or per CPU
        if the cluster has no GPU. `tell` hears of it if the cluster has no room for so many.
        """
        ray = _import_ray()
        owned = not ray.is_initialized()
        if owned:
            _connect(ray, str(opening.ray))
        gpus = int(ray.cluster_resources().get("GPU", 0))
        each = int(opening.options.get("tensor_parallel_size", 1) or 1)
        resources = {"num_gpus": each} if gpus else {"num_cpus": 1}
        count = opening.workers or max(1, gpus // each if gpus else int(ray.cluster_resources().get("CPU", 1)))
        size, of = (each, "GPU") if gpus else (1, "CPU")
        room = int(ray.cluster_resources().get(of, 0) / size)
        if count > room:
            tell(f"--workers {count}: the cluster has {room * size} {of}s now, {size} for each: {room} work at once")
        fleet = cls(count, ray, opening, resources, _owned=owned)
        try:
            fleet._start()
        except BaseException:
            fleet.close()
            raise
        return fleet

    @property
    def fingerprint(self) -> str:
        """The fingerprint of every worker's backend."""
        return self._fingerprint

    def describe(self) -> dict[str, Json]:
        """Return the first worker's description of its backend."""
        return self._about

    @contextmanager
    def under(self, arm: Arm) -> Iterator[dict[str, Json]]:
        """Yield the arm as the first worker applies it. Units name their own arm, so no state is set."""
        hand = next(hand for hand in self._hands if hand.ready)
        yield self._got(hand.actor.applied.remote(arm))

    def work(self, units: Iterable[Unit]) -> None:
        """Compute every unit; a sample on which `TRIES` workers died has failed, and the others go on."""
        fresh, back = iter(units), deque[Unit]()
        while True:
            for hand in self._hands:
                if hand.ready and hand.unit is None and (unit := back.popleft() if back else next(fresh, None)):
                    hand.unit = unit
                    hand.waiting = hand.actor.answer.remote(unit.arm, self._put(list(unit.requests)))
            if not back and all(hand.unit is None for hand in self._hands if hand.ready) and self._any_ready():
                return
            for hand in self._awaited():
                self._advance(hand, back)

    def _put(self, requests: list[Request]) -> Any:
        """Return the Ray reference of a list of requests, which every arm of a group shares."""
        names = tuple(map(id, requests))
        if names not in self._given:
            while len(self._given) >= GIVEN:
                del self._given[next(iter(self._given))]
            self._given[names] = (requests, self._ray.put(requests))
        return self._given[names][1]

    def close(self) -> None:
        """End the workers, and Ray if it was started here."""
        for hand in self._hands:
            with contextlib.suppress(Exception):
                self._ray.kill(hand.actor)
        self._hands = []
        if self._owned:
            self._ray.shutdown()

    def _start(self) -> None:
        self._hands = [self._new() for _ in range(self.workers)]
        while not self._any_ready():
            for hand in self._awaited():
                self._advance(hand, deque())

    def _any_ready(self) -> bool:
        return any(hand.ready for hand in self._hands)

    def _new(self) -> _Hand:
        actor = self._ray.remote(Worker).options(**self._resources, max_restarts=0).remote(self._opening)
        return _Hand(actor, actor.about.remote())

    def _awaited(self) -> list[_Hand]:
        """Wait, and return the hands with a result; raise RunError if no worker starts within `START_SECONDS`."""
        busy = [hand for hand in self._hands if not hand.ready or hand.unit is not None]
        began = time.monotonic()
        while True:
            ready, _ = self._ray.wait([hand.waiting for hand in busy], timeout=5.0, fetch_local=False)
            if ready:
                return [hand for hand in busy if hand.waiting in ready]
            if not self._any_ready() and time.monotonic() - began > START_SECONDS:
                raise RunError(
                    f"no worker could be started in {START_SECONDS:.0f} s: the cluster has too few free "
                    f"{' or '.join(self._resources)}, see `ray status`"
                )

    def _advance(self, hand: _Hand, back: deque[Unit]) -> None:
        """Handle one result of a hand: it is ready, has one output, has finished its unit, or died."""
        try:
            if not hand.ready:
                self._greet(hand, *self._got(hand.waiting))
            elif hand.unit is not None:
                self._take(hand, hand.unit, back)
        except self._ray.exceptions.RayActorError as error:
            self._replace(hand, back, error)

    def _take(self, hand: _Hand, unit: Unit, back: deque[Unit]) -> None:
        try:
            reference = next(hand.waiting)
        except StopIteration:
            hand.unit = None
            back.extend(unit.done())
            return
        unit.take(self._got(reference), hand.environment)

    def _greet(self, hand: _Hand, fingerprint: str, about: dict[str, Json]) -> None:
        if self._fingerprint and fingerprint != self._fingerprint:
            raise RunError("the workers' engines differ: the same weights and settings are needed on every node")
        self._fingerprint, self._about, hand.ready = fingerprint, self._about or about, True
        self._unopened, self.came = 0, max(self.came, sum(each.ready for each in self._hands))
        hand.environment = environment_of(about)

    def _replace(self, hand: _Hand, back: deque[Unit], error: Exception) -> None:
        """Put a new worker in the place of one that died, unless `TRIES` workers in a row died while opening."""
        if hand.unit is not None:
            self._bury(hand.unit, hand, back)
        elif not hand.ready:
            self._unopened += 1
        with contextlib.suppress(Exception):
            self._ray.kill(hand.actor)  # an actor that is alive but out of reach must not go on
        at = next(i for i, each in enumerate(self._hands) if each is hand)
        if self._unopened < TRIES:
            self._hands[at] = self._new()
            return
        del self._hands[at]
        if not self._hands:
            raise RunError(f"{TRIES} workers died while they opened their backend: {_line(error)}") from error

    def _bury(self, unit: Unit, hand: _Hand, back: deque[Unit]) -> None:
        """Hand the rest of a unit that killed a worker out again, or store its samples as failed after the last try.

        In the last try each sample is a unit of its own, so that only the sample that kills workers fails.
        """
        unit.deaths += 1
        if unit.deaths < TRIES and (left := unit.left):
            parts = [left] if unit.deaths < TRIES - 1 else [[request] for request in left]
            back.extend(Unit(unit.arm, part, unit.sink, unit.deaths) for part in parts)
            return
        for request in unit.left:
            why = f"{TRIES} workers died on it"
            unit.take(lost_output(request.sample_id, "failed", why), hand.environment)
        back.extend(unit.done())

    def _got(self, reference: Any) -> Any:
        """Return the value of a Ray reference; raise a worker's AnchorEvalError as it is, other errors as RunError."""
        try:
            return self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, AnchorEvalError):
                raise error.cause from None
            raise RunError(f"a worker failed: {_line(error.cause)}") from error


def _import_ray() -> Any:
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # `ray start` asks for the token where there is one; ray.init(host:port) sends it only in this mode, seen in 2.60.
    if any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")) or _TOKEN.expanduser().is_file():
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    try:
        import ray
    except ModuleNotFoundError as error:
        raise MissingExtra("--ray needs ray: pip install 'anchoreval[ray]'") from error
    return ray


def _connect(ray: Any, address: str) -> None:
    """Join the cluster, or start one here for `local`; raise AnchorEvalError if there is none."""
    asked: dict[str, Any] = {"log_to_driver": False, "logging_level": "error", "include_dashboard": False}
    try:
        if address == "local":
            ray.init(address="local", **asked)
        else:
            _knock(os.environ.get("RAY_ADDRESS", "") if address == "auto" else address)
            ray.init(address=address, **{name: asked[name] for name in ("log_to_driver", "logging_level")})
    except (ConnectionError, ValueError, RuntimeError, OSError) as error:
        raise AnchorEvalError(
            f"--ray {address}: no cluster there ({_line(error)}): start one with `ray start --head`, give this machine "
            "its token (`ray get-auth-token`) if it asks for one, or use --ray local"
        ) from error


def _knock(address: str) -> None:
    """Raise OSError at once if nothing listens at host:port; Ray itself would try for minutes."""
    host, colon, port = address.rpartition(":")
    if colon and "/" not in address:
        socket.create_connection((host, int(port)), timeout=10).close()


def _line(error: object) -> str:
    return " ".join(str(error).split())[:200]
