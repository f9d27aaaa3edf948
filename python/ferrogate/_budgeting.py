"""What the native budget has Python make and say."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from ferrogate._calendar import moment
from ferrogate.exceptions import BudgetExceededError

if TYPE_CHECKING:
    from ferrogate.budget import Budget

__all__ = ["NANO_USD", "BudgetAlert", "alert", "exceeded", "limit_text", "report"]

#: Parts of a dollar that the native layer counts in.
NANO_USD = 1_000_000_000

_logger = logging.getLogger("ferrogate")

_WHY = {
    "budget exceeded": "has too little money left",
    "key table full": "has no room for another key: as many as max_keys have spent something",
    "store unavailable": "cannot be read or written",
}


@dataclass(frozen=True)
class BudgetAlert:
    """What ``on_exceeded`` and ``on_threshold`` of a :class:`Budget` are called with."""

    budget: Budget
    """Whose limit it is."""
    key: object
    """Whose money it is, as the caller wrote it, or ``None``."""
    exceeded: bool
    """Whether the limit was exceeded (something was refused for it, or spent beyond it);
    otherwise its threshold was reached."""
    limit: str
    """The limit, as text (``"50 USD/day"``)."""
    limit_usd: float
    """What it allows, in US dollars."""
    spent_usd: float
    """What was reserved and spent of it, in US dollars."""
    resets_at: datetime
    """When it resets, in the budget's time zone."""


def limit_text(usd: float, period: str) -> str:
    """A limit as text."""
    amount = f"{usd:.9f}".rstrip("0").rstrip(".")
    return f"{amount} USD/{period}"


def alert(
    budget: Budget, key: object, exceeded: bool, facts: tuple[str, int, int, int]
) -> BudgetAlert:
    """What a callback is called with."""
    period, limit, used, resets_at = facts
    return BudgetAlert(
        budget=budget,
        key=key,
        exceeded=exceeded,
        limit=limit_text(limit / NANO_USD, period),
        limit_usd=limit / NANO_USD,
        spent_usd=used / NANO_USD,
        resets_at=moment(resets_at, budget._zone),
    )


def exceeded(
    budget: Budget,
    key: object,
    reason: str,
    limit: tuple[str, int, int] | None,
    resets_at: int | None,
    retry_after: float,
) -> BudgetExceededError:
    """The exception for what a budget has refused."""
    told = "" if key is None else f" of {key!r:.80}"
    when = "" if math.isinf(retry_after) else f"; retry after {retry_after:.3f} s"
    text = usd = spent = None
    left = ""
    if limit is not None:
        period, most, used = limit
        usd, spent = most / NANO_USD, used / NANO_USD
        text = limit_text(usd, period)
        left = f" ({limit_text(spent, period).partition(' ')[0]} of {text} spent or reserved)"
    return BudgetExceededError(
        f"budget {budget.name!r}{told} {_WHY.get(reason, reason)}{left}{when}",
        name=budget.name,
        key=key,
        reason=reason,
        limit=text,
        limit_usd=usd,
        spent_usd=spent,
        retry_after=retry_after,
        resets_at=None if resets_at is None else moment(resets_at, budget._zone),
    )


def report(name: str, what: str, error: BaseException | None) -> None:
    """Logs what has gone wrong with a budget's callbacks or its store."""
    _logger.error("budget %r: %s", name, what, exc_info=error)
