"""Coroutines around what the native service answers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from ferrogate._core import _Lease


async def reply(future: asyncio.Future[Any]) -> Any:
    """What a bridge settles; a coroutine, so that ``create_task`` and ``run`` take it."""
    try:
        return await future
    except asyncio.CancelledError:
        # The answer may have come in the very tick. A lease that nobody gets goes back now, and
        # not when the collector comes for the exception's frames, which hold it until then.
        if future.done() and not future.cancelled() and future.exception() is None:
            answer = future.result()
            if isinstance(answer, tuple) and isinstance(answer[-1], _Lease):
                answer[-1].release()
        raise


async def later(method: Callable[..., Awaitable[Any]], *args: Any) -> Any:
    """A call that was made before its event loop ran.

    Raises:
        RuntimeError: it is awaited, but not by asyncio.
    """
    # Without a loop the method would give back a coroutine of this function, and so on.
    asyncio.get_running_loop()
    return await method(*args)


def log(what: str, name: str, sentence: str) -> None:
    """What a thread of the runtime had to say, which cannot call Python itself."""
    logging.getLogger("ferrogate").warning("%s %s: %s", what, name, sentence)
