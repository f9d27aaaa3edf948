"""Lets the other tasks of a loop get on, however slow the machine is."""

from __future__ import annotations

import asyncio


async def turns(count: int = 50) -> None:
    """Gives the loop `count` turns; a short sleep may be over after one, when that one was slow."""
    for _ in range(count):
        await asyncio.sleep(0)
