"""The real frameworks, on a service in memory and in a file."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ferrogate import CacheService

Make = Callable[..., CacheService]

# Else LiteLLM asks the network for prices in a thread, and warns in the middle of any test.
os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")


@pytest.fixture(params=["memory", "sqlite"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Make]:
    """Makes services; those of one file are closed at the end."""
    made: list[CacheService] = []

    def make(**options: object) -> CacheService:
        url = "memory://" if request.param == "memory" else f"sqlite:///{tmp_path}/cache.db"
        service = CacheService(url, **options)  # type: ignore[arg-type]
        made.append(service)
        return service

    yield make
    for service in made:
        service.close_sync()


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """What the adapters have warned of so far, whatever the frameworks say meanwhile."""
    return lambda: [
        record.getMessage()
        for record in caplog.records
        if record.name == "ferrogate" and record.levelno >= logging.WARNING
    ]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The frameworks warn of each other."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings("ignore"), append=False)
