"""Services on every kind of store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from redis_servers import Server, needs_redis, server
from services import Open, opener


@pytest.fixture(params=["memory", "sqlite", pytest.param("redis", marks=needs_redis)])
def service(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Open]:
    if request.param == "redis":
        yield from opener(request.getfixturevalue("redis").url)
    else:
        memory = request.param == "memory"
        yield from opener("memory://" if memory else f"sqlite://{tmp_path}/cache.db")


@pytest.fixture(params=["memory", "sqlite"])
def timed(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Open]:
    """Stores in which values expire by the service's clock; in Redis they do by the server's."""
    memory = request.param == "memory"
    yield from opener("memory://" if memory else f"sqlite://{tmp_path}/cache.db")


@pytest.fixture
def sqlite(tmp_path: Path) -> Iterator[Open]:
    yield from opener(f"sqlite://{tmp_path}/cache.db")


@pytest.fixture
def redis() -> Iterator[Server]:
    with server() as one:
        yield one
