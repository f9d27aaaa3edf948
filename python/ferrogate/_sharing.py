"""Where processes share what a limiter or a breaker knows."""

from __future__ import annotations

from typing import Any

from ferrogate import _core, _service_url

__all__ = ["store_of"]

# It is a part of every key in Redis, and sent with each request.
_LONGEST_NAME = 200


def store_of(
    store: str, name: str | None, clock: _core.ManualClock | None, shared: str
) -> dict[str, Any] | None:
    """The native description of the store at a URL; ``shared`` is what is in it, for messages.

    ``None`` is this process's memory.
    """
    if not isinstance(store, str):
        raise TypeError(f"store: expected a str, got {type(store).__name__}")
    if store == "memory":
        return None
    if not store.startswith(("redis:", "rediss:", "redis+", "rediss+")):
        raise ValueError(
            'store: expected "memory" or the URL of a Redis such as "redis://localhost:6379/0", '
            f"got {_service_url.shown(store)!r}"
        )
    if not name:
        raise ValueError(f"name: expected with store=, to tell what is shared from other {shared}")
    if isinstance(name, str) and len(name) > _LONGEST_NAME:
        raise ValueError(
            f"name: expected at most {_LONGEST_NAME} characters with store=, got {len(name)}; "
            "use a short name, or a digest of a long one"
        )
    if clock is not None:
        raise ValueError("clock: expected None with store=, which goes by the server's clock")
    try:
        options = _service_url.tier_of(_service_url.url_of(store), {})
    except ValueError as error:
        raise ValueError(str(error).replace("url:", "store:", 1)) from None
    assert options is not None
    return {**options, "lease_seconds": 60.0}
