"""An agent on Anthropic's SDK, before and after a guard is put under it.

    pip install "ferrogate[demo]" anthropic
    python examples/anthropic_agent.py

Twenty agents at a time ask for streamed answers, of a provider that allows five
calls at a time and so many tokens a minute. Underneath, a guard reserves tokens
for each call, and settles with what the stream says that it took. The agent's own
retries and the SDK's are left as they are. What the provider counted is printed.
"""

from __future__ import annotations

import asyncio
import random
import time
from typing import Any

import anthropic
import httpx2

from ferrogate import CircuitBreaker, Guard, LLMLimiter, RetryBudget, RetryPolicy
from ferrogate.cli.provider_config import ProviderConfig
from ferrogate.cli.provider_process import ProviderProcess
from ferrogate.integrations.httpx2 import GuardedTransport

AGENTS, STEPS = 20, 3
PROVIDER = ProviderConfig(
    concurrency=5,
    output_tokens_per_minute=20_000,
    rate_500=0.05,
    ttft_base=0.05,
    seconds_per_output_token=0.001,
    seed=7,
)


def guarded() -> GuardedTransport:
    """The only difference."""
    guard = Guard(
        "anthropic",
        limiter=LLMLimiter("anthropic", output_tokens_per_minute=20_000, concurrency=5),
        breaker=CircuitBreaker("anthropic"),
        retry=RetryPolicy(attempts=4, base=0.1, budget=RetryBudget(0.2)),
    )
    return GuardedTransport(guard)


async def ask(client: anthropic.AsyncAnthropic, messages: list[Any]) -> str:
    """The agent's own retries, as many have them."""
    for attempt in range(5):
        try:
            async with client.messages.stream(
                model="demo", messages=messages, max_tokens=60
            ) as stream:
                return await stream.get_final_text()
        except anthropic.APIError:
            if attempt == 4:
                raise
            await asyncio.sleep(random.uniform(0, 0.1 * 2**attempt))
    raise AssertionError


async def agent(client: anthropic.AsyncAnthropic, number: int) -> None:
    """Thinks, reads what it thought, thinks again."""
    messages: list[Any] = [{"role": "user", "content": f"Plan the research on topic {number}."}]
    for step in range(STEPS):
        messages.append({"role": "assistant", "content": await ask(client, messages)})
        messages.append({"role": "user", "content": f"Do step {step + 1} of it."})


async def run(transport: GuardedTransport | None) -> dict[str, Any]:
    """One day of work; what the provider and the clock say of it."""
    http = None if transport is None else httpx2.AsyncClient(transport=transport, timeout=60)
    async with ProviderProcess(PROVIDER) as provider:
        begun = time.monotonic()
        async with anthropic.AsyncAnthropic(
            base_url=provider.origin, api_key="demo", http_client=http
        ) as client:
            agents = [agent(client, number) for number in range(AGENTS)]
            ended = await asyncio.gather(*agents, return_exceptions=True)
        seconds = time.monotonic() - begun
        stats = await provider.stats()
    seen = "-" if transport is None else transport.get_stats()["output_tokens"]
    return {
        "calls at the provider": stats["received"],
        "answered 429": stats["rate_limited"],
        "answered 500": stats["injected_500"],
        "output tokens": stats["output_tokens"],
        "  as counted here": seen,
        "agents done": f"{ended.count(None)} of {AGENTS}",
        "seconds": f"{seconds:.1f}",
    }


async def main() -> None:
    before, after = await run(None), await run(guarded())
    print(f"{AGENTS} agents of {STEPS} steps: {AGENTS * STEPS} calls\n")
    print(f"{'':24}{'before':>10}{'after':>10}")
    for what, value in before.items():
        print(f"{what:24}{value:>10}{after[what]:>10}")


if __name__ == "__main__":
    asyncio.run(main())
