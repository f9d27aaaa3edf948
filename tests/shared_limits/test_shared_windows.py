"""Four processes on one Redis: no window is over, and none is wasted, whatever happens to whom."""

from __future__ import annotations

import contextlib
import itertools
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from child import patience
from redis_servers import Server, needs_redis, server
from waiting import in_time

pytestmark = [needs_redis, pytest.mark.timeout(patience(120))]

MEMBER = Path(__file__).parents[1] / "support" / "limit_member.py"
SECOND = 1_000_000_000


@contextlib.contextmanager
def members(
    count: int, redis: Server, limit: str, seconds: float, tasks: int, how: str
) -> Iterator[list[subprocess.Popen[str]]]:
    """Children that ask as soon as they are told."""
    with contextlib.ExitStack() as stack:
        all_of_them = []
        for _ in range(count):
            one = subprocess.Popen(
                [sys.executable, str(MEMBER), redis.url, limit, str(seconds), str(tasks), how],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            stack.enter_context(one)
            stack.callback(one.kill)
            all_of_them.append(one)
        for one in all_of_them:
            assert one.stdout
            assert one.stdout.readline() == "ready\n"
        yield all_of_them


def told(
    processes: list[subprocess.Popen[str]], meanwhile: Callable[[], None] = lambda: None
) -> list[Any]:
    """What they print in the end; ``None`` of one that was killed."""
    outputs: list[Any] = [None] * len(processes)

    def read(number: int) -> None:
        out, _ = processes[number].communicate()
        outputs[number] = json.loads(out.splitlines()[-1]) if out.strip() else None

    for one in processes:
        assert one.stdin
        one.stdin.write("\n")
        one.stdin.flush()
    readers = [
        threading.Thread(target=read, args=(number,), daemon=True)
        for number in range(len(processes))
    ]
    for reader in readers:
        reader.start()
    # In this thread: a server ends with the thread that has started it.
    meanwhile()
    for reader in readers:
        reader.join(90)
        assert not reader.is_alive(), "a process did not end"
    return outputs


def grants(outputs: list[Any], *, key: int | None = None) -> list[tuple[int, int]]:
    """All of them, by the time after which each was certainly there."""
    found = (one["grants"] for one in outputs if one)
    return sorted((after, before) for some in found for before, after, of in some if of == key)


def fullest(times: list[int], period: float) -> int:
    """The most that were granted in any window."""
    most = first = 0
    for last, at in enumerate(times):
        while at - times[first] >= period * SECOND:
            first += 1
        most = max(most, last - first + 1)
    return most


def surely(grants: list[tuple[int, int]], period: float) -> int:
    """The most that certainly were granted in any window, however late each came to know of it."""
    grants = sorted((before, after) for after, before in grants)
    most = 0
    for number, (begin, _) in enumerate(grants):
        end = begin + period * SECOND
        inside = 0
        for before, after in itertools.islice(grants, number, None):
            if before >= end:
                break
            inside += after < end
        most = max(most, inside)
    return most


def is_never_over(grants: list[tuple[int, int]], period: float, limit: int) -> None:
    """No promise of time: not tried again where it was broken."""
    most = surely(grants, period)
    if most > limit:
        pytest.fail(f"{most} within a window of {limit}")


def filled(times: list[int], period: float, start: int, end: int) -> float:
    """How many there were in a window, on average over all windows that end within these times."""
    counted = (min(at + int(period * SECOND), end) - max(at, start) for at in times)
    return sum(max(0, one) for one in counted) / (end - start)


@pytest.mark.parametrize("how", ["wait", "sync", "try"])
def test_as_much_as_the_limit_allows_and_never_more(redis: Server, how: str) -> None:
    limit, period, seconds = 200, 2.0, 9.0

    def judge(_: int) -> None:
        with members(4, redis, f"{limit}/{period}s", seconds, 20, how) as four:
            outputs = told(four)
        times = [after for after, _ in grants(outputs)]
        is_never_over(grants(outputs), period, limit)
        if how == "sync":
            # Nobody knows when a thread that has waited was granted what it asked for.
            assert fullest(times, period) <= limit
        used = len(times) / (limit * seconds / period)
        assert used >= 0.95, (used, [len(one["grants"]) for one in outputs])
        # Each got something all the time.
        counts = [len(one["grants"]) for one in outputs]
        assert min(counts) > limit / 10, counts

    time.sleep(2)  # Redis has just been started, and may have forgotten something for all they know
    in_time(judge)


def test_each_key_has_its_own(redis: Server) -> None:
    def judge(_: int) -> None:
        with members(4, redis, "50/2s", 5, 16, "keys") as four:
            outputs = told(four)
        for key in range(4):
            granted = grants(outputs, key=key)
            is_never_over(granted, 2, 50)
            assert len(granted) >= 2 * 50

    in_time(judge)


@pytest.mark.parametrize("fault", ["kill", "quick", "kept", "quickly kept", "stop", "short stop"])
def test_redis_is_lost_in_the_middle(fault: str) -> None:
    limit, period, seconds = 300, 3.0, 23.0 if fault == "kill" else 18.5
    times: dict[str, int] = {}
    options = ("--appendonly", "yes", "--appendfsync", "everysec") if "kept" in fault else ()

    def break_it(redis: Server) -> None:
        times["end"] = time.clock_gettime_ns(time.CLOCK_BOOTTIME) + int(seconds * SECOND)
        time.sleep(6)
        times["lost"] = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        if "stop" in fault:
            redis.stop()
        else:
            redis.kill()
        # Some have noticed after a second, and others not.
        time.sleep({"kill": 8.5, "short stop": 1.1}.get(fault, 0 if "quick" in fault else 4))
        if "stop" in fault:
            redis.go_on()
        else:
            redis.start()
        times["found"] = time.clock_gettime_ns(time.CLOCK_BOOTTIME)

    def judge(_: int) -> None:
        with (
            server(*options) as redis,
            members(4, redis, f"{limit}/{period}s", seconds, 20, "wait") as four,
        ):
            outputs = told(four, lambda: break_it(redis))
        # No more than the limit in any window: while it is up, and (a hundredth more is promised)
        # while it is away and afterwards.
        is_never_over(grants(outputs), period, limit)
        granted = [after for after, _ in grants(outputs)]
        lost, found, end = times["lost"], times["found"], times["end"]
        # And no less than a tenth less, where a window is so short that waking eighty tasks counts;
        # the test above has the exact figure.
        first = granted[0] + int(period * SECOND)
        assert filled(granted, period, first, lost) >= 0.9 * limit
        back = found + int((1 + period) * SECOND)
        assert filled(granted, period, back, end) >= 0.9 * limit
        if fault == "kill":
            # What others may have had has left the window: each spends a fourth on its own.
            away = [at for at in granted if lost + SECOND < at < found]
            assert len(away) >= 0.9 * limit
        assert all(one["stats"]["shared"]["joined"] for one in outputs)

    in_time(judge)


def test_a_process_that_dies_takes_no_more_than_its_slices_with_it(redis: Server) -> None:
    limit, period, seconds = 200, 2.0, 14.0

    def judge(_: int) -> None:
        with members(4, redis, f"{limit}/{period}s", seconds, 20, "wait") as four:

            def kill_one() -> None:
                time.sleep(3)
                four[0].kill()

            outputs = told(four, kill_one)
        times = [after for after, _ in grants(outputs)]
        assert outputs[0] is None
        is_never_over(grants(outputs), period, limit)
        end = times[-1]
        # It is forgotten after five seconds, and the others have all of it.
        assert sum(at > end - period * SECOND for at in times) >= 0.95 * limit

    in_time(judge)


def test_a_process_that_was_stopped_spends_nothing_that_is_not_its_own_any_more(
    redis: Server,
) -> None:
    limit, period, seconds = 200, 2.0, 14.0

    def judge(_: int) -> None:
        with members(4, redis, f"{limit}/{period}s", seconds, 1, "try") as four:

            def stop_one() -> None:
                time.sleep(3)
                four[0].send_signal(signal.SIGSTOP)
                time.sleep(6)
                four[0].send_signal(signal.SIGCONT)

            outputs = told(four, stop_one)
        is_never_over(grants(outputs), period, limit)
        assert all(one["stats"]["shared"]["joined"] for one in outputs)

    in_time(judge)
