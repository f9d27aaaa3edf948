"""Every test begins with nothing cached."""

from __future__ import annotations

import pytest
from decorated import Client, asquare, calls, square


@pytest.fixture(autouse=True)
def _no_calls() -> None:
    calls.clear()


@pytest.fixture(autouse=True)
def _clear() -> None:
    for function in (square, asquare, Client.ask, Client.aask):
        function.cache_clear()
