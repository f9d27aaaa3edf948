"""The optimizer's configurations: as given, by default, or from the environment."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from ferrogate._health_types import AlertThreshold
from ferrogate.cache import CacheConfig
from ferrogate.limiter import RateLimitConfig

_Config = TypeVar("_Config", AlertThreshold, CacheConfig, RateLimitConfig)


def given_or_default(argument: str, value: _Config | None, kind: type[_Config]) -> _Config:
    if value is None:
        return kind()
    if not isinstance(value, kind):
        raise TypeError(f"{argument}: expected a {kind.__name__}, got {type(value).__name__}")
    return value


def _number(text: str) -> float:
    """A whole number where it is one: sizes stay ints, ``0.5`` stays a float."""
    value = _finite(text)
    try:
        return int(text)
    except ValueError:
        return value


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


_Parser = Callable[[str], float]

CACHE_VARIABLES: Mapping[str, tuple[str, _Parser]] = {
    "CACHE_MAX_SIZE": ("max_size", int),
    "CACHE_TTL_SECONDS": ("ttl_seconds", _number),
}
LIMIT_VARIABLES: Mapping[str, tuple[str, _Parser]] = {
    "RATE_LIMIT_PER_MINUTE": ("requests_per_minute", int),
    "RATE_LIMIT_PER_HOUR": ("requests_per_hour", int),
    "RATE_LIMIT_BURST": ("burst_limit", int),
}
ALERT_VARIABLES: Mapping[str, tuple[str, _Parser]] = {
    "ALERT_ERROR_RATE_PERCENT": ("error_rate_percent", _finite),
    "ALERT_RESPONSE_TIME_SECONDS": ("avg_response_time_seconds", _finite),
    "ALERT_MEMORY_PERCENT": ("memory_usage_percent", _finite),
}


def from_environment(
    environ: Mapping[str, str],
    kind: type[_Config],
    variables: Mapping[str, tuple[str, _Parser]],
) -> _Config:
    """A configuration out of the environment; each variable is checked on its own."""
    fields: dict[str, Any] = {}
    for variable, (field, parse) in variables.items():
        text = environ.get(variable, "").strip()
        if not text:
            continue
        try:
            value: Any = parse(text)
        except ValueError:
            expected = "a whole number" if parse is int else "a finite number"
            raise ValueError(f"{variable}: expected {expected}, got {text[:40]!r}") from None
        try:
            kind(**{field: value})
        except ValueError as error:
            raise ValueError(f"{variable}: {error}") from None
        fields[field] = value
    return kind(**fields)
