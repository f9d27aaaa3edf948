"""The clock and the loop that users' suites run on."""

from __future__ import annotations

import asyncio
import math
import os
import time
from datetime import timedelta
from typing import Any

import pytest
from child import run_well

from ferrogate import RateLimiter
from ferrogate.testing import ManualClock, VirtualTimeLoop


def test_closing_the_loop_waits_for_threads_in_real_time() -> None:
    clock = ManualClock()
    ended: list[bool] = []

    def work() -> None:
        time.sleep(0.3)
        ended.append(True)

    async def main() -> None:
        asyncio.get_running_loop().run_in_executor(None, work)
        await asyncio.sleep(3600)

    with asyncio.Runner(loop_factory=lambda: VirtualTimeLoop(clock)) as runner:
        runner.run(main())
    assert ended == [True]
    assert clock.now() == 3600


@pytest.mark.timeout(20)
@pytest.mark.parametrize("start", [0.0, 2.0**24, 1.8e9, 1e10])
def test_timers_are_due_however_late_it_is(start: float) -> None:
    """Once the clock passed half a year, the loop turned for ever before a timer a hair ahead."""
    clock = ManualClock(start)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        await asyncio.gather(*(asyncio.sleep(seconds / 7) for seconds in range(1, 50)))
        assert clock.now() == pytest.approx(start + 7, abs=1e-5)
        clock.advance(365 * 86_400)
        begun = loop.time()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await asyncio.sleep(10)
        assert loop.time() - begun == pytest.approx(0.1, abs=1e-5)
        limiter = RateLimiter("1/second", clock=clock)
        begun = loop.time()
        await asyncio.gather(*(limiter.acquire() for _ in range(30)))
        assert loop.time() - begun == pytest.approx(29, abs=1e-3)

    with asyncio.Runner(loop_factory=lambda: VirtualTimeLoop(clock)) as runner:
        runner.run(main())


@pytest.mark.parametrize(
    ("start", "error"),
    [("3", TypeError), (True, TypeError), (-1, ValueError), (math.inf, ValueError)],
)
def test_a_clock_starts_at_seconds(start: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="start: expected"):
        ManualClock(start)
    assert ManualClock(timedelta(minutes=1)).now() == 60.0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="not on Windows: needs os.fork")
def test_a_clock_that_another_thread_was_advancing_works_in_a_forked_child() -> None:
    code = """
    import os, signal, threading, warnings
    warnings.simplefilter("ignore", DeprecationWarning)
    from ferrogate.testing import ManualClock
    clock = ManualClock()
    held, go = threading.Event(), threading.Event()
    def hold():
        with clock._lock:
            held.set()
            go.wait(30)
    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(10)
    child = os.fork()
    if child == 0:
        signal.alarm(10)
        clock.advance(1)
        os._exit(7)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    go.set()
    thread.join(10)
    print(status)
    """
    assert run_well(code) == "7\n"
