"""How the report writes counts, money and times."""

from __future__ import annotations

__all__ = ["NONE", "duration", "number", "percent", "ratio", "short", "spread", "usd"]

NONE = "-"
"""For what is not known."""


def number(value: int | None) -> str:
    """A count."""
    return NONE if value is None else f"{value:,}"


def percent(value: float | None) -> str:
    """A share of 100."""
    return NONE if value is None else f"{value:.1f} %"


def ratio(value: float | None) -> str:
    """A share of 1."""
    return NONE if value is None else f"{value:.3f}"


def usd(value: float | None) -> str:
    """Money, without its sign."""
    return NONE if value is None else f"{value:,.4f}"


def spread(values: dict[str, float | None]) -> str:
    """p50 / p95 / p99 in one unit."""
    known = [value for p in ("p50", "p95", "p99") if (value := values[p]) is not None]
    if not known:
        return NONE
    if known[-1] < 1:
        return " / ".join(f"{value * 1000:.0f}" for value in known) + " ms"
    return " / ".join(f"{v:.1f}" if v < 100 else f"{v:,.0f}" for v in known) + " s"


def short(seconds: float | None) -> str:
    """A short time, in milliseconds or seconds."""
    if seconds is None:
        return NONE
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    return f"{seconds:.1f} s" if seconds < 100 else f"{seconds:,.0f} s"


def duration(seconds: float) -> str:
    """A time of any length, up to hours."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min {rest} s"
