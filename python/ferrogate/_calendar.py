"""When the hour, the day, the week and the month around a moment begin and end."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta, tzinfo

__all__ = ["PERIODS", "Calendar", "moment", "zone_of"]

#: As the native layer numbers them.
PERIODS = ("hour", "day", "week", "month")

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_HOUR = 3_600_000
_MILLISECOND = timedelta(milliseconds=1)

_Span = tuple[int, int]
_Following = Callable[[date], date]


def zone_of(name: str) -> tzinfo:
    """The time zone of that name.

    Raises:
        TypeError, ValueError: there is none.
    """
    if not isinstance(name, str):
        raise TypeError(f"timezone: expected a str such as 'UTC', got {type(name).__name__}")
    if name == "UTC":
        # Also where there are no time zones at all.
        return UTC
    # Here, as it looks for the system's time zones when it is imported.
    from zoneinfo import ZoneInfo

    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise ValueError(
            f"timezone: expected a name such as 'UTC' or 'Europe/Berlin', got {name!r}; where the "
            "system has no time zones, pip install tzdata"
        ) from None


def moment(millis: int, zone: tzinfo) -> datetime:
    """Milliseconds since 1970 as a date and time of a zone."""
    return (_EPOCH + timedelta(milliseconds=millis)).astimezone(zone)


class Calendar:
    """Called with milliseconds since 1970: the beginning and the end of the hour, the day, the
    week (from Monday on) and the month around them, in the same."""

    def __init__(self, zone: tzinfo) -> None:
        self._zone = zone

    def __call__(self, millis: int) -> tuple[_Span, _Span, _Span, _Span]:
        local = moment(millis, self._zone)
        # Counted back from now, so that each of the two hours of that name has its own.
        since = local.minute * 60_000 + local.second * 1_000 + local.microsecond // 1_000
        hour = millis - since
        today = local.date()
        monday = today - timedelta(days=today.weekday())
        return (
            (hour, hour + _HOUR),
            self._around(millis, today, _next_day),
            self._around(millis, monday, _next_week),
            self._around(millis, today.replace(day=1), _next_month),
        )

    def _around(self, millis: int, first: date, following: _Following) -> _Span:
        start, end = self._midnight(first), self._midnight(following(first))
        while end <= millis:
            # The clocks were set back over midnight: the day that has begun goes on.
            first = following(first)
            start, end = end, self._midnight(following(first))
        return start, end

    def _midnight(self, day: date) -> int:
        """The first moment of a day."""
        local = datetime(day.year, day.month, day.day, tzinfo=self._zone)
        then = local.astimezone(UTC)
        if then.astimezone(self._zone).replace(tzinfo=None) != local.replace(tzinfo=None):
            then = self._first_after_gap(day, then)
        return (then - _EPOCH) // _MILLISECOND

    def _first_after_gap(self, day: date, late: datetime) -> datetime:
        """The first moment of a day without a midnight: the clocks were set forward over it."""
        early = late - timedelta(days=1)
        while late - early > _MILLISECOND:
            middle = early + (late - early) // 2
            if middle.astimezone(self._zone).date() < day:
                early = middle
            else:
                late = middle
        return late.replace(microsecond=late.microsecond // 1_000 * 1_000)


def _next_day(day: date) -> date:
    return day + timedelta(days=1)


def _next_week(day: date) -> date:
    return day + timedelta(days=7)


def _next_month(day: date) -> date:
    return (day + timedelta(days=31)).replace(day=1)
