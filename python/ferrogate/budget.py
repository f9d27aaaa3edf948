"""Money as a limit: reserved before a call, settled after it, reset by the calendar."""

from __future__ import annotations

import inspect
import itertools
import os
import re
import weakref
from collections.abc import Callable
from datetime import datetime, tzinfo
from typing import Any, Literal, TypedDict, TypeVar

from ferrogate import _core, _suites
from ferrogate._again import remembers
from ferrogate._arguments import flag, globally_disabled
from ferrogate._budgeting import NANO_USD, BudgetAlert, limit_text
from ferrogate._calendar import PERIODS, Calendar, moment, zone_of
from ferrogate._core import BudgetReservation, Denial
from ferrogate._service_url import path_of, refuse_place, shown, url_of

__all__ = ["Budget", "BudgetAlert", "BudgetReservation", "BudgetStats", "BudgetUsage", "Denial"]

Period = Literal["hour", "day", "week", "month"]

_Callback = TypeVar("_Callback", bound="Callable[[BudgetAlert], object]")

_LIMIT = re.compile(
    r"\s*(?:(?P<usd>[0-9][0-9_]*(?:\.[0-9]+)?|\.[0-9]+)\s*USD|\$\s*(?P<dollars>[0-9][0-9_]*(?:\.[0-9]+)?))"
    r"\s*(?:/|per\b)\s*(?P<period>hour|day|week|month)\s*",
    re.IGNORECASE | re.ASCII,
)


#: US dollars; their billionths are 63 bits.
_MOST = (2**63 - 1) // NANO_USD


class BudgetUsage(TypedDict):
    """One limit of :meth:`Budget.usage`; amounts in US dollars."""

    limit_usd: float
    """What is allowed."""
    spent_usd: float
    """Reserved and spent in the period that runs; more than the limit if there are debts."""
    remaining_usd: float
    """What can still be reserved."""
    resets_at: datetime
    """When the next period begins, in the budget's time zone."""


class BudgetStats(TypedDict):
    """What :meth:`Budget.get_stats` returns: counts of this object since its construction."""

    name: str
    store: str
    """``"memory"`` or ``"sqlite"``."""
    timezone: str
    hard: bool
    enabled: bool
    limits: dict[str, float]
    """US dollars, by the limits' texts."""
    granted: int
    """Reservations granted."""
    rejected: int
    """Requests refused."""
    settled: int
    """Reservations settled."""
    released: int
    """Reservations given back, dropped ones included."""
    open: int
    """Reservations that are neither yet."""
    reserved_usd: float
    """What those have reserved."""
    keys: int
    """Accounts that the store has of this budget."""
    callback_errors: int
    """How often a callback raised."""
    store_errors: int
    """How often the store could not be read or written."""
    unsaved: int
    """Settlements that the store could not be told yet."""


_living: weakref.WeakSet[Budget] = weakref.WeakSet()


class Budget(_core.Budget):
    """Grants money per hour, day, week or month of the calendar, and remembers what was spent.

    ::

        budget = Budget("50 USD/day", "500 USD/month", store="sqlite:///./money.db")

        with budget.reserve(0.05) as money:  # BudgetExceededError
            answer = await client.chat.completions.create(...)
            money.settle(cost_of(answer))

    A call takes what it may cost from all limits together or from none, and corrects it to what
    it has cost: less goes back at once; more counts too, even beyond the limit, and nothing is
    granted then until the limit resets. Nothing here ever waits. One budget serves all threads
    and event loops of the process; those of several processes with the same ``name`` and the
    same SQLite file spend the same money, to the last cent, and a restart forgets nothing.

    ``LLMLimiter(budget=)`` reserves and settles for every call by itself.

    Args:
        limits: such as ``"50 USD/day"``; per hour, day, week (from Monday on) or month, each
            once. Counted in billionths of a dollar.
        key: whose money a call without ``key=`` spends: a value, or a function without arguments
            that tells, such as ``ContextVar.get``. Each key has an account of its own. ``None``:
            there is one account for all who name no key; an ``LLMLimiter`` then does not tell
            its tenants apart.
        store: ``"memory"``, or ``"sqlite:///path"`` (or a ``pathlib.Path``): a file for all
            processes of this machine.
        name: for messages and statistics; in a file, which of its budgets.
        timezone: whose midnight counts: ``"UTC"`` or a name such as ``"Europe/Berlin"``.
        hard: ``False`` refuses nothing and only calls back.
        on_exceeded: called with a :class:`BudgetAlert` when something is first refused for a
            limit, or spent beyond it: once for each key, limit and period.
        on_threshold: the same when ``threshold`` of a limit is first reserved or spent.
        threshold: a share of each limit, above 0 and up to 1.
        max_keys: accounts that may have spent something in periods that still run. A full table
            refuses new keys and forgets none of these.
        clock: a ``ferrogate.testing.ManualClock`` for tests; its time is seconds since 1970.
        enabled: ``False`` (or ``FERROGATE_DISABLED=1``) grants and counts everything, and does
            not touch the store.

    A callback is a plain function. It runs in the call that has brought it about, with no lock
    held; what it raises is logged once for each budget and counted.

    Raises:
        ValueError, TypeError: a wrong argument; the message names it.
        OSError: the store's file cannot be opened, or is broken: what was spent is not known
            then, and it does not begin at zero by itself.
    """

    _zone: tzinfo
    _timezone: str
    _limits: list[tuple[int, float]]
    _in_file: bool
    _made_with: tuple[tuple[Any, ...], dict[str, Any]]

    @remembers
    def __new__(
        cls,
        *limits: str,
        key: object = None,
        store: str | os.PathLike[str] = "memory",
        name: str = "budget",
        timezone: str = "UTC",
        hard: bool = True,
        on_exceeded: Callable[[BudgetAlert], object] | None = None,
        on_threshold: Callable[[BudgetAlert], object] | None = None,
        threshold: float = 0.8,
        max_keys: int = 65_536,
        clock: _core.ManualClock | None = None,
        enabled: bool = True,
    ) -> Budget:
        parsed = _parsed(limits)
        zone = zone_of(timezone)
        enabled = flag("enabled", enabled) and not globally_disabled()
        path = _path_of(store)
        if path is not None and enabled:
            refuse_place(path, "store")
        if not isinstance(name, str):
            raise TypeError(f"name: expected a str, got {type(name).__name__}")
        if not name:
            raise ValueError("name: expected a name, got ''")
        asks_for_key = callable(key)
        if inspect.iscoroutinefunction(key):
            raise TypeError("key: expected a plain function, got a coroutine function")
        if not asks_for_key:
            _core.cache_key(key=key)  # refuses what no other process could name
        self = super().__new__(
            cls,
            parsed,
            key=key,
            asks_for_key=asks_for_key,
            path=path,
            name=name,
            timezone=timezone,
            calendar=Calendar(zone),
            hard=flag("hard", hard),
            on_exceeded=_callback("on_exceeded", on_exceeded),
            on_threshold=_callback("on_threshold", on_threshold),
            threshold=_share("threshold", threshold),
            max_keys=max_keys,
            clock=clock,
            enabled=enabled,
        )
        self._zone = zone
        self._timezone = timezone
        self._limits = parsed
        self._in_file = path is not None
        _living.add(self)
        _suites.register(self)
        return self

    @property
    def limits(self) -> tuple[str, ...]:
        """The limits as text, in their order."""
        return tuple(_text(limit) for limit in self._limits)

    @property
    def resets_at(self) -> datetime:
        """When the first of the limits resets next, in the budget's time zone."""
        now = self._now()
        _, end = Calendar(self._zone)(now)[self._limits[0][0]]
        return moment(end, self._zone)

    def spent(self, key: object = None, *, period: Period | None = None) -> float:
        """US dollars reserved and spent in the period that runs, debts included.

        Args:
            key: whose; not given, the budget's own ``key=``.
            period: of which limit; not given, of the first.

        Raises:
            ValueError: there is no limit for such a period.
            OSError: the store cannot be asked.
        """
        asked = PERIODS[self._limits[0][0]] if period is None else period
        for known, _, used, _ in self._usage(key):
            if known == asked:
                return used / NANO_USD
        kinds = " or ".join(repr(PERIODS[which]) for which, _ in self._limits)
        raise ValueError(f"period: expected {kinds}, which this budget limits, got {period!r}")

    def usage(self, key: object = None) -> dict[str, BudgetUsage]:
        """What is allowed, spent and left of each limit, by the limits' texts.

        Raises:
            OSError: the store cannot be asked.
        """
        told = {}
        for period, limit, used, end in self._usage(key):
            told[limit_text(limit / NANO_USD, period)] = BudgetUsage(
                limit_usd=limit / NANO_USD,
                spent_usd=used / NANO_USD,
                remaining_usd=max(limit - used, 0) / NANO_USD,
                resets_at=moment(end, self._zone),
            )
        return told

    def reset(self, key: object = None, *, all_keys: bool = False) -> bool:
        """Forgets what was spent, in the store too; true if there was something.

        What was reserved before and is settled now no longer counts, but for what exceeds the
        reservation.

        Args:
            key: whose; not given, the budget's own ``key=``.
            all_keys: of all keys.

        Raises:
            OSError: the store cannot be asked; then nothing is forgotten.
        """
        return self._forget(key, flag("all_keys", all_keys))

    def _reset(self) -> None:
        """Forgets what was spent, for test suites; what stands in a file is their own business."""
        if not self._in_file:
            self._forget(None, True)

    def update(self, *limits: str) -> None:
        """Changes the limits while running, for this process; what was spent keeps counting.

        A period that had no limit before begins at zero.

        Raises:
            ValueError, TypeError: a wrong limit; then nothing changes.
        """
        parsed = _parsed(limits)
        self._update(parsed)
        self._limits = parsed

    def get_stats(self) -> BudgetStats:
        """Counts since construction and what is open now."""
        counts = self._stats()
        return {
            "name": self.name,
            "store": "sqlite" if self._in_file else "memory",
            "timezone": self._timezone,
            "hard": self.hard,
            "enabled": self.enabled,
            "limits": {_text(limit): limit[1] for limit in self._limits},
            "granted": counts["granted"],
            "rejected": counts["rejected"],
            "settled": counts["settled"],
            "released": counts["released"],
            "open": counts["open"],
            "reserved_usd": counts["reserved_usd"],
            "keys": counts["keys"],
            "callback_errors": counts["callback_errors"],
            "store_errors": counts["store_errors"],
            "unsaved": counts["unsaved"],
        }

    def __repr__(self) -> str:
        stats = self.get_stats()
        parts = [*self.limits, stats["store"], f"{stats['reserved_usd']:g} USD reserved"]
        if not self.hard:
            parts.append("not hard")
        if not self.enabled:
            parts.append("disabled")
        return f"<Budget {self.name!r}: {', '.join(parts)}>"


def _parsed(limits: tuple[str, ...]) -> list[tuple[int, float]]:
    if not limits:
        raise ValueError('limits: expected at least one, such as "50 USD/day"')
    parsed: list[tuple[int, float]] = []
    for text in limits:
        if not isinstance(text, str):
            raise TypeError(
                f'limits: expected texts such as "50 USD/day", got {type(text).__name__}'
            )
        match = _LIMIT.fullmatch(text)
        if match is None:
            raise ValueError(
                'limits: expected US dollars per hour, day, week or month, such as "50 USD/day", '
                f"got {text!r:.80}"
            )
        amount = float((match["usd"] or match["dollars"]).replace("_", ""))
        if not 1 / NANO_USD <= amount <= _MOST:
            raise ValueError(
                f"limits: expected more than 0 and at most {_MOST} US dollars, counted in "
                f"billionths, got {text!r:.80}"
            )
        period = PERIODS.index(match["period"].lower())
        if any(period == other for other, _ in parsed):
            raise ValueError(f"limits: expected one per {PERIODS[period]}, got another: {text!r}")
        parsed.append((period, amount))
    by_length = sorted(parsed)
    for shorter, longer in itertools.pairwise(by_length):
        if longer[1] < shorter[1]:
            raise ValueError(
                f"limits: expected at least as much in a longer period, got {_text(shorter)} and "
                f"{_text(longer)}"
            )
    return parsed


def _text(limit: tuple[int, float]) -> str:
    return limit_text(limit[1], PERIODS[limit[0]])


def _path_of(store: str | os.PathLike[str]) -> str | None:
    """The file of a store; ``None`` for memory."""
    if isinstance(store, str):
        if store in ("memory", "memory://"):
            return None
        scheme = store.partition(":")[0]
        if scheme.startswith("redis"):
            raise ValueError(
                'store: expected "memory" or "sqlite:///path"; budgets in Redis are not there yet'
            )
        if not store.startswith("sqlite://"):
            raise ValueError(
                'store: expected "memory", "sqlite:///path" or a pathlib.Path, '
                f"got {shown(store)!r:.80}"
            )
    elif not isinstance(store, os.PathLike):
        raise TypeError(
            f'store: expected "memory", "sqlite:///path" or a path, got {type(store).__name__}'
        )
    return path_of(url_of(store), "store")


def _callback(argument: str, callback: _Callback | None) -> _Callback | None:
    if callback is None:
        return None
    if not callable(callback):
        raise TypeError(
            f"{argument}: expected a function of a BudgetAlert, got {type(callback).__name__}"
        )
    if inspect.iscoroutinefunction(callback):
        raise TypeError(
            f"{argument}: expected a plain function, got a coroutine function, which nobody "
            "would await; have it create a task"
        )
    return callback


def _share(argument: str, share: float) -> float:
    if isinstance(share, bool) or not isinstance(share, int | float):
        raise TypeError(f"{argument}: expected a share such as 0.8, got {type(share).__name__}")
    if not 0 < share <= 1:
        raise ValueError(f"{argument}: expected a share above 0 and up to 1, got {share!r}")
    return float(share)


def _after_fork_in_child() -> None:
    for budget in tuple(_living):
        budget._after_fork()


_suites.tell(_core._bypass_budgets)
