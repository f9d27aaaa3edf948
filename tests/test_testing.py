"""The clock and the loop that users' suites run on."""

from __future__ import annotations

import asyncio
import time

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
