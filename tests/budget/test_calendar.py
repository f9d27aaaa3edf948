"""When a budget resets: calendars, time zones, clocks that go back."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ferrogate import Budget
from ferrogate._calendar import Calendar, moment, zone_of
from ferrogate.testing import ManualClock

HOUR = 3_600_000


def millis(text: str, zone: str = "UTC", fold: int = 0) -> int:
    local = datetime.fromisoformat(text).replace(tzinfo=zone_of(zone), fold=fold)
    return round(local.timestamp() * 1000)


def periods(at: int, zone: str) -> dict[str, tuple[str, str, float]]:
    """Start, end, and hours of each, as its people see them."""
    spans = Calendar(zone_of(zone))(at)
    shown = {}
    for name, (start, end) in zip(("hour", "day", "week", "month"), spans, strict=True):
        begin, over = (moment(when, zone_of(zone)).strftime("%m-%d %H:%M") for when in (start, end))
        shown[name] = (begin, over, (end - start) / HOUR)
    return shown


@pytest.mark.parametrize(
    ("at", "zone", "name", "expected"),
    [
        ("2026-03-14T12:30", "UTC", "hour", ("03-14 12:00", "03-14 13:00", 1)),
        ("2026-03-14T12:30", "UTC", "day", ("03-14 00:00", "03-15 00:00", 24)),
        ("2026-03-14T12:30", "UTC", "week", ("03-09 00:00", "03-16 00:00", 168)),
        ("2026-03-15T23:59", "UTC", "week", ("03-09 00:00", "03-16 00:00", 168)),
        ("2026-03-16T00:00", "UTC", "week", ("03-16 00:00", "03-23 00:00", 168)),
        ("2026-12-31T23:59", "UTC", "month", ("12-01 00:00", "01-01 00:00", 744)),
        ("2027-02-28T12:00", "UTC", "month", ("02-01 00:00", "03-01 00:00", 28 * 24)),
        ("2028-02-29T23:59", "UTC", "month", ("02-01 00:00", "03-01 00:00", 29 * 24)),
        ("2028-02-29T23:59", "UTC", "day", ("02-29 00:00", "03-01 00:00", 24)),
        # The clocks go forward, and back.
        ("2026-03-29T12:00", "Europe/Berlin", "day", ("03-29 00:00", "03-30 00:00", 23)),
        ("2026-10-25T12:00", "Europe/Berlin", "day", ("10-25 00:00", "10-26 00:00", 25)),
        ("2026-10-25T12:00", "Europe/Berlin", "week", ("10-19 00:00", "10-26 00:00", 169)),
        ("2026-03-08T01:59", "America/New_York", "hour", ("03-08 01:00", "03-08 03:00", 1)),
        # Half-hours and quarters.
        ("2026-03-14T12:10", "Asia/Kathmandu", "hour", ("03-14 12:00", "03-14 13:00", 1)),
        # Their midnights do not exist: a day begins when the clocks have gone forward.
        ("2026-03-29T12:00", "Asia/Beirut", "day", ("03-29 01:00", "03-30 00:00", 23)),
        ("2026-09-06T12:00", "America/Santiago", "day", ("09-06 01:00", "09-07 00:00", 23)),
        # These exist twice, on the day before.
        ("2026-04-04T12:00", "America/Santiago", "day", ("04-04 00:00", "04-05 00:00", 25)),
        # A day that Samoa has left out.
        ("2011-12-29T12:00", "Pacific/Apia", "day", ("12-29 00:00", "12-31 00:00", 24)),
        ("2011-12-31T12:00", "Pacific/Apia", "day", ("12-31 00:00", "01-01 00:00", 24)),
    ],
)
def test_periods_are_the_calendars(
    at: str, zone: str, name: str, expected: tuple[str, str, float]
) -> None:
    assert periods(millis(at, zone), zone)[name] == expected


def test_the_hour_that_comes_twice_is_two_hours() -> None:
    first, second = (millis("2026-10-25T02:30", "Europe/Berlin", fold) for fold in (0, 1))
    spans = [Calendar(zone_of("Europe/Berlin"))(at)[0] for at in (first, second)]
    assert spans[0][1] == spans[1][0]
    assert spans[1][1] - spans[0][0] == 2 * HOUR


@given(
    at=st.datetimes(datetime(1971, 1, 1), datetime(2099, 1, 1)),
    zone=st.sampled_from(
        [
            "UTC",
            "Europe/Berlin",
            "America/Santiago",
            "Asia/Beirut",
            "Australia/Lord_Howe",
            "Pacific/Apia",
            "America/Havana",
            "Asia/Kathmandu",
            "Africa/Casablanca",
            "America/Nuuk",
        ]
    ),
)
def test_every_moment_is_in_its_periods_and_they_follow_each_other(at: datetime, zone: str) -> None:
    now = round(at.replace(tzinfo=UTC).timestamp() * 1000)
    calendar = Calendar(zone_of(zone))
    for number, (start, end) in enumerate(calendar(now)):
        assert start <= now < end
        assert calendar(end)[number][0] >= start
        assert calendar(end)[number][1] > end
        if number:
            # The same seen from its first and its last moment.
            assert calendar(end - 1)[number] == (start, end)
            local = moment(now, ZoneInfo(zone))
            begun = moment(start, ZoneInfo(zone))
            assert begun.date() <= local.date() or local.fold == 1


def test_a_day_of_twenty_three_hours_resets_after_them() -> None:
    clock = ManualClock(millis("2026-03-29T00:00", "Europe/Berlin") / 1000)
    budget = Budget("1 USD/day", timezone="Europe/Berlin", clock=clock)
    budget.spend(1)
    assert budget.try_reserve(1).retry_after == 23 * 3600
    clock.advance(timedelta(hours=23) - timedelta(milliseconds=1))
    assert not budget.try_reserve(1)
    clock.advance(0.001)
    assert budget.try_reserve(1)


def test_a_clock_at_zero_will_do() -> None:
    clock = ManualClock()
    budget = Budget("1 USD/hour", "1 USD/week", clock=clock)
    budget.spend(1)
    clock.advance(3 * 86_400)
    assert not budget.try_reserve(1)  # 1 January 1970 was a Thursday
    clock.advance(86_400)
    assert budget.try_reserve(1)


def test_a_clock_at_the_end_of_time_will_do() -> None:
    clock = ManualClock()
    clock._advance_ns(2**64 - 1)
    budget = Budget("1 USD/month", clock=clock)
    budget.spend(1)
    assert not budget.try_reserve(1)
    assert budget.resets_at.year == 2554
