"""Services whose gets go to Redis, and how many of them went alone."""

from __future__ import annotations

from typing import Any, cast

from redis_servers import Server, connected, until

from ferrogate import CacheService


def far(redis: Server, **arguments: Any) -> CacheService:
    """A service that has to ask Redis for each value."""
    arguments.setdefault("timeout_seconds", 5)
    return CacheService(redis.url, near_bytes=1, **arguments)


def stats(service: CacheService) -> dict[str, Any]:
    return cast("dict[str, Any]", service.get_stats())


def direct(service: CacheService) -> int:
    return int(stats(service)["direct_requests"])


async def ready(service: CacheService) -> None:
    """Waits until the line is there and nothing else is under way."""
    await connected(service)

    async def alone() -> bool:
        before = direct(service)
        await service.get("ns", "nothing")
        return direct(service) > before

    await until(alone, 30)
