"""HealthMonitor: alerts end with what they speak of."""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable

import pytest

from ferrogate import HealthMonitor


class Hooked:
    """A cache whose figures are asked for in the middle of an evaluation."""

    def __init__(self) -> None:
        self.hook: Callable[[], object] | None = None

    def get_stats(self) -> dict[str, int]:
        hook, self.hook = self.hook, None
        if hook is not None:
            hook()
        return {"hits": 0, "misses": 0}


def test_unregister_in_the_middle_of_an_evaluation_leaves_no_alert() -> None:
    cache = Hooked()
    monitor = HealthMonitor(cache=cache)
    monitor.register("db", lambda: False)
    monitor.check_sync()
    cache.hook = functools.partial(monitor.unregister, "db")
    report = monitor.evaluate()
    assert "db" not in report.components
    assert "check:db" not in {alert.name for alert in report.alerts}
    assert "check:db" not in {alert.name for alert in monitor.alerts()}


def test_a_check_that_recovers_while_others_evaluate_has_no_alert() -> None:
    cache = Hooked()
    healthy = False
    monitor = HealthMonitor(cache=cache)
    monitor.register("db", lambda: healthy)
    monitor.check_sync()
    healthy = True
    cache.hook = monitor.check_sync
    report = monitor.evaluate()
    assert report.components["db"].healthy
    assert "check:db" not in {alert.name for alert in report.alerts}


@pytest.mark.usefixtures("no_leaked_threads")
def test_evaluations_beside_registrations_leave_no_alert() -> None:
    monitor = HealthMonitor()
    ends = threading.Event()
    wrong: list[object] = []

    def evaluates() -> None:
        while not ends.is_set():
            report = monitor.evaluate()
            named = {a.name.removeprefix("check:") for a in report.alerts if ":" in a.name}
            if not named <= report.components.keys():
                wrong.append(report)

    threads = [threading.Thread(target=evaluates) for _ in range(3)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for i in range(300):
            monitor.register(f"c{i}", lambda: False)
            monitor.check_sync()
            monitor.unregister(f"c{i}")
    finally:
        ends.set()
        sys.setswitchinterval(interval)
    for thread in threads:
        thread.join(10)
    assert [a for a in monitor.alerts() if a.name.startswith("check:")] == []
    assert wrong == []


def test_an_alert_too_many_is_one_however_often_it_is_judged() -> None:
    monitor = HealthMonitor(max_alerts=1)
    healthy = False
    monitor.register("a", lambda: False)
    monitor.register("b", lambda: healthy)
    monitor.check_sync()
    for _ in range(20):
        monitor.evaluate()
    assert monitor.get_stats()["alerts_dropped"] == 1
    healthy = True
    monitor.check_sync()
    healthy = False
    monitor.check_sync()
    assert monitor.get_stats()["alerts_dropped"] == 2
    # Room for it at last: an alert like all others.
    monitor.unregister("a")
    assert [alert.name for alert in monitor.alerts()] == ["check:b"]


@pytest.mark.parametrize("name", ["n" * 500, "ä" * 250])
def test_the_longest_names_are_raised_and_resolved(name: str) -> None:
    monitor = HealthMonitor()
    monitor.register(name, lambda: False)
    monitor.check_sync()
    assert [alert.name for alert in monitor.alerts()] == [f"check:{name}"]
    monitor.unregister(name)
    assert monitor.alerts() == []


@pytest.mark.parametrize("name", ["n" * 501, "ä" * 251, "\udcff"])
def test_names_that_no_alert_can_have_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"^name: expected"):
        HealthMonitor().register(name, lambda: True)


@pytest.mark.parametrize("how", ["raised", "returned"])
def test_an_error_without_a_utf_8_form_is_reported(how: str) -> None:
    """It once ended every evaluation with a UnicodeEncodeError."""

    def check() -> dict[str, object]:
        if how == "raised":
            raise ValueError("no file \udcff")
        return {"status": "degraded", "message": "no file \udcff"}

    monitor = HealthMonitor()
    monitor.register("db", check)
    monitor.check_sync()
    [alert] = monitor.alerts()
    assert alert.message.endswith("no file \\udcff")
