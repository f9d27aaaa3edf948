"""One run of the agent against one provider: over HTTP, or in virtual time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import httpx2
import openai

from ferrogate.cli._errors import FAILED, CliError
from ferrogate.cli.agent import Agent, Ask, Attempts, Reply, Run, UnguardedAgent
from ferrogate.cli.guarded import GuardedAgent
from ferrogate.cli.provider_core import ProviderCore
from ferrogate.cli.provider_process import ProviderProcess
from ferrogate.cli.sending import replay_rows
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
    providers = _virtual_provider if clock is not None else _http_provider
    async with providers(settings) as provider:
        try:
            # The SDK asks for the platform in a thread before its first request;
            # and the first connection is not part of what is measured.
            await provider.client.models.list()
        except openai.OpenAIError as error:
            raise CliError(f"the provider does not answer: {error}", FAILED) from error
        attempts = Attempts(
            provider.client,
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
            agent = guard = GuardedAgent(attempts, settings, run, clock)
            watch = Watch(settings, clock, cache=guard.cache, limiter=guard.gate.watched)

        def done(ask: Ask, reply: Reply | None, seconds: float) -> None:
            watch.record(ask, reply, seconds)
            tick(run)

        async def all_sent() -> None:
            # From here on nobody's demand grows: what was received by now is what is compared.
            if settings.tenants > 1:
                with suppress(CliError):  # that the provider is gone is told by whom it concerns
                    run.tenants_when_all_was_sent = (await provider.stats())["tenants"]

        async with watch:
            sending = replay_rows(
                agent, trace.rows, run, speed=settings.speed, done=done, all_sent=all_sent
            )
            await _until_the_end(asyncio.create_task(sending), provider, run)
        run.components = watch.report()
        if run.stopped:
            return
        try:
            run.provider = await provider.stats()
        except CliError as error:
            run.stopped = str(error)


async def _until_the_end(sending: asyncio.Task[None], provider: _Provider, run: Run) -> None:
    """Waits for the last row, for Ctrl-C, or for the provider's death, whichever is first."""
    watching = asyncio.create_task(provider.gone())
    try:
        await asyncio.wait({sending, watching}, return_when=asyncio.FIRST_COMPLETED)
    except asyncio.CancelledError:
        current = asyncio.current_task()
        if current is not None:
            current.uncancel()
        run.interrupted = True
    try:
        if watching.done():
            run.stopped = watching.result()
        if not sending.done():
            sending.cancel()
        await asyncio.wait({sending})
    finally:
        watching.cancel()
    if not sending.cancelled():
        sending.result()


@dataclass(frozen=True, slots=True)
class _Provider:
    client: openai.AsyncOpenAI
    stats: Callable[[], Coroutine[Any, Any, dict[str, Any]]]
    gone: Callable[[], Coroutine[Any, Any, str]]
    """Returns when the provider has ended by itself, and says how."""


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
            yield _Provider(client, process.stats, process.gone)


@asynccontextmanager
async def _virtual_provider(settings: Settings) -> AsyncIterator[_Provider]:
    core = ProviderCore(settings.provider, asyncio.get_running_loop().time)

    async def stats() -> dict[str, Any]:
        return core.stats()

    async def never() -> str:
        await asyncio.Event().wait()
        raise AssertionError("an event that nobody sets")

    http = openai.DefaultAsyncHttpxClient(
        transport=InProcessProvider(core, settings.provider.seed), trust_env=False
    )
    async with _client("http://provider.invalid", http) as client:
        yield _Provider(client, stats, never)


def _client(origin: str, http: httpx2.AsyncClient) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(
        base_url=origin + "/v1", api_key="replay", max_retries=0, http_client=http
    )
