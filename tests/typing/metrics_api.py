"""Type-checked, never run: what a user's checker sees of the metrics."""

from __future__ import annotations

from datetime import timedelta
from typing import assert_type

from ferrogate import PerformanceMetrics
from ferrogate.metrics import PerformanceStats
from ferrogate.testing import ManualClock

metrics = PerformanceMetrics("agent", clock=ManualClock())
assert_type(metrics.name, str | None)
assert_type(metrics.record_generation(True, 1.5), None)
metrics.record_generation(False, timedelta(seconds=2), tokens=5, retries=1, cost_usd=0.01)
metrics.record_generation(success=True, time_seconds=1)
metrics.record_generation(True, "1.5")  # type: ignore[arg-type]
metrics.record_generation(True)  # type: ignore[call-arg]
metrics.record_generation(True, 1.0, tokens=1.5)  # type: ignore[arg-type]

assert_type(metrics.get_stats(), PerformanceStats)
assert_type(metrics.get_stats()["total_generations"], int)
assert_type(metrics.get_stats()["p95_generation_time_seconds"], float)
metrics.get_stats()["no_such_figure"]  # type: ignore[typeddict-item]
assert_type(metrics.reset(), None)
