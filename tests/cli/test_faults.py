"""What goes wrong in the middle of a replay: it is told, and the report is still printed."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import openai
import pytest

from ferrogate.cli.agent import Ask, Attempts, Reply, Run
from ferrogate.cli.sending import replay_rows
from ferrogate.cli.traces import Row

LONG = ["--seconds", "3000", "--speed", "5"]


def children(pid: int) -> list[int]:
    listed = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in listed]


@pytest.mark.parametrize("flags", [["--json"], ["--json", "--stream"], []], ids=" ".join)
def test_a_killed_provider_ends_the_run_with_a_partial_report(flags: list[str]) -> None:
    for patience in (1.0, 4.0, 12.0):  # a busy machine may not have sent anything by then
        process = subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "ferrogate.cli", "demo", *LONG, *flags],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        deadline = time.monotonic() + 30
        while not (providers := children(process.pid)):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        time.sleep(patience)
        os.kill(providers[0], signal.SIGKILL)
        killed = time.monotonic()
        out, err = process.communicate(timeout=30)
        waited = time.monotonic() - killed
        if out:
            break
    assert waited < 5
    assert process.returncode == 1
    last = err.splitlines()[-1]
    assert last == (
        "ferrogate: the provider's process ended before the replay did (killed by SIGKILL)"
    )
    if "--json" not in flags:
        assert "PARTIAL: the provider's process ended" in " ".join(out.split())
        assert "Traceback" not in err
        return
    assert len(err.splitlines()) == 1
    report = json.loads(out)
    assert report["partial"] is True
    assert set(report["runs"]) == {"with"}  # nothing is played to nobody
    run = report["runs"]["with"]
    assert "SIGKILL" in run["stopped"]
    assert run["interrupted"] is False
    assert 0 < run["requests"] < report["trace"]["requests"]
    assert run["answered"] + run["unfinished"] + run["failed"] == run["requests"]
    assert (run["usd_spent"], run["provider"]) == (None, {})


def test_a_second_ctrl_c_ends_it_at_once_and_leaves_nothing_behind() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "ferrogate.cli", "demo", *LONG, "--json"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 30
    while not (providers := children(process.pid)):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(1.0)
    for _ in range(3):
        process.send_signal(signal.SIGINT)
        time.sleep(0.05)
    assert process.wait(10) == 130
    while any(Path(f"/proc/{pid}").exists() for pid in providers):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_pause_stays_a_pause_after_any_number_of_attempts() -> None:
    client = openai.AsyncOpenAI(api_key="k")
    attempts = Attempts(client, model="m", speed=1.0, retries=9, timeout=1.0, stream=False, seed=0)
    assert 0.375 < attempts._pause(0, {}) <= 0.5
    for attempt in (4, 10, 1_100, 10**9):
        assert 6.0 < attempts._pause(attempt, {}) <= 8.0


ROWS = tuple(Row(0.0, 1, 1, str(number), number) for number in range(20))


class Odd:
    """An agent that answers every other row."""

    async def ask(self, ask: Ask) -> Reply:
        await asyncio.sleep(0)
        if ask.row.line % 2:
            raise OverflowError("an error that nobody thought of")
        return Reply("", 1, 1)


def test_an_unexpected_error_is_a_failed_request_and_named() -> None:
    run, ended = Run("with"), []
    asyncio.run(
        replay_rows(Odd(), ROWS, run, speed=1.0, done=lambda ask, reply, _: ended.append(reply))
    )
    assert (run.requests, run.answered, run.failed) == (20, 10, 10)
    assert run.errors == {"OverflowError": 10}
    assert len(ended) == 20


def test_books_that_fail_are_not_reported() -> None:
    def done(ask: Ask, reply: Reply | None, seconds: float) -> None:
        raise OverflowError("in the books")

    with pytest.raises(OverflowError, match="in the books"):
        asyncio.run(replay_rows(Odd(), ROWS, Run("with"), speed=1.0, done=done))


def test_a_cancelled_run_counts_every_request_once() -> None:
    """An answer that is there when the run is cancelled is an answer, not an unfinished request."""
    run = Run("with")

    class Slow:
        async def ask(self, ask: Ask) -> Reply:
            if ask.row.line % 2:
                await asyncio.Event().wait()
            return Reply("", 1, 1)

    async def main() -> None:
        def done(*_: object) -> None:
            if run.answered == 10:
                task.cancel()

        task = asyncio.create_task(replay_rows(Slow(), ROWS, run, speed=1.0, done=done))
        await task

    asyncio.run(main())
    assert (run.requests, run.answered, run.unfinished) == (20, 10, 10)
