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
from pathlib import Path
from typing import Any

import pytest
from waiting import eventually

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

pytestmark = pytest.mark.hostile

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
def serving(folder: Path, workers: int = 2) -> Iterator[Server]:
    """uvicorn as the example's text has it; afterwards it must stop with 0 and nothing amiss."""
    log = folder / "log"
    command = [sys.executable, "-m", "uvicorn", "--app-dir", str(EXAMPLES), "fastapi_sqlite:app"]
    with log.open("w") as out:
        process = subprocess.Popen(
            [*command, "--workers", str(workers), "--port", "0"],
            cwd=folder,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    try:
        ready = r"Application startup complete"
        eventually(lambda: len(re.findall(ready, log.read_text())) == workers, 60)
        found = re.search(r"running on http://127\.0\.0\.1:(\d+)", log.read_text())
        assert found, log.read_text()
        yield Server(int(found[1]))
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) in (0, -signal.SIGTERM), log.read_text()
        for wrong in ("Traceback", "ERROR", "ferrogate"):
            assert wrong not in log.read_text(), log.read_text()
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def test_two_workers_share_a_file(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        # Both are there, and all of them get one worker's answer.
        all_of_them: list[dict[str, Any]] = []

        def both_served() -> bool:
            all_of_them.extend(server.ask("limits", 40))
            return len({one["served_by"] for one in all_of_them}) == 2

        eventually(both_served, 30)
        assert {one["answer"] for one in all_of_them} == {"LIMITS"}
        askers = {one["asked_by"] for one in all_of_them}
        assert len(askers) == 1

        # What one worker invalidates the other does not serve after 100 ms.
        done = server.call("/metrics/cache/invalidate/answers", "POST")
        assert done == {"invalidated": True}
        begin = time.monotonic()
        anew = server.ask("other", 1)  # takes half a second
        assert time.monotonic() - begin > 0.1
        again = server.ask("limits", 40)
        assert len({one["asked_by"] for one in again}) == 1
        assert anew[0]["answer"] == "OTHER"

        shown = server.call("/metrics/cache")
        assert shown["status"] == "healthy"
        assert shown["cache_stats"]["total_requests"] > 0
        assert server.call("/metrics/cache/reset", "POST") == {"status": "reset"}

    # The answers outlive the workers.
    with serving(tmp_path) as server:
        later = server.ask("limits", 10)
        assert {one["asked_by"] for one in later} == {again[0]["asked_by"]}
        assert {one["served_by"] for one in later}.isdisjoint({one["served_by"] for one in again})
