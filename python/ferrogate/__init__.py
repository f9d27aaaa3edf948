"""Native cache, rate limiter, metrics and health for Python agents in production."""

import atexit as _atexit
import os as _os

from ferrogate import _core, _janitor, _loads, _streams, breaker, budget, limiter, llm_limiter
from ferrogate._client import CacheClient
from ferrogate._core import __version__
from ferrogate._headers import RateLimitDimension, RateLimitHeaders
from ferrogate._results import ResultCache
from ferrogate._view import CacheView
from ferrogate.adaptive import AdaptiveConcurrency
from ferrogate.batch import Batch, BatchError, BatchProgress
from ferrogate.breaker import CircuitBreaker, CircuitBreakerConfig
from ferrogate.budget import Budget, BudgetAlert
from ferrogate.cache import (
    Cache,
    CacheConfig,
    CacheInfo,
    CacheStats,
    LRUCache,
    Savings,
    cache_key,
    cached,
)
from ferrogate.dry_run import DryRun
from ferrogate.exceptions import (
    BudgetExceededError,
    CircuitBreakerOpenError,
    FerrogateError,
    GuardTimeout,
    InternalError,
    RateLimitExceeded,
    StreamLagError,
    TargetsUnavailable,
)
from ferrogate.guard import Guard
from ferrogate.health import AlertThreshold, HealthMonitor
from ferrogate.hedge import Hedge
from ferrogate.limiter import Decision, Limit, RateLimitConfig, RateLimiter, rate_limited
from ferrogate.llm_limiter import LLMLimiter
from ferrogate.metrics import PerformanceMetrics
from ferrogate.optimizer import ProductionOptimizer
from ferrogate.outcome import Outcome
from ferrogate.recording import AttemptRecord, Recording
from ferrogate.retry import RetryBudget, RetryPolicy, retry
from ferrogate.service import CacheService, CacheUnavailable
from ferrogate.targets import Target

__all__ = [
    "AdaptiveConcurrency",
    "AlertThreshold",
    "AttemptRecord",
    "Batch",
    "BatchError",
    "BatchProgress",
    "Budget",
    "BudgetAlert",
    "BudgetExceededError",
    "Cache",
    "CacheClient",
    "CacheConfig",
    "CacheInfo",
    "CacheService",
    "CacheStats",
    "CacheUnavailable",
    "CacheView",
    "CircuitBreaker",
    "CircuitBreakerConfig",
    "CircuitBreakerOpenError",
    "Decision",
    "DryRun",
    "FerrogateError",
    "Guard",
    "GuardTimeout",
    "HealthMonitor",
    "Hedge",
    "InternalError",
    "LLMLimiter",
    "LRUCache",
    "Limit",
    "Outcome",
    "PerformanceMetrics",
    "ProductionOptimizer",
    "RateLimitConfig",
    "RateLimitDimension",
    "RateLimitExceeded",
    "RateLimitHeaders",
    "RateLimiter",
    "Recording",
    "ResultCache",
    "RetryBudget",
    "RetryPolicy",
    "Savings",
    "StreamLagError",
    "Target",
    "TargetsUnavailable",
    "__version__",
    "cache_key",
    "cached",
    "rate_limited",
    "retry",
]

# Seconds that the runtime's threads get to finish what was acknowledged.
_atexit.register(_core._shutdown, 5.0)

if hasattr(_os, "register_at_fork"):
    _os.register_at_fork(before=_core._before_fork)
    _os.register_at_fork(after_in_parent=_core._after_fork_in_parent)
    # In this order: the janitor's thread may sweep as soon as it has started.
    _os.register_at_fork(after_in_child=_core._after_fork_in_child)
    _os.register_at_fork(after_in_child=_loads.after_fork_in_child)
    _os.register_at_fork(after_in_child=_streams.after_fork_in_child)
    _os.register_at_fork(after_in_child=_janitor._after_fork_in_child)
    _os.register_at_fork(after_in_child=limiter._after_fork_in_child)
    _os.register_at_fork(after_in_child=breaker._after_fork_in_child)
    _os.register_at_fork(after_in_child=budget._after_fork_in_child)
    _os.register_at_fork(after_in_child=llm_limiter._after_fork_in_child)
