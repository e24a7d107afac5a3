"""Every test finds lm-eval's logger as a fresh process has it, and none waits for pip."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def no_list_of_packages() -> Iterator[None]:
    """lm-eval asks pip for everything that is installed, half a second a run, for a field that no test reads."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch.utils.collect_env.get_pretty_env_info", lambda: "")
        yield


@pytest.fixture(autouse=True)
def talk() -> Iterator[None]:
    """Its handler writes to the stream of the test that made it, which is gone after it."""
    yield
    logger = logging.getLogger("lm_eval")
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
    logger.propagate = True
    if logger.level:
        import lm_eval.utils

        logger.setLevel(logging.NOTSET)
        lm_eval.utils._LOGGING_CONFIGURED = False
