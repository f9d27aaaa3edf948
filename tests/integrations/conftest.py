"""The real frameworks, on a service in memory and in a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ferrogate import CacheService

Make = Callable[..., CacheService]


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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The frameworks warn of each other."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings("ignore"), append=False)
