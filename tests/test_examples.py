"""The examples, run as their first lines say."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from child import patience
from redis_servers import needs_redis
from redis_servers import server as redis_server
from waiting import eventually, in_time

pytestmark = pytest.mark.hostile

#: A worker that did not answer its supervisor for five seconds would be replaced.
PATIENT = ["--timeout-worker-healthcheck", "60"]

needs_fastapi = pytest.mark.skipif(
    not all(map(find_spec, ("fastapi", "uvicorn"))), reason="needs fastapi and uvicorn"
)

EXAMPLES = Path(__file__).parent.parent / "examples"


class Server:
    """The workers behind one port."""

    def __init__(self, port: int) -> None:
        self.address = f"http://127.0.0.1:{port}"

    def call(self, path: str, method: str = "GET") -> Any:
        request = urllib.request.Request(self.address + path, method=method)
        with urllib.request.urlopen(request, timeout=30) as response:
            return json.load(response)

    def ask(self, question: str, times: int = 1) -> list[dict[str, Any]]:
        with ThreadPoolExecutor(min(times, 20)) as pool:
            return list(pool.map(self.call, [f"/ask?question={question}"] * times))


@contextmanager
def serving(folder: Path, url: str | None, workers: int = 2) -> Iterator[Server]:
    """uvicorn as the example's text has it; afterwards it must stop with 0 and nothing amiss."""
    log = folder / "log"
    command = [sys.executable, "-m", "uvicorn", "--app-dir", str(EXAMPLES), "fastapi_sqlite:app"]
    with log.open("w") as out:
        process = subprocess.Popen(
            [*command, "--workers", str(workers), "--port", "0", *PATIENT],
            cwd=folder,
            stdout=out,
            stderr=out,
            env=os.environ | ({} if url is None else {"CACHE_URL": url}),
            start_new_session=True,
        )
    try:
        ready = r"Application startup complete"
        eventually(lambda: len(re.findall(ready, log.read_text())) >= workers, 60)
        found = re.search(r"running on http://127\.0\.0\.1:(\d+)", log.read_text())
        assert found, log.read_text()
        yield Server(int(found[1]))
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) in (0, -signal.SIGTERM), log.read_text()
        for wrong in ("Traceback", "ERROR", "ferrogate"):
            assert wrong not in log.read_text(), log.read_text()
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def ask_both(server: Server, question: str) -> list[dict[str, Any]]:
    """Until both workers have served it."""
    answers: list[dict[str, Any]] = []

    def both_served() -> bool:
        answers.extend(server.ask(question, 40))
        return len({one["served_by"] for one in answers}) == 2

    eventually(both_served, 60)
    assert {one["answer"] for one in answers} == {question.upper()}
    return answers


@pytest.fixture(params=["sqlite", pytest.param("redis", marks=needs_redis)])
def url(request: pytest.FixtureRequest) -> Iterator[str | None]:
    """Another store than the example's own file."""
    if request.param == "sqlite":
        yield None
    else:
        with redis_server() as one:
            yield one.url


@needs_fastapi
@pytest.mark.timeout(patience(120))
def test_two_workers_share_a_store(url: str | None, tmp_path: Path) -> None:
    with serving(tmp_path, url) as server:
        asked: list[str] = []

        def one_asks(attempt: int) -> None:
            # A commit that waited for longer than 0.25 s, twice, may have its worker ask as well.
            asked.append(f"limits{attempt}")
            assert len({one["asked_by"] for one in ask_both(server, asked[-1])}) == 1

        in_time(one_asks)

        def nobody_serves_the_old_one(_attempt: int) -> None:
            done = server.call("/metrics/cache/invalidate/answers", "POST")
            assert done == {"invalidated": True}
            # The other worker hears of it within 100 ms.
            time.sleep(0.5)
            begin = time.monotonic()
            with ThreadPoolExecutor(20) as pool:
                first = min(pool.map(lambda _: answered(), range(40)))
            # The model takes half a second; the old answer would be there before.
            assert first - begin > 0.4, first - begin

        def answered() -> float:
            server.ask(asked[-1])
            return time.monotonic()

        in_time(nobody_serves_the_old_one)
        again = ask_both(server, asked[-1])
        assert len({one["asked_by"] for one in again}) == 1

        eventually(lambda: server.call("/metrics/cache")["status"] == "healthy")
        eventually(lambda: server.call("/metrics/cache")["cache_stats"]["total_requests"] > 0)
        assert server.call("/metrics/cache/reset", "POST") == {"status": "reset"}

    # The answers outlive the workers.
    with serving(tmp_path, url) as server:
        later = server.ask(asked[-1], 10)
        assert {one["asked_by"] for one in later} == {again[0]["asked_by"]}
        assert {one["served_by"] for one in later}.isdisjoint({one["served_by"] for one in again})


IN_TESTS = """
import sys
from fastapi.testclient import TestClient
from fastapi_sqlite import app

asked_by = set()
for turn in range(2):
    with TestClient(app) as client:
        answer = client.get("/ask", params={"question": "limits"}).json()
        assert answer["answer"] == "LIMITS", answer
        asked_by.add(answer["asked_by"])
        stats = client.get("/metrics/cache").json()
        assert stats["status"] == "healthy", stats
        assert stats["cache_stats"]["hits"] == turn, stats
        assert client.post("/metrics/cache/invalidate/a%1Fb").status_code == 422
assert len(asked_by) == 1
"""


@needs_fastapi
@pytest.mark.timeout(patience(60))
def test_an_app_may_be_started_again_in_its_process(tmp_path: Path) -> None:
    pytest.importorskip("httpx")
    paths = [str(EXAMPLES), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    done = subprocess.run(
        [sys.executable, "-c", IN_TESTS],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def reported(example: str) -> dict[str, list[str]]:
    """What an agent's report has before and after, by line."""
    done = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / f"{example}.py")],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    rows = [re.split(r"\s{2,}", line.strip()) for line in done.stdout.splitlines()]
    return {row[0]: row[1:] for row in rows if len(row) == 3}


@pytest.mark.parametrize("sdk", ["openai", "anthropic"])
@pytest.mark.timeout(patience(150))
def test_an_agent_sends_no_more_than_it_has_to_with_a_guard_underneath(sdk: str) -> None:
    pytest.importorskip(sdk)
    report = reported(f"{sdk}_agent")
    calls, refused, failed = (
        [int(count) for count in report[what]]
        for what in ("calls at the provider", "answered 429", "answered 500")
    )
    assert refused[1] == 0 < refused[0]
    assert calls[1] == 60 + failed[1] < calls[0]
    assert report["agents done"][1] == "20 of 20"
    if sdk == "anthropic":
        assert report["output tokens"][1] == report["as counted here"][1]
