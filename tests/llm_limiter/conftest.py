"""What the tests of this room share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from ferrogate import LLMLimiter
from ferrogate.testing import ManualClock, VirtualTimeLoop


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def run_virtual(clock: ManualClock) -> Callable[[Coroutine[Any, Any, Any]], Any]:
    """`asyncio.run` on the test's clock."""

    def run(main: Coroutine[Any, Any, Any]) -> Any:
        with asyncio.Runner(loop_factory=lambda: VirtualTimeLoop(clock)) as runner:
            return runner.run(main)

    return run


@pytest.fixture
def usual(clock: ManualClock) -> LLMLimiter:
    """10 requests, 1,000 tokens in, 500 out and a dollar a minute."""
    return LLMLimiter(
        "usual",
        requests_per_minute=10,
        input_tokens_per_minute=1_000,
        output_tokens_per_minute=500,
        usd_per_minute=1.0,
        clock=clock,
    )
