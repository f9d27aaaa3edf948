"""One object for cache, limiter, metrics and health, with one dashboard."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Self, TypedDict, cast

from ferrogate import _suites
from ferrogate._arguments import flag, globally_disabled, text_or_none
from ferrogate._categories import CategoryCache
from ferrogate._configuration import (
    ALERT_VARIABLES,
    CACHE_VARIABLES,
    LIMIT_VARIABLES,
    from_environment,
    given_or_default,
)
from ferrogate._dashboard import (
    CacheFigures,
    Dashboard,
    LimiterFigures,
    PerformanceFigures,
    dashboard,
    status_word,
)
from ferrogate._health_types import AlertThreshold, HealthDetailed, HealthStats
from ferrogate._lifecycle import Startable
from ferrogate.cache import CacheConfig, CacheStats, cache_key
from ferrogate.health import HealthMonitor
from ferrogate.limiter import RateLimitConfig, RateLimiter, RateLimiterStats
from ferrogate.metrics import PerformanceMetrics, PerformanceStats

if TYPE_CHECKING:
    from ferrogate._core import ManualClock

__all__ = [
    "CacheFigures",
    "CategoryCache",
    "Dashboard",
    "DashboardAnswer",
    "LimiterFigures",
    "OptimizerStats",
    "PerformanceAnswer",
    "PerformanceFigures",
    "ProductionOptimizer",
]


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


class ProductionOptimizer(Startable):
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
        self.cache_config = given_or_default("cache_config", cache_config, CacheConfig)
        self.rate_limit_config = given_or_default(
            "rate_limit_config", rate_limit_config, RateLimitConfig
        )
        self.alert_threshold = given_or_default("alert_threshold", alert_threshold, AlertThreshold)
        self.name = text_or_none("name", name)
        self.version = None if version is None else str(version)
        self.enabled = flag("enabled", enabled) and not globally_disabled()
        self.cache = CategoryCache(self.cache_config, name=name, clock=clock, enabled=self.enabled)
        self.limiter = RateLimiter(
            self.rate_limit_config, name=name, clock=clock, enabled=self.enabled
        )
        self.metrics = PerformanceMetrics(name, clock=clock)
        _suites.register(self)
        self.health = HealthMonitor(
            self.alert_threshold,
            metrics=self.metrics,
            cache=self.cache,
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
        ``"{category}:"``, however it was stored: what ``@cached(cache=optimizer.cache,
        key=...)`` stores, too, by what its ``key`` returns. Of a key with more than nine
        colons, the parts before the first eight and before the last one count.
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
        time_seconds: float | timedelta,
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

    def _reset(self) -> None:
        """Forgets the generations, for test suites; its parts are found by themselves."""
        self.metrics.reset()

    # -- health and dashboard ------------------------------------------------

    def get_dashboard(self) -> Dashboard:
        """Everything at one look.

        Judges the system now; of registered checks it shows the last outcomes.
        ``status`` is ``"healthy"`` or ``"degraded"``.
        """
        return dashboard(
            self.health.evaluate(),
            cast("CacheStats", self.cache.get_stats()),
            self.limiter.get_stats(),
            self.metrics.get_stats(),
        )

    def dashboard_answer(self) -> DashboardAnswer:
        """The answer of ``GET /dashboard``."""
        return {"status": "success", "dashboard": self.get_dashboard()}

    def get_health_detailed(self) -> HealthDetailed:
        """The answer of ``GET /health/detailed``: status, components, alerts, system.

        Never waits: registered checks show their last outcomes. Run them with
        ``await optimizer.health.check()`` or in the background with :meth:`start`.
        """
        report = self.health.evaluate()
        return {**report.to_dict(), "status": status_word(report)}

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
            from_environment(environ, CacheConfig, CACHE_VARIABLES),
            from_environment(environ, RateLimitConfig, LIMIT_VARIABLES),
            from_environment(environ, AlertThreshold, ALERT_VARIABLES),
            **arguments,
        )
