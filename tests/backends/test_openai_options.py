"""What the openai backend refuses before any server is asked, and where none is there."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from servers import REPOSITORY, free_port

from anchoreval.backends import open_backend
from anchoreval.errors import AnchorEvalError, MissingExtra, ModelError

pytest.importorskip("httpx2", reason="HTTPX2 ABSENT: no server was looked for (pip install 'anchoreval[openai]')")

MODEL = REPOSITORY / "models" / "anchor-tiny"
NAME = "tiny"


def opened(url: str, **options: Any) -> Any:
    return open_backend("openai", NAME, base_url=url, tokenizer=str(MODEL), **options)


def test_a_server_that_never_comes_is_given_up_in_one_line() -> None:
    url = f"http://127.0.0.1:{free_port()}/v1"
    with pytest.raises(ModelError, match=r"no answer within 1 s \(patience_s\): ConnectError") as caught:
        opened(url, patience_s=1.0)
    assert url in str(caught.value) and "\n" not in str(caught.value)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"base_url": None}, "needs --base-url"),
    ({"tokenizer": None}, "needs --tokenizer"),
    ({"api": "responses"}, "unknown api 'responses'.*completions, chat"),
    ({"concurrency": 0}, "concurrency must be at least 1"),
    ({"concurrency": 10**8}, "concurrency must be at most 1024"),
    ({"patience_s": float("nan")}, "patience_s=nan: expected a number"),
    ({"logprobs": "maybe"}, "logprobs=maybe: expected true or false"),
    ({"max_model_len": 0}, "max_model_len must be at least 1"),
    ({"base_url": "http://me:secret@127.0.0.1/v1"}, "holds more than an address"),
    ({"base_url": "http://127.0.0.1/v1?key=secret"}, "holds more than an address"),
    ({"base_url": "127.0.0.1:8000"}, "is no address"),
    ({"concurency": 3}, "option of backend openai 'concurency': did you mean concurrency"),
]


@pytest.mark.parametrize(("options", "named"), REFUSED)
def test_options_that_mean_nothing_are_one_line(options: dict[str, Any], named: str) -> None:
    asked = {"base_url": "http://127.0.0.1:1/v1", "tokenizer": str(MODEL)} | options
    with pytest.raises(AnchorEvalError, match=named) as caught:
        open_backend("openai", NAME, **asked)
    assert "secret" not in str(caught.value) and "\n" not in str(caught.value)


def test_a_key_that_no_header_takes_is_refused_without_showing_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-one\nsk-two")
    with pytest.raises(ModelError, match="the key in OPENAI_API_KEY holds characters") as caught:
        opened("http://127.0.0.1:1/v1")
    assert "sk-" not in str(caught.value)


def test_a_client_that_is_not_installed_is_named_with_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("anchoreval.backends.openai")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "httpx2", None)
    with pytest.raises(MissingExtra, match=r"needs httpx2: pip install 'anchoreval\[openai\]'"):
        opened("http://127.0.0.1:1/v1")


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("HTTP_PROXY", "nonsense://me:secret@x", "names a proxy that cannot be used"),
        ("HTTP_PROXY", "http://me:secret@[::1", "names a proxy that cannot be used"),
        ("SSL_CERT_FILE", "/nowhere/secret", "SSL_CERT_FILE or SSL_CERT_DIR names what cannot be read"),
    ],
)
def test_an_environment_that_no_client_takes_is_one_line(
    name: str, value: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for other in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, value)
    with pytest.raises(ModelError, match=says) as caught:
        opened("http://example.invalid/v1", patience_s=0.1)
    assert "secret" not in str(caught.value) and "\n" not in str(caught.value)
