"""A Redis, a provider, and a fleet of processes with one breaker."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from breaker_fleet import Fleet, Provider
from redis_servers import Server, server


@pytest.fixture
def redis() -> Iterator[Server]:
    with server() as one:
        yield one


@pytest.fixture
def provider() -> Iterator[Provider]:
    with Provider() as one:
        yield one


@pytest.fixture
def fleet(redis: Server, provider: Provider) -> Iterator[Fleet]:
    with Fleet(redis.url, provider.port) as one:
        yield one
