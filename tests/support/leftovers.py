"""No load leaves anything in the books of the loads, on whatever loop."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ferrogate import _loads


@pytest.fixture(autouse=True)
def leaves_nothing() -> Iterator[None]:
    yield
    assert _loads.loaders == {}
    assert _loads.waits == {}
    assert _loads.leading.get() == frozenset()
