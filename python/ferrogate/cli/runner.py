"""One run of the agent against one provider: over HTTP, or in virtual time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import httpx2
import openai

from ferrogate.cli.agent import Agent, Ask, Attempts, Reply, Run, UnguardedAgent, replay_rows
from ferrogate.cli.guarded import GuardedAgent
from ferrogate.cli.provider_core import ProviderCore
from ferrogate.cli.provider_process import ProviderProcess
from ferrogate.cli.settings import Settings
from ferrogate.cli.traces import Trace
from ferrogate.cli.transport import InProcessProvider
from ferrogate.cli.watch import Watch
from ferrogate.testing import ManualClock, VirtualTimeLoop

__all__ = ["run_once"]

# Below the usual limit of 1,024 descriptors; a run that needs more connections
# than this waits for one, and its transit times in the report say so.
_CONNECTIONS = 512


def run_once(
    trace: Trace, settings: Settings, run: Run, *, guarded: bool, tick: Callable[[Run], None]
) -> None:
    """Replays the trace once and fills in ``run``; Ctrl-C leaves it marked as interrupted."""
    started = time.perf_counter()
    clock = ManualClock() if settings.virtual else None
    if clock is not None:
        settings = replace(settings, provider=replace(settings.provider, speed=1.0))

    def new_loop() -> asyncio.AbstractEventLoop:
        return VirtualTimeLoop(clock) if clock is not None else asyncio.new_event_loop()

    try:
        with asyncio.Runner(loop_factory=new_loop) as runner:
            runner.run(_run(trace, settings, run, clock, guarded=guarded, tick=tick))
    except KeyboardInterrupt:
        run.interrupted = True
    finally:
        run.wall_seconds = time.perf_counter() - started


async def _run(
    trace: Trace,
    settings: Settings,
    run: Run,
    clock: ManualClock | None,
    *,
    guarded: bool,
    tick: Callable[[Run], None],
) -> None:
    provider = _virtual_provider if clock is not None else _http_provider
    async with provider(settings) as (client, stats):
        # The SDK asks for the platform in a thread before its first request; and
        # the first connection is not part of what is measured.
        await client.models.list()
        attempts = Attempts(
            client,
            model=settings.model,
            speed=settings.speed,
            retries=settings.retries,
            timeout=settings.timeout,
            stream=settings.stream,
            seed=settings.provider.seed,
        )
        agent: Agent = UnguardedAgent(attempts)
        watch = Watch(settings, clock)
        if guarded:
            agent = guard = GuardedAgent(attempts, settings, clock)
            watch = Watch(settings, clock, cache=guard.cache, limiter=guard.limiter)

        def done(ask: Ask, reply: Reply | None, seconds: float) -> None:
            watch.record(ask, reply, seconds)
            tick(run)

        async with watch:
            await replay_rows(agent, trace.rows, run, speed=settings.speed, done=done)
        run.components = watch.report()
        run.provider = await stats()


_Provider = tuple[openai.AsyncOpenAI, Callable[[], Any]]


@asynccontextmanager
async def _http_provider(settings: Settings) -> AsyncIterator[_Provider]:
    async with ProviderProcess(settings.provider) as process:
        http = openai.DefaultAsyncHttpxClient(
            # A proxy of the environment has no business between us and loopback.
            trust_env=False,
            limits=httpx2.Limits(
                max_connections=_CONNECTIONS, max_keepalive_connections=_CONNECTIONS
            ),
        )
        async with _client(process.origin, http) as client:
            yield client, process.stats


@asynccontextmanager
async def _virtual_provider(settings: Settings) -> AsyncIterator[_Provider]:
    core = ProviderCore(settings.provider, asyncio.get_running_loop().time)

    async def stats() -> dict[str, Any]:
        return core.stats()

    http = openai.DefaultAsyncHttpxClient(
        transport=InProcessProvider(core, settings.provider.seed), trust_env=False
    )
    async with _client("http://provider.invalid", http) as client:
        yield client, stats


def _client(origin: str, http: httpx2.AsyncClient) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(
        base_url=origin + "/v1", api_key="replay", max_retries=0, http_client=http
    )
