"""How models are made: attention variants on stock transformers models, a token store, and a loop over both.

With torch they import slowly, so `collate` and `documents` are found on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anchoreval.training.attention import collate, documents

__all__ = ["collate", "documents"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from anchoreval.training import attention

        return getattr(attention, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
