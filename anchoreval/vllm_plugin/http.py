"""An ASGI middleware that tells which level a server computes, for `vllm serve --middleware`.

    vllm serve M --additional-config '{"anchoreval": {"rope": "fp32"}}' --middleware anchoreval.vllm_plugin.http.SaysArm

The answer to GET /v1/models then has a header `x-anchoreval`: the JSON of what was asked of the running engine.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from anchoreval.vllm_plugin.asked import read

HEADER = "x-anchoreval"
Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]


class SaysArm:
    """Wraps the server's application. Everything but GET /v1/models passes through unchanged."""

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self.app = app

    async def __call__(self, scope: Message, receive: Any, send: Send) -> None:
        """Serve one request; add the header if it asks for the models."""
        if scope["type"] != "http" or scope["method"] != "GET" or not scope["path"].endswith("/v1/models"):
            await self.app(scope, receive, send)
            return
        asked = read(scope["app"].state.vllm_config.additional_config).as_config()

        async def saying(message: Message) -> None:
            if message["type"] == "http.response.start":
                header = (HEADER.encode(), json.dumps(asked).encode())
                message = {**message, "headers": [*message.get("headers", ()), header]}
            await send(message)

        await self.app(scope, receive, saying)
