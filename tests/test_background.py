"""The one kind of thread that works in the background: how it starts, pauses and ends."""

from __future__ import annotations

import gc
import logging
import threading
import time
import weakref
from collections.abc import Callable

import pytest
from waiting import eventually

from ferrogate._background import Rounds, Stop

pytestmark = pytest.mark.usefixtures("no_leaked_threads")


class Worker:
    """Does what it is told to in rounds and counts them."""

    def __init__(self, work: Callable[[Stop], float | None]) -> None:
        self.work = work
        self.done = 0
        self.threads: set[int] = set()
        self.rounds = Rounds(self.round, "ferrogate-test")

    def round(self, stop: Stop) -> float | None:
        self.threads.add(threading.get_ident())
        try:
            return self.work(stop)
        finally:
            self.done += 1


def test_nothing_runs_before_the_start_and_after_the_stop() -> None:
    worker = Worker(lambda _: 0.0)
    worker.rounds.wake()
    worker.rounds.stop(1)
    assert not worker.rounds.running
    worker.rounds.start()
    eventually(lambda: worker.done > 3)
    worker.rounds.start()
    worker.rounds.stop(5)
    assert not worker.rounds.running
    assert len(worker.threads) == 1
    done = worker.done
    worker.rounds.wake()
    time.sleep(0.02)
    assert worker.done == done


@pytest.mark.parametrize("pause", [3600.0, 1e300, float("inf")])
def test_a_pause_ends_when_woken(pause: float) -> None:
    worker = Worker(lambda _: pause)
    worker.rounds.start()
    for n in range(1, 5):
        eventually(lambda n=n: worker.done >= n)
        worker.rounds.wake()
    begun = time.monotonic()
    worker.rounds.stop(5)
    assert time.monotonic() - begun < 2


def test_it_ends_by_itself_and_starts_again() -> None:
    worker = Worker(lambda _: None)
    for n in range(1, 5):
        worker.rounds.start()
        eventually(lambda: not worker.rounds.running)
        assert worker.done == n


def test_a_start_during_the_last_round_is_not_lost() -> None:
    """The thread that has found nothing to do must not end past somebody who brought work."""
    brought: list[int] = []
    worker = Worker(lambda _: brought.clear())
    for i in range(2000):
        brought.append(i)
        worker.rounds.start()
        if i % 20 == 0:
            eventually(lambda: not brought)
    eventually(lambda: not brought and not worker.rounds.running)


def test_many_starters_have_one_thread() -> None:
    inside, most = 0, 0

    def work(_: Stop) -> float:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        time.sleep(0.001)
        inside -= 1
        return 0.0

    worker = Worker(work)
    starters = [threading.Thread(target=worker.rounds.start) for _ in range(16)]
    for starter in starters:
        starter.start()
    for starter in starters:
        starter.join()
    eventually(lambda: worker.done > 5)
    worker.rounds.stop(5)
    assert (most, len(worker.threads)) == (1, 1)


def test_a_failing_round_is_logged_once_and_tried_again(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ferrogate._background._RETRY", 0.001)

    def work(_: Stop) -> float:
        raise LookupError("told")

    worker = Worker(work)
    with caplog.at_level(logging.ERROR, logger="ferrogate"):
        worker.rounds.start()
        eventually(lambda: worker.rounds.errors > 3)
        worker.rounds.stop(5)
    assert [record.message for record in caplog.records] == [
        "ferrogate-test failed; further failures are only counted"
    ]


def test_a_stop_is_seen_inside_of_a_round() -> None:
    def work(stop: Stop) -> float:
        stop.result(timeout=5)
        return 0.0

    worker = Worker(work)
    worker.rounds.start()
    worker.rounds.stop(5)
    assert worker.done <= 1
    assert not worker.rounds.running


def test_stopped_from_its_own_round() -> None:
    def work(_: Stop) -> float:
        worker.rounds.stop(5)
        return 0.0

    worker = Worker(work)
    worker.rounds.start()
    eventually(lambda: not worker.rounds.running)
    eventually(lambda: worker.done == 1)


def test_the_thread_ends_with_its_owner() -> None:
    begun = threading.Event()

    def work(_: Stop) -> float:
        begun.set()
        return 3600.0

    worker = Worker(work)
    worker.rounds.start()
    assert begun.wait(5)
    [thread] = [t for t in threading.enumerate() if t.name == "ferrogate-test"]
    reference = weakref.ref(worker)
    del worker
    gc.collect()
    assert reference() is None
    thread.join(5)
    assert not thread.is_alive()
