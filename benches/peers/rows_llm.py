"""The LLM limiter's rows: a call's whole way through it, reserved and settled."""

from __future__ import annotations

import asyncio
from importlib import import_module
from typing import Any

from measure import Contender, Namespace, Row, Target

# As in the limiter rows: every timing begins with a new limiter, and every call is granted.
CALLS = 1_000
KEYS = tuple(range(100))
ROUNDS = CALLS // len(KEYS)
TOKENS = 1_000 * CALLS


def ours(**more: Any) -> Any:
    return import_module("ferrogate").LLMLimiter(
        requests_per_minute=2 * CALLS,
        input_tokens_per_minute=TOKENS,
        output_tokens_per_minute=TOKENS,
        usd_per_minute=100.0,
        concurrency=10,
        **more,
    )


def ours_awaited(**more: Any) -> Namespace:
    limiter = ours(**more)
    tenant = {"tenant": "acme"} if more else {}

    async def call() -> None:
        reserved = await limiter.reserve(input_tokens=400, output_tokens=300, **tenant)
        reserved.settle(input_tokens=400, output_tokens=100, cost_usd=0.001)

    def verify() -> None:
        stats = limiter.get_stats()
        assert stats["open"] == 0, "a reservation is open"
        assert stats["rejected"] == 0, "a call was denied"

    return {"call": call, "verify": verify}


def aiolimiter_awaited() -> Namespace:
    asyncio.get_running_loop()  # they belong to one loop
    limiter = import_module("aiolimiter").AsyncLimiter
    requests, tokens_in, tokens_out = limiter(2 * CALLS), limiter(TOKENS), limiter(TOKENS)
    slots = asyncio.Semaphore(10)

    async def call() -> None:
        async with slots:
            await requests.acquire()
            await tokens_in.acquire(400)
            await tokens_out.acquire(100)

    return {"call": call}


def limits_awaited() -> Namespace:
    limits = import_module("limits")
    strategies = import_module("limits.aio.strategies")
    storage = import_module("limits.aio.storage").MemoryStorage()
    hit = strategies.MovingWindowRateLimiter(storage).hit
    requests = limits.parse(f"{2 * CALLS}/minute")
    # It keeps an entry for every token, so one stands for a hundred.
    tokens = limits.parse(f"{TOKENS // 100}/minute")

    async def call() -> None:
        granted = await hit(requests, "requests")
        granted = granted and await hit(tokens, "input", cost=4)
        granted = granted and await hit(tokens, "output", cost=1)
        assert granted, "a call was denied"

    return {"call": call}


def money(store: str) -> Namespace:
    """A budget whose every call is granted."""
    folder = import_module("tempfile").TemporaryDirectory()
    where = "memory" if store == "memory" else f"sqlite://{folder.name}/money.db"
    limits = ("1_000_000 USD/day", "9_000_000 USD/month")
    budget = import_module("ferrogate").Budget(*limits, store=where)

    def call() -> None:
        budget.reserve(0.002).settle(0.001)

    def verify() -> None:
        assert budget.get_stats()["rejected"] == 0, "a call was denied"

    return {"call": call, "verify": verify, "close": folder.cleanup}


def money_by_hand() -> Namespace:
    """What is written without a library: a row, two transactions."""
    folder = import_module("tempfile").TemporaryDirectory()
    connect = import_module("sqlite3").connect
    file = connect(f"{folder.name}/money.db", isolation_level=None)
    file.execute("PRAGMA journal_mode = WAL")
    file.execute("PRAGMA synchronous = NORMAL")
    file.execute("CREATE TABLE money(key TEXT PRIMARY KEY, day INTEGER, used INTEGER)")
    file.execute("INSERT INTO money VALUES ('', 0, 0)")

    def count(nano: int) -> None:
        file.execute("BEGIN IMMEDIATE")
        (used,) = file.execute("SELECT used FROM money WHERE key = ''").fetchone()
        assert used + nano < 10**15
        file.execute("UPDATE money SET used = ? WHERE key = ''", (used + nano,))
        file.execute("COMMIT")

    def call() -> None:
        count(2_000_000)
        count(-1_000_000)

    def close() -> None:
        file.close()
        folder.cleanup()

    return {"call": call, "close": close}


ROWS = [
    Row(
        "an LLM call's reserve + settle, awaited",
        Target(at_most=1.0, says="≤ aiolimiter"),
        [
            Contender(
                "aiolimiter",
                "await call()",
                aiolimiter_awaited,
                "aiolimiter",
                "three leaky buckets one after the other, a semaphore; nothing is settled",
            ),
            Contender(
                "ferrogate", "await call()", ours_awaited, "ferrogate", "four windows + slots"
            ),
            Contender(
                "ferrogate, weighted",
                "await call()",
                lambda: ours_awaited(fairness="weighted"),
                "ferrogate",
                "the same, fair between tenants",
            ),
            Contender(
                "limits, MovingWindow",
                "await call()",
                limits_awaited,
                "limits",
                "three windows one after the other, tokens by the hundred; nothing is settled",
            ),
        ],
        KEYS,
        fresh=True,
        rounds=ROUNDS,
    ),
    Row(
        "a Budget's reserve + settle, in a SQLite file",
        Target(at_most=1.0, says="≤ by hand"),
        [
            Contender(
                "by hand",
                "call()",
                money_by_hand,
                "",
                "sqlite3, two transactions on one row; no calendar, no keys",
            ),
            Contender(
                "ferrogate", "call()", lambda: money("sqlite"), "ferrogate", "a day and a month"
            ),
            Contender(
                "ferrogate, in memory",
                "call()",
                lambda: money("memory"),
                "ferrogate",
                "the same, and nothing survives",
            ),
        ],
        KEYS,
        fresh=True,
        rounds=ROUNDS,
    ),
]
