"""URLs of Redis that are not what they seem, and what they must not tell."""

from __future__ import annotations

import math
from typing import Any

import pytest
from redis_servers import Server, needs_redis

from ferrogate import CacheClient, CacheService

SECRET = "se3ret"


@pytest.mark.parametrize(
    ("url", "says"),
    [
        (f"redis://:pa#{SECRET}@prod:6379/0", "in a password write"),
        (f"redis://:pa/{SECRET}@prod:6379/0", "in a password write"),
        (f"redis://:pa?{SECRET}@prod:6379/0", "in a password write"),
        (f"redis://u:{SECRET}[x@prod", r"in a password write '\[' as %5B"),
        ("redis://prod/0#1", "expected no"),
        ("redis://prod/0?db=1", "options as arguments"),
        ("redis://pr od/0", "expected no"),
        ("redis://prod:0", "expected host:port, got 'prod:0'"),
        ("redis://prod:66000", "expected host:port"),
        ("redis://prod/٣", "expected the number of a database"),
        ("redis://a:1,b:2", r"expected one host; several are Sentinels"),
        ("redis+cluster://a:1,,b:2", "before and behind each comma"),
    ],
)
def test_refused_without_telling_the_password(url: str, says: str) -> None:
    with pytest.raises(ValueError, match=f"^url: .*{says}") as refused:
        CacheService(url)
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize("url", ["user:%s@h:1", ":%s@h:1", "redis//:%s@h:1", "redis:%s@h", "%s@h"])
def test_a_forgotten_scheme_tells_no_password_either(url: str) -> None:
    with pytest.raises(ValueError, match=r"^url: .*\*\*\*@h") as refused:
        CacheService(url % SECRET)
    assert SECRET not in str(refused.value)


def test_what_the_environment_says_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_MAX_CONNECTIONS", "1")
    with pytest.raises(ValueError, match=r"^REDIS_MAX_CONNECTIONS: .* from 2 on"):
        CacheService("redis://prod")
    monkeypatch.undo()
    monkeypatch.setenv("REDIS_URL", "localhost:6379")
    with pytest.raises(ValueError, match=r"^REDIS_URL: expected "):
        CacheClient()
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"^prefix: "):
        CacheService("redis://prod", prefix="")


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"timeout_seconds": 3601}, ValueError, "timeout_seconds: expected at most 3600 seconds"),
        ({"timeout_seconds": 1e9}, ValueError, "timeout_seconds: expected at most 3600 seconds"),
        ({"sentinel_password": SECRET}, TypeError, "sentinel_password: a redis:// service has no"),
        (
            {"sentinel": "m", "sentinel_password": 1},
            TypeError,
            "sentinel_password: expected a str or None, got int",
        ),
    ],
)
def test_options_that_are_wrong(options: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=f"^{says}") as refused:
        CacheService("redis://prod", **options)
    assert SECRET not in str(refused.value)


@needs_redis
def test_for_ever_is_for_ever(redis: Server) -> None:
    with CacheService(redis.url, timeout_seconds=5, default_ttl=60, prefix="c:") as cache:
        assert cache.set_sync("ns", "k", 1, ttl=math.inf)
        lives = redis.command("EVAL", "return redis.call('PTTL', redis.call('KEYS', 'c:{*')[1])", 0)
        assert lives == b":-1"
