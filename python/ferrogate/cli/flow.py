"""How well a run used the provider's limits while requests waited, and how fairly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from ferrogate.cli.agent import Demand, Run
from ferrogate.cli.provider_counts import TenantCounts

__all__ = ["fair_shares", "flow_of", "jain", "mean_while"]


def flow_of(run: Run, speed: float, *, complete: bool) -> dict[str, Any]:
    """The part of the report that is about the provider's limits, by its own count.

    ``used_percent`` has for each limit the mean share of it that was in use
    while there was a backlog: for a window, what the last minute (or hour) had
    spent of it. ``binding`` is the fullest of them.
    """
    provider = run.provider
    usage: dict[str, list[float]] = provider.get("usage", {})
    started = provider.get("started") or 0.0
    backlog = [((a - started) * speed, (b - started) * speed) for a, b in run.backlog]
    used = {name: mean_while(backlog, means) for name, means in usage.items()}
    known = {name: share for name, share in used.items() if share is not None}
    binding = max(known, key=known.__getitem__, default=None)
    fullest = [max(column) for column in zip(*usage.values(), strict=True)]
    return {
        "rate_limited": provider.get("rate_limited"),
        "refused_at_once": len(run.never_granted),
        "backlog_seconds": round(sum(b - a for a, b in backlog), 3),
        "used_percent": used,
        "binding": binding,
        "binding_used_percent": None if binding is None else known[binding],
        "fullest_used_percent": mean_while(backlog, fullest),
        "fairness": _fairness(run, binding) if complete else None,
    }


def mean_while(
    times: Sequence[tuple[float, float]], means: Sequence[float], places: int = 2
) -> float | None:
    """The mean over ``times`` of what is given for each second; None without such times."""
    summed = spent = 0.0
    for begin, end in times:
        here, stop = max(begin, 0.0), min(end, float(len(means)))
        while here < stop:
            following = min(stop, int(here) + 1.0)
            summed += means[int(here)] * (following - here)
            spent += following - here
            here = following
    return round(summed / spent, places) if spent > 0 else None


def fair_shares(demands: Mapping[str, float], capacity: float) -> dict[str, float]:
    """Max-min fair: nobody gets more than they ask for, the rest is split evenly."""
    shares: dict[str, float] = {}
    left, waiting = capacity, sorted(demands.items(), key=lambda item: item[1])
    for place, (name, demand) in enumerate(waiting):
        shares[name] = min(demand, left / (len(waiting) - place))
        left -= shares[name]
    return shares


def jain(values: Sequence[float]) -> float | None:
    """Jain's index: 1 when all are equal, 1/n when one has everything."""
    squares = sum(value * value for value in values)
    return sum(values) ** 2 / (len(values) * squares) if squares else None


def _fairness(run: Run, binding: str | None) -> dict[str, Any] | None:
    """Jain's index over received / min(demand, fair share), when the last request arrived.

    What the provider had admitted by then is what there was to be shared.
    """
    if len(run.demand) < 2:
        return None
    nothing = asdict(TenantCounts())
    received = {name: run.tenants_when_all_was_sent.get(name, nothing) for name in run.demand}
    unit = _unit(binding)
    demands = {name: float(_asked(demand, unit)) for name, demand in run.demand.items()}
    got = {name: float(_got(received[name], unit)) for name in run.demand}
    shares = fair_shares(demands, sum(got.values()))
    ratios = {name: got[name] / share for name, share in shares.items() if share}
    index = jain(list(ratios.values()))
    return {
        "unit": unit,
        "jain": None if index is None else round(index, 4),
        "worst": round(min(ratios.values()), 4) if ratios else None,
        "tenants": {
            name: {
                "demand": asdict(run.demand[name]),
                "received": received[name],
                "fair_share": round(shares[name], 1),
                "received_of_fair_share": round(ratios[name], 4) if name in ratios else None,
            }
            for name in sorted(run.demand)
        },
    }


def _unit(binding: str | None) -> str:
    for unit in ("input tokens", "output tokens", "tokens"):
        if binding is not None and binding.startswith(unit):
            return unit
    return "requests"


def _asked(demand: Demand, unit: str) -> int:
    both = demand.input_tokens + demand.output_tokens
    return {
        "requests": demand.requests,
        "input tokens": demand.input_tokens,
        "output tokens": demand.output_tokens,
        "tokens": both,
    }[unit]


def _got(received: Mapping[str, int], unit: str) -> int:
    sent, came = (received.get(f"admitted_{kind}_tokens", 0) for kind in ("input", "output"))
    return {
        "requests": received.get("admitted", 0),
        "input tokens": sent,
        "output tokens": came,
        "tokens": sent + came,
    }[unit]
