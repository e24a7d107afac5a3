"""The whole suite: what it computes with, the tests that compute, reference outputs, one browser, no network.

And what was not tested for want of something on this machine, said at the end.
"""

from __future__ import annotations

import os
import socket
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from browser import Tab, find_chromium, launched, opened

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of torch here, and of what the tests start; read when torch is imported

REPOSITORY = Path(__file__).parents[1]
pytest_plugins = ["recorders", "text_fixtures"]


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark as `numeric` every test of a module that imports torch; other modules that compute say so themselves."""
    if isinstance(item, pytest.Function) and hasattr(item.module, "torch"):
        item.add_marker("numeric")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say what was not tested because the machine lacks it, and how to get it, above the last line."""
    skipped = [report.longrepr[2] for report in terminalreporter.stats.get("skipped", ()) if report.longrepr]
    absent = Counter(reason.removeprefix("Skipped: ") for reason in skipped if " ABSENT: " in reason)
    if absent:
        title = f"NOT TESTED HERE: {absent.total()} tests, or files of them, need what this machine lacks"
        terminalreporter.write_sep("!", title, red=True, bold=True)
        for reason, count in absent.most_common():
            terminalreporter.write_line(f"{count:5}  {reason}", red=True)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference outputs, which lies beside the repository and is not part of it."""
    folder = REPOSITORY.parent / "shared"
    if not (folder / "golden").is_dir():
        pytest.skip("REFERENCE OUTPUTS ABSENT: ../shared/golden is not there, so nothing was compared with upstream")
    return folder


@pytest.fixture(scope="session", autouse=True)
def _no_cache_of_the_user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing is read from or written to the cache folder of whoever runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def open_page() -> Iterator[Callable[..., AbstractContextManager[Tab]]]:
    """`with open_page(path, size="phone", scheme="dark") as tab:` in one Chromium for all modules."""
    chromium = find_chromium()
    if chromium is None:
        pytest.skip("CHROMIUM ABSENT: no page was opened in a browser (apt-get install chromium fonts-dejavu-core)")
    if find_spec("axe_playwright_python") is None:
        pytest.skip("AXE ABSENT: no page was checked for accessibility (pip install -e '.[dev]')")
    with launched(chromium) as browser:
        yield partial(opened, browser)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections leave this machine in no test; its own addresses and local sockets stay open."""
    connect = socket.socket.connect

    def own(host: str) -> bool:
        if host.startswith(("127.", "::1", "localhost")):
            return True
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                probe.bind((host, 0))  # only an address of this machine can be bound
            except OSError:
                return False
        return True

    def guarded(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX and not own(str(address[0])):
            raise OSError(f"a test tried to reach {address}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture(scope="module", autouse=True)
def _own_suites() -> Iterator[None]:
    """Forget, after each file, the suites from outside that its tests named in this process."""
    yield
    if (outside := sys.modules.get("anchoreval.suites.outside")) is not None:
        outside._NAMED.clear()
