"""The report of a replay as plain data: what ``--json`` prints and the table is drawn from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ferrogate import __version__
from ferrogate.cli.agent import Run
from ferrogate.cli.flow import flow_of
from ferrogate.cli.settings import Settings
from ferrogate.cli.traces import Trace

__all__ = ["build_report", "percentiles"]

REPORT_VERSION = 1


def build_report(trace: Trace, settings: Settings, runs: Sequence[Run]) -> dict[str, Any]:
    """Everything that is known after the runs; times in trace seconds unless named ``wall``."""
    return {
        "report_version": REPORT_VERSION,
        "ferrogate": __version__,
        "partial": any(run.interrupted or run.stopped for run in runs),
        "trace": _trace(trace, settings),
        "settings": settings.to_dict(),
        "runs": {run.name: _run(run, settings) for run in runs},
    }


def percentiles(values: Sequence[float]) -> dict[str, float | None]:
    """p50, p95, p99 (nearest rank), mean and the largest; ``None`` without values."""
    if not values:
        return {"p50": None, "p95": None, "p99": None, "mean": None, "max": None}
    ordered = sorted(values)
    ranks = {
        name: ordered[math.ceil(share * len(ordered)) - 1]
        for name, share in (("p50", 0.50), ("p95", 0.95), ("p99", 0.99))
    }
    return {
        name: round(value, 6)
        for name, value in (
            *ranks.items(),
            ("mean", math.fsum(ordered) / len(ordered)),
            ("max", ordered[-1]),
        )
    }


def _trace(trace: Trace, settings: Settings) -> dict[str, Any]:
    return {
        "name": trace.name,
        "format": trace.format,
        "about": trace.about,
        "requests": len(trace.rows),
        "seconds": round(trace.seconds, 3),
        "distinct_prompts": len({row.prompt for row in trace.rows}),
        "synthetic_repeats": sum(row.synthetic_repeat for row in trace.rows),
        "repeat_rate_asked": settings.repeat_rate,
        "input_tokens": sum(row.input_tokens for row in trace.rows),
        "output_tokens": sum(row.output_tokens for row in trace.rows),
        "offered_per_second": _offered(trace),
    }


def _offered(trace: Trace) -> list[list[int]]:
    counts: dict[int, int] = {}
    for row in trace.rows:
        counts[int(row.at)] = counts.get(int(row.at), 0) + 1
    return [[second, count] for second, count in sorted(counts.items())]


def _run(run: Run, settings: Settings) -> dict[str, Any]:
    # Null where the provider's count is lost.
    spent_in = run.provider.get("input_tokens")
    spent_out = run.provider.get("output_tokens")
    spent = None if spent_in is None else round(settings.cost(spent_in, spent_out or 0), 6)
    return {
        "requests": run.requests,
        "answered": run.answered,
        "failed": run.failed,
        "rejected": run.rejected,
        "never_granted": run.never_granted,
        "unfinished": run.unfinished,
        "interrupted": run.interrupted,
        "stopped": run.stopped or None,
        "hits": run.hits,
        "joins": run.joins,
        "attempts": run.attempts,
        "retries": run.retries,
        "errors": dict(sorted(run.errors.items())),
        "tokens_spent": {"input": spent_in, "output": spent_out},
        "tokens_saved": {"input": run.saved_input_tokens, "output": run.saved_output_tokens},
        "usd_spent": spent,
        "usd_saved": round(settings.cost(run.saved_input_tokens, run.saved_output_tokens), 6),
        "latency_seconds": percentiles(run.latencies),
        "wait_seconds": percentiles(run.waits),
        # Under a millisecond of real time it was the loop, not the limiter.
        "waits": sum(wait >= 0.001 * settings.speed for wait in run.waits),
        "transit_wall_seconds": percentiles(run.transits),
        "late_wall_seconds": round(run.late, 3),
        "seconds": round(run.seconds, 3),
        "wall_seconds": round(run.wall_seconds, 3),
        "flow": flow_of(run, settings.speed, complete=not (run.interrupted or run.stopped)),
        "provider": run.provider,
        **run.components,
    }
