"""Sends a trace's rows at their times, and keeps the books of how each of them ended."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import openai

from ferrogate.cli.agent import Agent, Ask, Demand, Refused, Reply, Reuse, Run
from ferrogate.cli.traces import Row

__all__ = ["replay_rows"]

_Done = Callable[[Ask, Reply | None, float], None]


async def replay_rows(
    agent: Agent,
    rows: tuple[Row, ...],
    run: Run,
    *,
    speed: float,
    done: _Done,
    all_sent: Callable[[], Awaitable[None]] | None = None,
) -> None:
    """Sends every row at its time and waits for the last answer.

    ``done`` is called after each of them with the answer, or None, and the trace
    seconds that it took; ``all_sent`` once, when nothing more arrives.

    On cancellation it cancels what is under way and returns normally, so that
    the report of what was done can be printed.
    """
    loop = asyncio.get_running_loop()
    started = loop.time()
    under_way: set[asyncio.Task[None]] = set()
    broken: list[BaseException] = []

    def ended(task: asyncio.Task[None]) -> None:
        under_way.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            broken.append(error)

    try:
        for row in rows:
            delay = started + row.at / speed - loop.time()
            if delay > 0:
                await asyncio.sleep(delay)
            if broken:
                break
            run.late = max(run.late, loop.time() - started - row.at / speed)
            run.requests += 1
            task = loop.create_task(_one(agent, Ask(row, run), speed, done))
            under_way.add(task)
            task.add_done_callback(ended)
        if all_sent is not None:
            await all_sent()
        while under_way:
            await asyncio.wait(under_way)
    except asyncio.CancelledError:
        left = tuple(under_way)
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left)
        # Not all of them: some had their answer already, or end with another error.
        run.unfinished = sum(task.cancelled() for task in left)
    finally:
        run.seconds = (loop.time() - started) * speed
    if broken:  # the books themselves, not a request: no report could be trusted
        raise broken[0]


async def _one(agent: Agent, ask: Ask, speed: float, done: _Done) -> None:
    loop = asyncio.get_running_loop()
    started = loop.time()
    reply: Reply | None = None
    never = False
    run = ask.run
    try:
        reply = await agent.ask(ask)
    except Refused as refused:
        never = refused.never
        if never:
            after = (loop.time() - started) * speed
            run.never_granted.append(_listed(ask.row, refused, after))
        else:
            run.rejected += 1
    except (openai.APIStatusError, openai.APIConnectionError):
        run.failed += 1  # each of its attempts has been counted by its kind
    except Exception as error:
        run.failed += 1
        run.errors[type(error).__name__] += 1
    seconds = (loop.time() - started) * speed
    if ask.reuse is None and not never:
        demand = run.demand.setdefault(ask.row.tenant, Demand())
        demand.requests += 1
        demand.input_tokens += ask.row.input_tokens
        demand.output_tokens += ask.row.output_tokens
    if reply is not None:
        run.answered += 1
        run.latencies.append(seconds)
    if reply is not None and ask.reuse is not None:
        run.hits += ask.reuse is Reuse.HIT
        run.joins += ask.reuse is Reuse.JOIN
        run.saved_input_tokens += reply.input_tokens
        run.saved_output_tokens += reply.output_tokens
    done(ask, reply, seconds)


def _listed(row: Row, refused: Refused, after: float) -> dict[str, Any]:
    return {
        "line": row.line,
        "at_seconds": round(row.at, 3),
        "input_tokens": row.input_tokens,
        "output_tokens": row.output_tokens,
        "refused_after_seconds": round(after, 3),
        "reason": str(refused),
    }
