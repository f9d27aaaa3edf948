"""Services on every kind of store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from services import Open, opener


@pytest.fixture(params=["memory", "sqlite"])
def service(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Open]:
    yield from opener("memory://" if request.param == "memory" else f"sqlite://{tmp_path}/cache.db")


@pytest.fixture
def sqlite(tmp_path: Path) -> Iterator[Open]:
    yield from opener(f"sqlite://{tmp_path}/cache.db")
