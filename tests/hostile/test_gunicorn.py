"""``gunicorn --preload`` with four workers of each kind, over loopback."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

pytest.importorskip("gunicorn")
pytest.importorskip("uvicorn")

pytestmark = pytest.mark.hostile

# Imported once in the master (`--preload`), with everything running before the fork.
APP = """
import asyncio, json, os, time
from ferrogate import (
    Cache, CacheConfig, HealthMonitor, PerformanceMetrics, RateLimiter, cached,
)

MASTER = os.getpid()
loads = {"sync": 0, "async": 0}
limiter = RateLimiter("100000/minute", burst=4)
narrow = RateLimiter("5/hour")
metrics = PerformanceMetrics()
shared = Cache(CacheConfig(ttl_seconds=60, cleanup_interval=0.01))
monitor = HealthMonitor(interval=0.01)
monitor.register("alive", lambda: True)
monitor.start()

@cached(ttl=60)
def load(key):
    loads["sync"] += 1
    time.sleep(0.02)
    return os.getpid()

@cached(ttl=60)
async def load_async(key):
    loads["async"] += 1
    await asyncio.sleep(0.02)
    return os.getpid()

load("before the fork")
asyncio.run(load_async("before the fork"))
shared["before the fork"] = MASTER
narrow.acquire_sync(2)

def facts(key):
    report = monitor.check_sync()
    return {
        "key": key, "pid": os.getpid(), "master": MASTER, "loads": loads,
        "inherited": shared["before the fork"], "healthy": report.components["alive"].healthy,
        "narrow": bool(narrow.try_acquire()),
    }

def wsgi(environ, start_response):
    with limiter:
        key = environ["PATH_INFO"]
        assert load("before the fork") == MASTER
        value = load(key)
        answer = facts(key) | {"value": value}
        metrics.record_generation(True, 0.1)
        answer["generations"] = metrics.get_stats()["total_generations"]
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps(answer).encode()]

async def asgi(scope, receive, send):
    if scope["type"] != "http":
        return
    async with limiter:
        assert await load_async("before the fork") == MASTER
        value = await load_async(scope["path"])
        # A hanging check would hold the loop; in a service it is awaited.
        await monitor.check()
        answer = facts(scope["path"]) | {"value": value}
        metrics.record_generation(True, 0.1)
        answer["generations"] = metrics.get_stats()["total_generations"]
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(answer).encode()})
"""


@contextmanager
def serving(folder: Path, application: str, *options: str) -> Iterator[tuple[int, int]]:
    """gunicorn's pid and port; afterwards it must stop in time, with 0 and nothing amiss."""
    (folder / "app.py").write_text(APP, encoding="utf-8")
    log = folder / "log"
    command = [sys.executable, "-m", "gunicorn", "--preload", "--workers", "4"]
    command += ["--bind", "127.0.0.1:0", "--graceful-timeout", "5", "--pythonpath", str(folder)]
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*command, *options, f"app:{application}"],
            stdout=out,
            stderr=out,
            cwd=folder,
            env={**os.environ, "HOME": str(folder)},  # it puts a control socket there
            start_new_session=True,
        )
    try:
        end = time.monotonic() + 30
        while not (listening := re.search(r"Listening at: http://127.0.0.1:(\d+)", _read(log))):
            assert process.poll() is None, _read(log)
            assert time.monotonic() < end, _read(log)
            time.sleep(0.02)
        yield process.pid, int(listening[1])
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0, _read(log)
    except BaseException:
        print(_read(log))
        raise
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    amiss = re.search(r"\[ERROR\]|\[CRITICAL\]|Traceback|panicked|Abort|SIGKILL", _read(log))
    assert not amiss, _read(log)


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def ask(port: int, path: str) -> dict[str, object]:
    """One request over a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read()
        assert answer.status == 200, body
        parsed: dict[str, object] = json.loads(body)
        return parsed
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("application", "options"),
    [
        ("wsgi", ()),
        ("wsgi", ("--worker-class", "gthread", "--threads", "4")),
        ("asgi", ("--worker-class", "uvicorn.workers.UvicornWorker")),
    ],
    ids=["sync", "gthread", "uvicorn"],
)
def test_four_workers(tmp_path: Path, application: str, options: tuple[str, ...]) -> None:
    with serving(tmp_path, application, *options) as (master, port):
        seen: Counter[object] = Counter()
        answers = []
        with ThreadPoolExecutor(12) as pool:
            end = time.monotonic() + 30
            # Until every worker has answered: who gets a connection is the kernel's choice.
            while len(seen) < 4 or seen.total() < 120:
                assert time.monotonic() < end, seen
                batch = list(pool.map(lambda n: ask(port, f"/{n % 6}"), range(24)))
                seen.update(answer["pid"] for answer in batch)
                answers += batch
        assert len(seen) == 4
        assert master not in seen
        for pid in seen:
            own = [answer for answer in answers if answer["pid"] == pid]
            # Each worker loaded each key once, itself, and counted its own generations.
            keys = {answer["key"] for answer in own} | {"before the fork"}
            assert {answer["value"] for answer in own} == {pid}
            kind = "async" if application == "asgi" else "sync"
            assert max(a["loads"][kind] for a in own) == len(keys)  # type: ignore[index]
            assert max(a["generations"] for a in own) == len(own)  # type: ignore[type-var]
            # Three permits were left at the fork; each process goes on counting from there.
            assert sum(bool(answer["narrow"]) for answer in own) == min(3, len(own))
        assert all(a["inherited"] == a["master"] and a["healthy"] for a in answers)
