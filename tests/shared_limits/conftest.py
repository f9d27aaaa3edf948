"""A Redis for limits that processes share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from redis_servers import Server, server


@pytest.fixture
def redis() -> Iterator[Server]:
    with server() as one:
        yield one
