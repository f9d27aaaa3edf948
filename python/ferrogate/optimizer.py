"""One object for cache, limiter, metrics and health, with one dashboard."""

from __future__ import annotations

import math
import os
from collections.abc import Awaitable, Callable, Iterable, Mapping
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypedDict, TypeVar, cast

from ferrogate._arguments import globally_disabled
from ferrogate._health_types import (
    AlertDict,
    AlertThreshold,
    HealthDetailed,
    HealthReport,
    HealthStats,
    SystemMetrics,
    iso,
)
from ferrogate.cache import Cache, CacheConfig, CacheStats, cache_key
from ferrogate.health import HealthMonitor
from ferrogate.limiter import RateLimitConfig, RateLimiter, RateLimiterStats
from ferrogate.metrics import PerformanceMetrics, PerformanceStats

if TYPE_CHECKING:
    from ferrogate._core import ManualClock

__all__ = [
    "Dashboard",
    "DashboardAnswer",
    "OptimizerStats",
    "PerformanceAnswer",
    "ProductionOptimizer",
]

_Config = TypeVar("_Config", AlertThreshold, CacheConfig, RateLimitConfig)


class CacheFigures(TypedDict):
    """Of a dashboard; ``hit_rate`` is 0..1."""

    size: int
    max_size: int
    hits: int
    misses: int
    hit_rate: float


class LimiterFigures(TypedDict):
    """Of a dashboard; ``rejection_rate`` is 0..1."""

    current_minute_requests: int
    concurrent_requests: int
    rejection_rate: float


class PerformanceFigures(TypedDict):
    """Of a dashboard; means are per generation."""

    total_generations: int
    success_rate_percent: float
    avg_time_seconds: float
    avg_tokens: float
    total_cost_usd: float
    throughput_per_hour: float


class Dashboard(TypedDict):
    """What :meth:`ProductionOptimizer.get_dashboard` returns."""

    timestamp: str
    status: str
    healthy: bool
    alerts_count: int
    alerts: list[AlertDict]
    system: SystemMetrics
    cache: CacheFigures
    rate_limiting: LimiterFigures
    performance: PerformanceFigures


class DashboardAnswer(TypedDict):
    """The answer of ``GET /dashboard``."""

    status: str
    dashboard: Dashboard


class PerformanceAnswer(TypedDict):
    """The answer of ``GET /performance``."""

    status: str
    performance: PerformanceStats


class OptimizerStats(TypedDict):
    """What :meth:`ProductionOptimizer.get_stats` returns: all parts' own statistics."""

    name: str | None
    version: str | None
    enabled: bool
    cache: CacheStats
    rate_limiter: RateLimiterStats
    performance: PerformanceStats
    health: HealthStats


# A key with more colons than this is still cached; it is then found under its
# first eight prefixes only, so that a URL with a thousand does not weigh a megabyte.
_MAX_PREFIXES = 8


def _category_tags(key: object) -> tuple[str, ...]:
    """A tag for every category that ``key`` belongs to: each part before a colon."""
    if not isinstance(key, str) or ":" not in key:
        return ()
    tags: list[str] = []
    end = key.find(":")
    while end != -1 and len(tags) < _MAX_PREFIXES:
        tags.append(f"category:{key[:end]}")
        end = key.find(":", end + 1)
    return tuple(tags)


def _with_category(key: object, tags: Iterable[str] | None) -> Iterable[str]:
    if isinstance(tags, str):
        return tags  # refused by the cache, which names the argument
    return (*(tags or ()), *_category_tags(key))


class CategoryCache(Cache[Any, Any]):
    """A cache that knows the category of a key by its prefix, ``"{category}:…"``.

    Writing adds a tag for it, so that :meth:`invalidate_category` costs as
    much as there are entries to remove and never a scan. Reading is the plain
    native cache.
    """

    def set(
        self,
        key: Any,
        value: Any,
        ttl: float | timedelta | None = None,
        tags: Iterable[str] | None = None,
    ) -> None:
        """Stores ``value``; like :meth:`Cache.set`."""
        super().set(key, value, ttl, _with_category(key, tags))

    def __setitem__(self, key: Any, value: Any) -> None:
        super().set(key, value, None, _category_tags(key))

    def get_or_set(
        self,
        key: Any,
        factory: Callable[[], Awaitable[Any]],
        *,
        ttl: float | timedelta | None = None,
        tags: Iterable[str] | None = None,
    ) -> Awaitable[Any]:
        """Like :meth:`Cache.get_or_set`."""
        return super().get_or_set(key, factory, ttl=ttl, tags=_with_category(key, tags))

    def get_or_set_sync(
        self,
        key: Any,
        factory: Callable[[], Any],
        *,
        ttl: float | timedelta | None = None,
        tags: Iterable[str] | None = None,
    ) -> Any:
        """Like :meth:`Cache.get_or_set_sync`."""
        return super().get_or_set_sync(key, factory, ttl=ttl, tags=_with_category(key, tags))

    def invalidate_category(self, category: str) -> int:
        """Removes all entries whose key starts with ``"{category}:"``; returns how many."""
        return self.invalidate_tag(f"category:{category}")


class ProductionOptimizer:
    """Cache, rate limiter, performance metrics and health monitor of one service.

    ::

        optimizer = ProductionOptimizer(cache_config=CacheConfig(max_size=1000))
        key = optimizer.cache_key("sensor", "http", min_confidence=0.7)
        patterns = optimizer.cache.get(key)
        if patterns is None:
            patterns = load_patterns()
            optimizer.cache.set(key, patterns)
        optimizer.record_generation(success=True, time_seconds=8.3, tokens=2450, cost_usd=0.02)

    Figures are read and judged when they are asked for. In the background runs
    only the cache's clean-up, and from :meth:`start` (or ``with``) until
    :meth:`stop` the health monitor.

    Args:
        cache_config: size, TTL and clean-up of :attr:`cache`.
        rate_limit_config: windows and burst of :attr:`limiter`.
        alert_threshold: levels beyond which :attr:`health` raises alerts.
        version: part of every :meth:`cache_key`; a new version of prompts or
            patterns does not see the old one's entries.
        enabled: ``False`` (or ``FERROGATE_DISABLED=1``) caches, limits and
            alerts nothing; generations are still counted.
        disk_path: a path on the file system that is watched.

    Raises:
        TypeError, ValueError: an argument that cannot be used, by name.
    """

    def __init__(
        self,
        cache_config: CacheConfig | None = None,
        rate_limit_config: RateLimitConfig | None = None,
        alert_threshold: AlertThreshold | None = None,
        *,
        version: str | int | None = None,
        enabled: bool = True,
        disk_path: str | os.PathLike[str] = os.sep,
        name: str | None = None,
        clock: ManualClock | None = None,
    ) -> None:
        self.cache_config = _config("cache_config", cache_config, CacheConfig)
        self.rate_limit_config = _config("rate_limit_config", rate_limit_config, RateLimitConfig)
        self.alert_threshold = _config("alert_threshold", alert_threshold, AlertThreshold)
        self.name = name
        self.version = None if version is None else str(version)
        self.enabled = bool(enabled) and not globally_disabled()
        self.cache = CategoryCache(self.cache_config, name=name, clock=clock, enabled=self.enabled)
        self.limiter = RateLimiter(
            self.rate_limit_config, name=name, clock=clock, enabled=self.enabled
        )
        self.metrics = PerformanceMetrics(name, clock=clock)
        self.health = HealthMonitor(
            self.alert_threshold,
            metrics=self.metrics,
            cache=self.cache if self.cache.enabled else None,
            limiter=self.limiter,
            disk_path=disk_path,
            enabled=self.enabled,
            name=name,
            clock=clock,
        )

    # -- cache -------------------------------------------------------------

    def cache_key(self, category: str, /, *parts: Any, **named: Any) -> str:
        """``"{category}:{digest}"``, the same in every process for the same arguments.

        Raises:
            TypeError: ``category`` is no string, or an argument has no canonical form.
            ValueError: ``category`` is empty.
        """
        if not isinstance(category, str):
            raise TypeError(f"category: expected a str, got {type(category).__name__}")
        if not category:
            raise ValueError("category: expected a non-empty str")
        if self.version is not None:
            parts = ("version", self.version, *parts)
        return f"{category}:{cache_key(*parts, **named)}"

    def invalidate(self, category: str | None = None) -> int:
        """Removes the cached entries of one category, or all; returns how many.

        An entry belongs to a category when its key starts with
        ``"{category}:"``, however it was stored.
        """
        if category is not None:
            if not isinstance(category, str):
                raise TypeError(f"category: expected a str or None, got {type(category).__name__}")
            return self.cache.invalidate_category(category)
        count = len(self.cache)
        self.cache.clear()
        return count

    # -- metrics -----------------------------------------------------------

    def record_generation(
        self,
        success: bool,
        time_seconds: float,
        tokens: int = 0,
        retries: int = 0,
        cost_usd: float = 0.0,
    ) -> None:
        """Counts one generation: see :meth:`PerformanceMetrics.record_generation`.

        Raises:
            TypeError, ValueError: a number that cannot be, by name.
        """
        self.metrics.record_generation(success, time_seconds, tokens, retries, cost_usd)

    def get_performance(self) -> PerformanceStats:
        """Totals, means and percentiles of all generations."""
        return self.metrics.get_stats()

    def performance_answer(self) -> PerformanceAnswer:
        """The answer of ``GET /performance``."""
        return {"status": "success", "performance": self.get_performance()}

    # -- health and dashboard ------------------------------------------------

    def get_dashboard(self) -> Dashboard:
        """Everything at one look.

        Judges the system now; of registered checks it shows the last outcomes.
        ``status`` is ``"healthy"`` or ``"degraded"``.
        """
        report = self.health.evaluate()
        cache, limiter = self.cache.get_stats(), self.limiter.get_stats()
        performance = self.metrics.get_stats()
        return {
            "timestamp": iso(report.checked_at),
            "status": _status(report),
            "healthy": report.healthy,
            "alerts_count": len(report.alerts),
            "alerts": [alert.to_dict() for alert in report.alerts],
            "system": report.metrics,
            "cache": {
                "size": cache["size"],
                "max_size": cache["max_size"],
                "hits": cache["hits"],
                "misses": cache["misses"],
                "hit_rate": cache["hit_rate"],
            },
            "rate_limiting": {
                # None only after an update() that took the window away.
                "current_minute_requests": limiter["current_minute_requests"] or 0,
                "concurrent_requests": limiter["concurrent_requests"],
                "rejection_rate": limiter["rejection_rate"],
            },
            "performance": {
                "total_generations": performance["total_generations"],
                "success_rate_percent": performance["success_rate_percent"],
                "avg_time_seconds": performance["avg_generation_time_seconds"],
                "avg_tokens": performance["avg_tokens_per_generation"],
                "total_cost_usd": performance["total_cost_usd"],
                "throughput_per_hour": performance["throughput_per_hour"],
            },
        }

    def dashboard_answer(self) -> DashboardAnswer:
        """The answer of ``GET /dashboard``."""
        return {"status": "success", "dashboard": self.get_dashboard()}

    def get_health_detailed(self) -> HealthDetailed:
        """The answer of ``GET /health/detailed``: status, components, alerts, system.

        Never waits: registered checks show their last outcomes. Run them with
        ``await optimizer.health.check()`` or in the background with :meth:`start`.
        """
        report = self.health.evaluate()
        return {**report.to_dict(), "status": _status(report)}

    def get_stats(self) -> OptimizerStats:
        """The answer of ``GET /optimizer/stats``: all parts' own statistics."""
        return {
            "name": self.name,
            "version": self.version,
            "enabled": self.enabled,
            "cache": cast("CacheStats", self.cache.get_stats()),
            "rate_limiter": self.limiter.get_stats(),
            "performance": self.metrics.get_stats(),
            "health": self.health.get_stats(),
        }

    def __repr__(self) -> str:
        name = "" if self.name is None else f" {self.name!r}"
        version = "" if self.version is None else f" version={self.version}"
        generations = self.metrics.get_stats()["total_generations"]
        return (
            f"<ProductionOptimizer{name}{version} generations={generations} "
            f"cache={self.cache!r} limiter={self.limiter!r} health={self.health!r}>"
        )

    # -- life ----------------------------------------------------------------

    def start(self) -> None:
        """Starts the background rounds of :attr:`health`."""
        self.health.start()

    def stop(self) -> None:
        """Ends what :meth:`start` began; everything else goes on working."""
        self.health.stop()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        await self.health.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.health.__aexit__(kind, error, trace)

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None, **arguments: Any) -> Self:
        """Built from the environment: what is not set has its default.

        ``CACHE_MAX_SIZE``, ``CACHE_TTL_SECONDS``, ``RATE_LIMIT_PER_MINUTE``,
        ``RATE_LIMIT_PER_HOUR``, ``RATE_LIMIT_BURST``,
        ``ALERT_ERROR_RATE_PERCENT``, ``ALERT_RESPONSE_TIME_SECONDS``,
        ``ALERT_MEMORY_PERCENT``. An empty value counts as not set.

        Args:
            environ: read instead of ``os.environ``.
            arguments: passed on to the constructor (``version=``, ``name=`` …).

        Raises:
            ValueError: a value that cannot be used; names the variable.
        """
        environ = os.environ if environ is None else environ
        return cls(
            _from_env(environ, CacheConfig, _CACHE_VARIABLES),
            _from_env(environ, RateLimitConfig, _LIMIT_VARIABLES),
            _from_env(environ, AlertThreshold, _ALERT_VARIABLES),
            **arguments,
        )


def _status(report: HealthReport) -> str:
    """The two words of this dashboard; how bad it is stands in the alerts."""
    return "healthy" if report.healthy else "degraded"


def _config(argument: str, value: _Config | None, kind: type[_Config]) -> _Config:
    if value is None:
        return kind()
    if not isinstance(value, kind):
        raise TypeError(f"{argument}: expected a {kind.__name__}, got {type(value).__name__}")
    return value


def _number(text: str) -> float:
    """A whole number where it is one: sizes stay ints, ``0.5`` stays a float."""
    try:
        return int(text)
    except ValueError:
        return _finite(text)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


_Parser = Callable[[str], float]

_CACHE_VARIABLES: Mapping[str, tuple[str, _Parser]] = {
    "CACHE_MAX_SIZE": ("max_size", int),
    "CACHE_TTL_SECONDS": ("ttl_seconds", _number),
}
_LIMIT_VARIABLES: Mapping[str, tuple[str, _Parser]] = {
    "RATE_LIMIT_PER_MINUTE": ("requests_per_minute", int),
    "RATE_LIMIT_PER_HOUR": ("requests_per_hour", int),
    "RATE_LIMIT_BURST": ("burst_limit", int),
}
_ALERT_VARIABLES: Mapping[str, tuple[str, _Parser]] = {
    "ALERT_ERROR_RATE_PERCENT": ("error_rate_percent", _finite),
    "ALERT_RESPONSE_TIME_SECONDS": ("avg_response_time_seconds", _finite),
    "ALERT_MEMORY_PERCENT": ("memory_usage_percent", _finite),
}


def _from_env(
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
            raise ValueError(f"{variable}: expected {expected}, got {text!r}") from None
        try:
            kind(**{field: value})
        except ValueError as error:
            raise ValueError(f"{variable}: {error}") from None
        fields[field] = value
    return kind(**fields)
