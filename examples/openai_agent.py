"""An agent on OpenAI's SDK, before and after a guard is put under it.

    pip install "ferrogate[demo]"
    python examples/openai_agent.py

Twenty agents at a time ask a provider that serves four calls at a time, and fails
one in twenty. The agent's own retries and the SDK's are left as they are; all that
changes is the HTTP transport. What the provider counted is printed at the end.
"""

from __future__ import annotations

import asyncio
import random
import time
from typing import Any

import httpx2
import openai

from ferrogate import CircuitBreaker, Guard, RetryBudget, RetryPolicy
from ferrogate.cli.provider_config import ProviderConfig
from ferrogate.cli.provider_process import ProviderProcess
from ferrogate.integrations.httpx2 import GuardedTransport

AGENTS, STEPS = 20, 3
PROVIDER = ProviderConfig(
    concurrency=4, rate_500=0.05, ttft_base=0.05, seconds_per_output_token=0.001, seed=7
)


def guarded() -> httpx2.AsyncClient:
    """The only difference."""
    guard = Guard(
        "openai",
        bulkhead=4,  # as many calls at a time as the provider serves
        breaker=CircuitBreaker("openai"),
        retry=RetryPolicy(attempts=4, base=0.1, budget=RetryBudget(0.2)),
    )
    return httpx2.AsyncClient(transport=GuardedTransport(guard), timeout=60)


async def ask(client: openai.AsyncOpenAI, messages: list[Any]) -> str:
    """The agent's own retries, as many have them."""
    for attempt in range(5):
        try:
            answer = await client.chat.completions.create(
                model="demo", messages=messages, max_completion_tokens=60
            )
            return answer.choices[0].message.content or ""
        except openai.APIError:
            if attempt == 4:
                raise
            await asyncio.sleep(random.uniform(0, 0.1 * 2**attempt))
    raise AssertionError


async def agent(client: openai.AsyncOpenAI, number: int) -> None:
    """Thinks, reads what it thought, thinks again."""
    messages: list[Any] = [{"role": "user", "content": f"Plan the research on topic {number}."}]
    for step in range(STEPS):
        messages.append({"role": "assistant", "content": await ask(client, messages)})
        messages.append({"role": "user", "content": f"Do step {step + 1} of it."})


async def run(http: httpx2.AsyncClient | None) -> dict[str, Any]:
    """One day of work; what the provider and the clock say of it."""
    async with ProviderProcess(PROVIDER) as provider:
        begun = time.monotonic()
        async with openai.AsyncOpenAI(
            base_url=f"{provider.origin}/v1", api_key="demo", http_client=http
        ) as client:
            agents = [agent(client, number) for number in range(AGENTS)]
            ended = await asyncio.gather(*agents, return_exceptions=True)
        seconds = time.monotonic() - begun
        stats = await provider.stats()
    return {
        "calls at the provider": stats["received"],
        "answered 429": stats["rate_limited"],
        "answered 500": stats["injected_500"],
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
