"""`Budget`: what it grants, what it refuses, and what it says."""

from __future__ import annotations

import asyncio
import contextvars
import copy
import gc
import logging
import math
import pickle
import threading
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from ferrogate import Budget, BudgetAlert, BudgetExceededError
from ferrogate.budget import BudgetReservation, Denial
from ferrogate.testing import ManualClock, bypass, reset_all

NOON = datetime(2026, 3, 14, 12, tzinfo=UTC).timestamp()
DAY = 86_400


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(NOON)


def test_a_reservation_is_settled_at_what_it_has_cost(clock: ManualClock) -> None:
    budget = Budget("50 USD/day", "500 USD/month", clock=clock)
    reservation = budget.try_reserve(10)
    assert isinstance(reservation, BudgetReservation)
    assert reservation.granted
    assert (budget.spent(), budget.remaining()) == (10, 40)
    assert reservation.settle(2.5)
    assert not reservation.settle(9)
    assert not reservation.release()
    assert (budget.spent(), budget.spent(period="month"), budget.remaining()) == (2.5, 2.5, 47.5)
    assert reservation.state == "settled"
    assert reservation.cost_usd == 10
    over = budget.reserve(1)
    over.settle(60)
    assert (budget.spent(), budget.remaining()) == (62.5, 0)
    assert not budget.try_reserve(0)


def test_a_refusal_says_what_there_is_to_know(clock: ManualClock) -> None:
    budget = Budget("50 USD/day", name="llm", clock=clock)
    budget.spend(30, "acme")
    denial = budget.try_reserve(20.5, "acme")
    assert isinstance(denial, Denial)
    assert not denial
    assert not denial.granted
    assert (denial.reason, denial.dimension) == ("budget exceeded", "usd/day")
    assert (denial.limit, denial.remaining, denial.retry_after) == (50, 20, DAY / 2)
    assert "20 of 50 USD/day left" in repr(denial)
    with pytest.raises(BudgetExceededError) as raised:
        budget.reserve(20.5, key="acme")
    error = raised.value
    assert (error.name, error.key, error.reason) == ("llm", "acme", "budget exceeded")
    assert (error.limit, error.limit_usd, error.spent_usd) == ("50 USD/day", 50, 30)
    assert error.retry_after == DAY / 2
    assert error.resets_at == datetime(2026, 3, 15, tzinfo=UTC) == budget.resets_at
    assert "30 of 50 USD/day" in str(error)


def test_the_limit_that_resets_last_is_to_blame(clock: ManualClock) -> None:
    budget = Budget("10 USD/day", "12 USD/week", clock=clock)
    budget.spend(9)
    assert budget.try_reserve(2).dimension == "usd/day"
    denial = budget.try_reserve(4)
    assert (denial.dimension, denial.limit, denial.remaining) == ("usd/week", 12, 3)
    assert denial.retry_after == 1.5 * DAY  # 14 March 2026 is a Saturday


def test_a_period_begins_at_zero(clock: ManualClock) -> None:
    budget = Budget("10 USD/day", "30 USD/month", clock=clock)
    for _ in range(3):
        budget.reserve(10).settle()
        assert not budget.try_reserve(0.01)
        clock.advance(DAY / 2 - 0.001)
        assert not budget.try_reserve(0.01)
        clock.advance(0.001 + DAY / 2)
    denial = budget.try_reserve(1)
    assert denial.dimension == "usd/month"
    clock.advance(denial.retry_after - 0.001)
    assert not budget.try_reserve(1)
    clock.advance(0.001)
    assert budget.try_reserve(1)


def test_what_was_reserved_yesterday_goes_back_to_yesterday(clock: ManualClock) -> None:
    budget = Budget("10 USD/day", clock=clock)
    under, over = budget.reserve(5), budget.reserve(5)
    clock.advance(DAY)
    assert budget.spent() == 0
    under.settle(1)
    assert budget.spent() == 0
    over.settle(7)  # known today: counts today
    assert budget.spent() == 2


def test_more_than_can_ever_be_granted_is_an_error_at_once(clock: ManualClock) -> None:
    budget = Budget("50 USD/day", "60 USD/month", name="llm", clock=clock)
    with pytest.raises(ValueError, match="usd: expected at most the 50 USD/day"):
        budget.reserve(50.01)
    denial = budget.try_reserve(50.01)
    assert denial.reason == "cost exceeds limit"
    assert math.isinf(denial.retry_after)
    assert budget.try_reserve(50)


def test_keys_have_accounts_of_their_own(clock: ManualClock) -> None:
    budget = Budget("1 USD/day", clock=clock)
    for key in ("a", "b", ("a", 1), 7, b"a", None):
        assert budget.reserve(1, key).settle()
        assert not budget.try_reserve(0.1, key)
    assert budget.spent() == budget.spent(7.0) == 1
    assert budget.get_stats()["keys"] == 6
    with pytest.raises(TypeError, match="key"):
        budget.try_reserve(1, object())


def test_the_budget_may_know_whose_money_it_is(clock: ManualClock) -> None:
    fixed = Budget("1 USD/day", key="acme", clock=clock)
    fixed.spend(0.25)
    assert (fixed.spent(), fixed.spent("acme"), fixed.spent("other")) == (0.25, 0.25, 0)
    tenant: contextvars.ContextVar[str] = contextvars.ContextVar("tenant")
    budget = Budget("1 USD/day", key=tenant.get, clock=clock)
    with pytest.raises(LookupError):
        budget.try_reserve(0.1)
    token = tenant.set("acme")
    budget.spend(0.5)
    tenant.reset(token)
    assert (budget.spent("acme"), budget.spent("other")) == (0.5, 0)


def test_a_full_table_forgets_nobody_who_has_spent(clock: ManualClock) -> None:
    budget = Budget("1 USD/day", max_keys=2, clock=clock)
    budget.spend(0.5, "a")
    held = budget.reserve(0.5, "b")
    denial = budget.try_reserve(0.5, "c")
    assert (denial.reason, denial.retry_after) == ("key table full", DAY / 2)
    with pytest.raises(BudgetExceededError, match="max_keys") as raised:
        budget.reserve(0.5, "c")
    assert raised.value.reason == "key table full"
    held.release()  # b has spent nothing
    assert budget.try_reserve(0.5, "c").settle()
    assert budget.spent("a") == 0.5
    clock.advance(DAY / 2)
    for key in ("d", "e"):
        budget.spend(0.5, key)
    assert budget.get_stats()["keys"] == 2


def test_blocks_settle_and_give_back(clock: ManualClock) -> None:
    budget = Budget("10 USD/day", clock=clock)
    with budget.reserve(1):
        pass
    with pytest.raises(KeyError), budget.reserve(2):
        raise KeyError
    with budget.reserve(4) as money:
        money.settle(3)

    async def main() -> None:
        async with budget.reserve(1) as money:
            assert money.state == "open"
        with pytest.raises(KeyError):
            async with budget.reserve(2):
                raise KeyError

    asyncio.run(main())
    assert budget.spent() == 5
    dropped: Any = budget.reserve(5)
    assert budget.spent() == 10
    del dropped
    gc.collect()
    stats = budget.get_stats()
    assert budget.spent() == 5
    assert (stats["granted"], stats["settled"], stats["released"]) == (6, 3, 3)
    assert (stats["open"], stats["reserved_usd"]) == (0, 0)


def test_callbacks_come_once_for_each_key_and_period(clock: ManualClock) -> None:
    told: list[BudgetAlert] = []
    budget = Budget(
        "10 USD/day",
        on_exceeded=told.append,
        on_threshold=told.append,
        threshold=0.5,
        clock=clock,
    )

    def news() -> list[tuple[object, bool, float]]:
        found = [(alert.key, alert.exceeded, alert.spent_usd) for alert in told]
        told.clear()
        return found

    budget.spend(4.999, "a")
    assert news() == []
    reservation = budget.reserve(0.001, "a")
    assert news() == [("a", False, 5)]
    reservation.release()
    budget.spend(4, "a")
    assert news() == []
    for _ in range(2):
        assert not budget.try_reserve(2, "a")
    assert news() == [("a", True, 8.999)]
    budget.spend(20, "b")
    alerts = list(told)
    assert news() == [("b", False, 20), ("b", True, 20)]
    assert alerts[1].budget is budget
    assert alerts[1].limit == "10 USD/day"
    assert (alerts[1].limit_usd, alerts[1].resets_at) == (10, budget.resets_at)
    clock.advance(DAY)
    budget.reserve(1, "a").settle(11)
    assert news() == [("a", False, 11), ("a", True, 11)]


def test_a_soft_budget_only_calls_back(clock: ManualClock) -> None:
    told: list[BudgetAlert] = []
    budget = Budget("1 USD/day", hard=False, on_exceeded=told.append, clock=clock)
    for _ in range(5):
        budget.reserve(100).settle()
    assert [alert.spent_usd for alert in told] == [100]
    assert (budget.spent(), budget.remaining()) == (500, 0)


def test_a_callback_that_raises_is_logged_once_and_counted(
    clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(alert: BudgetAlert) -> None:
        raise ZeroDivisionError

    budget = Budget("1 USD/day", name="llm", on_exceeded=fails, clock=clock)
    with caplog.at_level(logging.ERROR, "ferrogate"):
        for key in range(3):
            assert budget.reserve(1, key).settle()
            assert not budget.try_reserve(1, key)
    assert len(caplog.records) == 1
    assert "'llm'" in caplog.text
    assert "ZeroDivisionError" in caplog.text
    assert budget.get_stats()["callback_errors"] == 3


def test_a_callback_may_use_the_budget(clock: ManualClock) -> None:
    def more(alert: BudgetAlert) -> None:
        alert.budget.update("2 USD/day")
        gc.collect()

    budget = Budget("1 USD/day", on_exceeded=more, clock=clock)
    budget.spend(1)
    assert not budget.try_reserve(0.5)
    assert budget.try_reserve(0.5)
    assert budget.limits == ("2 USD/day",)


def test_limits_change_while_running(clock: ManualClock) -> None:
    budget = Budget("10 USD/day", clock=clock)
    budget.spend(8)
    budget.update("5 USD/day", "20 USD/month")
    assert (budget.remaining(), budget.spent(), budget.spent(period="month")) == (0, 8, 0)
    budget.update("$10.5 per day")
    assert (budget.remaining(), budget.limits) == (2.5, ("10.5 USD/day",))
    with pytest.raises(ValueError, match="limits"):
        budget.update()
    with pytest.raises(ValueError, match="period: expected 'day'"):
        budget.spent(period="month")
    assert budget.limits == ("10.5 USD/day",)


def test_a_reset_forgets_what_was_spent(clock: ManualClock) -> None:
    budget = Budget("10 USD/day", clock=clock)
    held = budget.reserve(6, "a")
    budget.spend(10, "b")
    assert budget.reset("a")
    assert not budget.reset("a")
    budget.spend(3, "a")
    held.settle(1)  # it takes nothing from what came after
    assert (budget.spent("a"), budget.spent("b")) == (3, 10)
    assert budget.reset(all_keys=True)
    assert (budget.spent("a"), budget.spent("b")) == (0, 0)


def test_a_disabled_budget_counts_and_refuses_nothing(
    clock: ManualClock, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    path = tmp_path / "money.db"
    budget = Budget("1 USD/day", enabled=False, store=path, clock=clock)
    budget.reserve(100).settle(500)
    budget.spend(1_000)
    assert (budget.spent(), budget.remaining()) == (0, 1)
    assert (budget.get_stats()["granted"], path.exists()) == (1, False)
    # Nobody looks whether there could be a file.
    nowhere = tmp_path / "nowhere" / "money.db"
    assert Budget("1 USD/day", enabled=False, store=nowhere).try_reserve(5)
    with pytest.raises(FileNotFoundError, match="store: its directory"):
        Budget("1 USD/day", store=nowhere)
    monkeypatch.setenv("FERROGATE_DISABLED", "1")
    assert not Budget("1 USD/day", store=nowhere).enabled


def test_suites_reset_and_bypass_it(clock: ManualClock) -> None:
    budget = Budget("1 USD/day", clock=clock)
    budget.spend(5)
    reset_all()
    assert budget.spent() == 0
    budget.spend(5)
    with bypass():
        assert budget.reserve(100).settle(100)
        budget.spend(9)
        assert budget.spent() == 0
    assert budget.try_reserve(1)


def test_a_thousand_callers_get_exactly_what_there_is(clock: ManualClock) -> None:
    budget = Budget("10 USD/day", "100 USD/week", clock=clock)

    async def call(number: int) -> float:
        reservation = budget.try_reserve(0.03)
        if isinstance(reservation, Denial):
            return 0.0
        await asyncio.sleep(0)
        if number % 5 == 0:
            reservation.release()
            return 0.0
        cost = 0.01 if number % 2 else 0.03
        reservation.settle(cost)
        return cost

    async def main() -> list[float]:
        return list(await asyncio.gather(*(call(number) for number in range(1000))))

    spent = 0.0
    for _ in range(3):
        spent += sum(asyncio.run(main()))
        assert budget.spent() == pytest.approx(spent)
        assert budget.spent() <= 10
    while budget.try_reserve(0.03):
        budget.spend(0.03)
    assert 10 - 0.03 < budget.spent() <= 10
    stats = budget.get_stats()
    assert stats["open"] == 0
    assert stats["granted"] == stats["settled"] + stats["released"]
    assert stats["rejected"] > 0


def test_threads_spend_to_the_cent() -> None:
    budget = Budget("1 USD/day")
    granted: list[int] = []

    def work() -> None:
        mine = 0
        while True:
            reservation = budget.try_reserve(0.002)
            if isinstance(reservation, Denial):
                break
            reservation.settle(0.001)
            mine += 1
        granted.append(mine)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(granted) * 0.001 == pytest.approx(budget.spent())
    assert 1 - 8 * 0.002 < budget.spent() <= 1


def test_amounts_are_exact() -> None:
    budget = Budget("0.000000005 USD/day")
    for _ in range(5):
        budget.reserve(1e-9).settle()
    assert not budget.try_reserve(1e-9)
    assert Budget("1_000.50 USD/month").usage()["1000.5 USD/month"]["limit_usd"] == 1000.5
    assert Budget("1 USD/day").try_reserve(Decimal("0.5"))  # type: ignore[arg-type]
    tiny = Budget("1 USD/day")
    tiny.spend(1e-12)
    assert tiny.spent() == 1e-9  # what is above nothing does not become nothing


@pytest.mark.parametrize("usd", [-1, -0.01, math.nan, math.inf, -math.inf, 10**400])
def test_wrong_amounts_are_refused(usd: float) -> None:
    budget = Budget("1 USD/day")
    for call in (budget.try_reserve, budget.reserve, budget.spend):
        with pytest.raises(ValueError, match="usd: expected finite US dollars"):
            call(usd)
    reservation = budget.reserve(0.5)
    with pytest.raises(ValueError, match="cost_usd"):
        reservation.settle(usd)
    assert reservation.state == "open"


@pytest.mark.parametrize("usd", [True, "1", None, [1]])
def test_what_is_no_amount_is_refused(usd: Any) -> None:
    budget = Budget("1 USD/day")
    with pytest.raises(TypeError, match="usd: expected finite US dollars"):
        budget.try_reserve(usd)


@pytest.mark.parametrize(
    ("limits", "named", "message"),
    [
        ((), {}, "limits: expected at least one"),
        (("50 EUR/day",), {}, "limits: expected US dollars"),
        (("50 USD/year",), {}, "limits: expected US dollars"),
        (("-5 USD/day",), {}, "limits: expected US dollars"),
        (("nan USD/day",), {}, "limits: expected US dollars"),
        (("0 USD/day",), {}, "limits: expected more than 0"),
        (("0.0000000001 USD/day",), {}, "limits: .* in billionths, got '0.0000000001 USD/day'"),
        (("99999999999 USD/day",), {}, "limits: .* at most 9223372036 .*'99999999999 USD/day'"),
        ((f"{10**400} USD/day",), {}, "limits: .* at most 9223372036 .* got '1000"),
        (("5 USD/day", "6 USD/day"), {}, "limits: expected one per day"),
        (("5 USD/day", "4 USD/month"), {}, "limits: expected at least as much in a longer"),
        (("5 USD/day",), {"timezone": "Mars/Olympus"}, "timezone: expected a name"),
        (("5 USD/day",), {"timezone": "../../etc/passwd"}, "timezone: expected a name"),
        (("5 USD/day",), {"timezone": ""}, "timezone: expected a name"),
        (("5 USD/day",), {"store": "redis://localhost"}, "store: .*Redis"),
        (("5 USD/day",), {"store": "mysql://x:secret@y"}, r"store: expected .*\*\*\*"),
        (("5 USD/day",), {"store": "sqlite://money.db"}, "store: expected three slashes"),
        (("5 USD/day",), {"name": ""}, "name: expected a name"),
        (("5 USD/day",), {"threshold": 0}, "threshold: expected a share"),
        (("5 USD/day",), {"threshold": math.nan}, "threshold: expected a share"),
        (("5 USD/day",), {"threshold": 1.5}, "threshold: expected a share"),
        (("5 USD/day",), {"max_keys": 0}, "max_keys: expected an int"),
    ],
)
def test_wrong_values_name_their_argument(
    limits: tuple[str, ...], named: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Budget(*limits, **named)


async def coroutine_function(*_: object) -> None: ...


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({"key": object()}, "key"),
        ({"key": coroutine_function}, "key: expected a plain function"),
        ({"store": 5}, "store: expected"),
        ({"name": 5}, "name: expected a str"),
        ({"timezone": None}, "timezone: expected a str"),
        ({"hard": 1}, "hard: expected True or False"),
        ({"enabled": "yes"}, "enabled: expected True or False"),
        ({"on_exceeded": 5}, "on_exceeded: expected a function"),
        ({"on_threshold": coroutine_function}, "on_threshold: expected a plain function"),
        ({"threshold": "0.5"}, "threshold: expected a share"),
        ({"max_keys": True}, "max_keys: expected an int"),
        ({"clock": 5}, "clock: expected"),
    ],
)
def test_wrong_types_name_their_argument(named: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        Budget("5 USD/day", **named)
    with pytest.raises(TypeError, match="limits: expected texts"):
        Budget(5)  # type: ignore[arg-type]


def test_it_says_what_it_is(clock: ManualClock) -> None:
    budget = Budget("$5 per hour", "50 usd/day", name="llm", timezone="Asia/Kolkata", clock=clock)
    held = budget.reserve(0.5)
    shown = "<Budget 'llm': 5 USD/hour, 50 USD/day, memory, 0.5 USD reserved>"
    assert repr(budget) == shown
    assert repr(held) == "<BudgetReservation open: 0.5 USD>"
    assert budget.get_stats()["limits"] == {"5 USD/hour": 5, "50 USD/day": 50}
    usage = budget.usage()["5 USD/hour"]
    assert (usage["spent_usd"], usage["remaining_usd"]) == (0.5, 4.5)
    # 12:00 UTC is 17:30 there: its hours begin at half past.
    assert usage["resets_at"].timestamp() == NOON + 1_800
    for copied in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="budget"):
            copied(budget)


def test_it_is_collected_with_what_it_holds(clock: ManualClock) -> None:
    import weakref

    from child import is_collected

    class Owner:
        def tell(self, alert: BudgetAlert) -> None: ...

    owner: Any = Owner()
    owner.budget = Budget("5 USD/day", on_exceeded=owner.tell, clock=clock)
    owner.held = owner.budget.reserve(1)
    gone = weakref.ref(owner)
    del owner
    assert is_collected(gone)
