"""``with`` and ``async with`` for what is started and stopped."""

from __future__ import annotations

import asyncio
from typing import Self


class Startable:
    """Started on entering, stopped on leaving; a subclass says what that means."""

    def start(self) -> None:
        """Starts the background work."""
        raise NotImplementedError

    def stop(self) -> None:
        """Ends the background work."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        # Not in the loop: the thread may be waiting for a check that runs on it.
        await asyncio.to_thread(self.stop)
