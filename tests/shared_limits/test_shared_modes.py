"""Limits that are shared behind Sentinels, on a Cluster, over TLS, by a user who may little."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from pathlib import Path

import pytest
from child import patience, run_well
from redis_modes import (
    certify,
    closing,
    cluster,
    cluster_url,
    is_master,
    needs_openssl,
    sentinel,
    tls_options,
)
from redis_servers import Server, command, free_port, needs_redis, server, until

from ferrogate import RateLimiter, RateLimitExceeded

pytestmark = [needs_redis, pytest.mark.timeout(patience(240))]


def joined(*limiters: RateLimiter) -> bool:
    return all((one.get_stats()["shared"] or {}).get("joined") for one in limiters)


def test_a_failover_is_no_second_helping(tmp_path: Path) -> None:
    # A replica that comes is served at once, not after five seconds, in which others might.
    master = Server(tmp_path / "master", "--repl-diskless-sync-delay", "0")
    options = ("--replicaof", "127.0.0.1", str(master.port), "--replica-read-only", "no")
    replica = Server(tmp_path / "replica", *options)

    async def main(port: int) -> None:
        await until(lambda: b"master_link_status:up" in replica.command("INFO", "replication"), 60)

        def is_known() -> bool:
            with contextlib.suppress(OSError):
                return b"slaves=1" in command(port, "INFO", "sentinel")
            return False

        await until(is_known, 40)
        url = f"redis+sentinel://127.0.0.1:{port}/mymaster/0"
        both = [RateLimiter("100/hour", store=url, name="failed over") for _ in range(2)]
        granted = 0

        async def one(limiter: RateLimiter) -> None:
            nonlocal granted
            while True:
                await limiter.acquire()
                granted += 1
                await asyncio.sleep(0.02)

        tasks = [asyncio.create_task(one(limiter)) for limiter in both]
        await until(lambda: granted > 20, 30)
        master.kill()
        # As if it had been told of nothing.
        assert replica.command("FLUSHALL") == b"+OK"
        # On a machine that was busy for two seconds it does nothing for thirty.
        await until(lambda: is_master(replica), 90)
        await until(lambda: joined(*both), 30)
        await until(lambda: granted >= 95, 60)
        await asyncio.sleep(1)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        # An hour has not passed: the old one and the new one together.
        assert granted <= 100

    with closing(master, replica), sentinel(tmp_path, master) as port:
        asyncio.run(main(port))


def test_a_cluster_has_all_of_a_limiter_in_one_place(tmp_path: Path) -> None:
    with cluster(tmp_path) as nodes:
        both = [RateLimiter("10/hour", store=cluster_url(nodes), name="a {b} c") for _ in "12"]
        for number in range(10):
            both[number % 2].acquire_sync(key=number % 3, timeout=30)
            both[number % 2].acquire_sync(timeout=30)
        assert joined(*both)
        with pytest.raises(RateLimitExceeded):
            both[0].acquire_sync(timeout=0.3)
        keys = [int(one.command("DBSIZE")[1:]) for one in nodes]
        assert sum(size > 0 for size in keys) == 1, keys


@needs_openssl
def test_tls(tmp_path: Path) -> None:
    port, folder = free_port(), certify(tmp_path)
    program = """
import sys
from ferrogate import RateLimiter, RateLimitExceeded

limiter = RateLimiter("3/hour", store=sys.argv[1], name="encrypted")
for _ in range(3):
    limiter.acquire_sync(timeout=30)
try:
    limiter.acquire_sync(timeout=0.3)
except RateLimitExceeded:
    print("shared")
"""
    with server(*tls_options(folder, port)):
        told = run_well(
            program,
            f"rediss://localhost:{port}/0",
            timeout=60,
            env={**os.environ, "SSL_CERT_FILE": str(folder / "ca.crt")},
        )
    assert told == "shared\n"


def test_a_user_who_may_only_what_is_needed() -> None:
    with server() as one:
        rules = "~ferrogate:* ~{ferrogate:* resetchannels +@read +@write +@scripting +@connection"
        rules += " +time +script +info"
        for user, may in (("agent", rules), ("blind", rules.replace(" +info", ""))):
            one.command("ACL", "SETUSER", user, "on", ">word", *may.split())
        both = [
            RateLimiter("6/hour", store=f"redis://{user}:word@127.0.0.1:{one.port}", name="acl")
            for user in ("agent", "blind")
        ]
        for _ in range(3):
            for limiter in both:
                limiter.acquire_sync(timeout=30)
        for limiter in both:
            with pytest.raises(RateLimitExceeded):
                limiter.acquire_sync(timeout=0.3)


def test_it_is_told_once_that_the_store_is_away_and_once_that_it_is_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with server() as one, caplog.at_level(logging.WARNING, "ferrogate"):
        limiter = RateLimiter("1000/second", store=one.url, name="told")
        limiter.acquire_sync(timeout=30)
        time.sleep(2.5)  # all others would know of it by now

        def alone() -> bool:
            limiter.try_acquire()
            return bool((limiter.get_stats()["shared"] or {}).get("alone"))

        for _ in range(2):
            one.kill()
            asyncio.run(until(alone, 30))
            asyncio.run(until(lambda: limiter.try_acquire() or True))
            one.start()
            asyncio.run(until(lambda: not alone() and joined(limiter), 30))
            limiter.try_acquire()
            time.sleep(2.5)
    said = [record.getMessage() for record in caplog.records]
    assert all("the store does not answer" in text for text in said if "callers are" in text)
    # Whether a caller is refused before it goes on with its share is a matter of what it has left.
    said = [text for text in said if "callers are refused" not in text]
    assert [text.split(":")[1].split(",")[0].strip() for text in said] == [
        "the store does not answer",
        "the store answers again",
    ] * 2, said
    assert all(text.startswith("limiter told: ") for text in said)
    assert "with its share of the limits" in said[0]
