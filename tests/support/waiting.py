"""Waiting for what other threads do, with an end."""

from __future__ import annotations

import time
from collections.abc import Callable

from child import Hung


def eventually(condition: Callable[[], object], seconds: float = 30.0) -> None:
    """Returns once ``condition()`` is true; fails after ``seconds``.

    They are for a machine that is busy with other things; who waits so long has failed.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not come true in time"
        time.sleep(0.005)


def in_time(judge: Callable[[int], object], tries: int = 3) -> None:
    """Calls ``judge(attempt)``, 0 first, until one attempt holds; what the last one raises.

    For promises in seconds: a machine that is starved for a moment breaks one of them now and
    then, and a product that does not keep it every time. What hangs is not tried again.
    """
    for attempt in range(tries):
        try:
            judge(attempt)
        except Hung:
            raise
        except AssertionError:
            if attempt == tries - 1:
                raise
        else:
            return
