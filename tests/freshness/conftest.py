"""Every test on either kind of loop, and nothing is left over."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from leftovers import leaves_nothing
from sources import Source

from ferrogate import _refresh

try:
    import uvloop
except ImportError:  # pragma: no cover
    uvloop = None  # type: ignore[assignment]

__all__ = ["in_place", "leaves_nothing", "run", "source"]

Loops = Callable[[], asyncio.AbstractEventLoop]

LOOPS = [pytest.param(asyncio.new_event_loop, id="asyncio")]
if uvloop is not None:
    LOOPS.append(pytest.param(uvloop.new_event_loop, id="uvloop"))


@pytest.fixture(params=LOOPS)
def run(request: pytest.FixtureRequest) -> Callable[[Awaitable[Any]], Any]:
    """`asyncio.run` on either kind of loop, in debug mode as well."""

    def run(main: Any, *, debug: bool = False) -> Any:
        with asyncio.Runner(loop_factory=request.param, debug=debug) as runner:
            return runner.run(main)

    return run


@pytest.fixture
def source() -> Source:
    return Source()


@pytest.fixture
def in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """All threads are busy: who meets a stale value refreshes it in place."""
    monkeypatch.setattr(_refresh, "_threads", _refresh.Threads(0, 0.0))
