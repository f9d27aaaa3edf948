"""Breakers that share their state on a Cluster, behind Sentinels, and as a user who may little."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path
from typing import Any

import pytest
from child import patience
from redis_modes import cluster, cluster_url, sentinel
from redis_servers import Server, needs_redis, server
from waiting import eventually

from ferrogate import CircuitBreaker, CircuitBreakerConfig

pytestmark = [needs_redis, pytest.mark.timeout(patience(240))]


def pair(url: str) -> list[CircuitBreaker]:
    config = CircuitBreakerConfig(timeout_seconds=1.0)
    both = [CircuitBreaker("a {b} c", config, store=url) for _ in range(2)]
    eventually(lambda: all(stats(one)["joined"] for one in both), 60)
    return both


def stats(breaker: CircuitBreaker) -> Any:
    return breaker.get_stats()["shared"]


def share(url: str) -> None:
    """One opens, the other one's probes close both."""
    first, second = pair(url)
    for _ in range(5):
        with contextlib.suppress(ValueError), first:
            raise ValueError
    eventually(second.is_open)

    def closes() -> bool:
        with contextlib.suppress(Exception):
            second.call_sync(int)
        return second.state == "closed"

    eventually(closes)
    eventually(lambda: first.state == "closed")
    assert (stats(second)["opened_elsewhere"], stats(first)["closed_elsewhere"]) == (1, 1)


def test_on_a_cluster(tmp_path: Path) -> None:
    with cluster(tmp_path) as nodes:
        share(cluster_url(nodes))


def test_behind_sentinels(tmp_path: Path) -> None:
    master = Server(tmp_path / "master")
    with contextlib.closing(master), sentinel(tmp_path, master) as port:
        share(f"redis+sentinel://127.0.0.1:{port}/mymaster/0")


def test_a_user_who_may_not_listen_asks_more_often() -> None:
    with server() as one:
        rules = "~{ferrogate:* resetchannels +@read +@write +@scripting +@connection +time +script"
        one.command("ACL", "SETUSER", "agent", "on", ">word", *rules.split())
        share(f"redis://agent:word@127.0.0.1:{one.port}")


def test_it_is_told_once_that_the_store_is_away_and_once_that_it_is_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with server() as one, caplog.at_level(logging.WARNING, "ferrogate"):
        breaker, _ = pair(one.url)
        for _ in range(2):
            one.kill()
            eventually(lambda: stats(breaker)["alone"])
            one.start()
            eventually(lambda: stats(breaker)["joined"])
            breaker.call_sync(int)
    said = [record.getMessage() for record in caplog.records]
    # The other one is not used, so nobody says what its task has to say.
    assert [text.split(": ")[1].split(",")[0] for text in said] == [
        "the store does not answer",
        "the store answers again",
    ] * 2, said
    assert all(text.startswith("circuit breaker a {b} c: ") for text in said)
