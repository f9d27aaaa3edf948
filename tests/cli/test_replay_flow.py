"""How full the provider's limits were while requests waited, and how fair: by its own count."""

from __future__ import annotations

import json
import random
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ferrogate.cli.flow import fair_shares, jain, mean_while
from ferrogate.cli.traces import Row, Trace, with_tenants

Ferrogate = Callable[..., subprocess.CompletedProcess[str]]


def report_of(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert (done.returncode, done.stderr) == (0, ""), done.stdout[:500] + done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


BINDING = [
    pytest.param("requests per minute", ("--rpm", 250), id="requests"),
    pytest.param(
        "input tokens per minute",
        ("--rpm", 400, "--input-tokens-per-minute", 320_000),
        id="input",
    ),
    pytest.param(
        "output tokens per minute",
        ("--rpm", 0, "--input-tokens-per-minute", 900_000, "--output-tokens-per-minute", 60_000),
        id="output",
    ),
]


@pytest.mark.parametrize(("binding", "limits"), BINDING)
def test_no_429_and_the_binding_limit_is_used(
    ferrogate: Ferrogate, binding: str, limits: tuple[object, ...]
) -> None:
    flags = ("--virtual", "--json", "--no-baseline", "--seconds", 200)
    run = report_of(ferrogate("demo", *flags, *limits))["runs"]["with"]
    flow = run["flow"]
    assert run["provider"]["rate_limited"] == flow["rate_limited"] == 0
    assert run["answered"] == run["requests"]
    assert flow["backlog_seconds"] > 60
    assert flow["binding"] == binding
    assert 95 <= flow["binding_used_percent"] <= 100
    assert flow["fullest_used_percent"] >= flow["binding_used_percent"]
    assert flow["fairness"] is None


@pytest.mark.parametrize(("binding", "limits"), BINDING)
def test_the_same_on_a_production_trace(
    ferrogate: Ferrogate, conversation: Path, binding: str, limits: tuple[object, ...]
) -> None:
    flags = ("--virtual", "--json", "--no-baseline", "--start", 1_560, "--seconds", 180)
    run = report_of(ferrogate("replay", conversation, *flags, *limits))["runs"]["with"]
    assert run["provider"]["rate_limited"] == 0
    assert run["flow"]["binding"] == binding
    assert run["flow"]["binding_used_percent"] >= 95


def test_the_same_over_real_http(ferrogate: Ferrogate) -> None:
    report = report_of(
        ferrogate(
            *(
                "demo",
                "--json",
                "--no-baseline",
                "--seconds",
                50,
                "--speed",
                20,
                "--margin",
                1,
                "--rpm",
                0,
            ),
            *("--input-tokens-per-minute", 250_000, "--output-tokens-per-minute", 60_000),
        )
    )
    run = report["runs"]["with"]
    assert run["provider"]["rate_limited"] == 0
    assert run["answered"] == run["requests"]
    # A minute has 3 s, and the margin makes 4 of them.
    assert run["flow"]["backlog_seconds"] > 20
    assert 50 <= run["flow"]["binding_used_percent"] <= 100


def test_what_can_never_be_granted_of_either_kind(ferrogate: Ferrogate) -> None:
    flags = ("--virtual", "--json", "--no-baseline", "--limit", 150, "--rpm", 0)
    report = report_of(
        ferrogate(
            *("demo", *flags, "--input-tokens-per-minute", 4_050),
            *("--output-tokens-per-minute", 450),
        )
    )
    run = report["runs"]["with"]
    assert run["provider"]["too_large"] == run["provider"]["rate_limited"] == 0
    reasons = {refused["reason"].split(" ", 1)[1] for refused in run["never_granted"]}
    assert reasons == {
        "input tokens are more than the limit per minute",
        "output tokens are more than the limit per minute",
    }
    for refused in run["never_granted"]:
        assert refused["refused_after_seconds"] == 0.0
        assert refused["input_tokens"] > 4_050 or refused["output_tokens"] > 450


def test_output_counted_when_produced(ferrogate: Ferrogate) -> None:
    flags = ("--virtual", "--json", "--seconds", 120, "--output-counted", "produced")
    report = report_of(ferrogate("demo", *flags, "--rpm", 0, "--output-tokens-per-minute", 50_000))
    plain = report["runs"]["without"]
    assert plain["provider"]["rate_limited"] > 10
    (peak,) = plain["provider"]["peaks"].values()
    assert peak["most_in_any_window"] > peak["limit"]
    assert report["runs"]["with"]["provider"]["rate_limited"] <= 5


def test_a_flood_of_a_thousand_to_one_takes_nobody_s_share(ferrogate: Ferrogate) -> None:
    flags = ("--virtual", "--json", "--no-baseline", "--seconds", 200, "--rpm", 0)
    flood = ("--tenants", 5, "--flood", 1_000)
    for limit in (100_000, 250_000):
        limits = ("--input-tokens-per-minute", limit)
        flow = report_of(ferrogate("demo", *flags, *limits, *flood))["runs"]["with"]["flow"]
        assert flow["rate_limited"] == 0
        assert flow["binding_used_percent"] >= 95
        assert flow["fairness"]["unit"] == "input tokens"
        assert flow["fairness"]["jain"] >= 0.95


def test_a_flood_is_seen_in_who_got_what(ferrogate: Ferrogate) -> None:
    """With a limit an hour there is a single line, which serves the flood first."""
    flags = ("--virtual", "--json", "--seconds", 120, "--tenants", 5, "--flood", 100)
    limits = ("--rpm", 60, "--rph", 10_000)
    report = report_of(ferrogate("demo", *flags, *limits, "--retries", 0))
    for run in report["runs"].values():
        fairness = run["flow"]["fairness"]
        assert fairness["unit"] == "requests"
        tenants = fairness["tenants"]
        assert sorted(tenants) == ["flood", "tenant-1", "tenant-2", "tenant-3", "tenant-4"]
        demand = {name: tenant["demand"]["requests"] for name, tenant in tenants.items()}
        assert demand["flood"] == pytest.approx(100 * demand["tenant-1"], rel=0.2)
        assert sum(demand.values()) == report["trace"]["requests"]
        for tenant in tenants.values():
            assert tenant["received"]["received"] <= tenant["demand"]["requests"]
    guarded = report["runs"]["with"]["flow"]["fairness"]
    assert guarded["jain"] < 0.95
    assert guarded["tenants"]["flood"]["received_of_fair_share"] > 0.95
    shown = ferrogate("demo", *flags[:1], *flags[2:], "--rpm", 60, "--no-baseline")
    for text in ("used while requests waited", "tenants at the last arrival", "in use, with"):
        assert text in shown.stdout


def test_flood_needs_tenants(ferrogate: Ferrogate) -> None:
    done = ferrogate("demo", "--virtual", "--flood", 1_000)
    assert done.returncode == 2
    assert "--tenants" in done.stderr
    many = ferrogate("demo", "--virtual", "--limit", 10, "--tenants", 11)
    assert many.returncode == 2
    assert "too many for 10 requests" in many.stderr


def test_rows_are_dealt_out_as_asked() -> None:
    rows = tuple(Row(float(n), 1, 1, str(n), n) for n in range(5_000))
    trace = Trace("t", "t", rows)
    assert with_tenants(trace, 1, 1, 0) is trace
    dealt = with_tenants(trace, 5, 1_000, 0)
    counts: dict[str, int] = {}
    for row in dealt.rows:
        counts[row.tenant] = counts.get(row.tenant, 0) + 1
    assert counts == {"flood": 4_980} | {f"tenant-{n}": 5 for n in range(1, 5)}
    assert with_tenants(trace, 5, 1_000, 0) == dealt != with_tenants(trace, 5, 1_000, 1)
    even = with_tenants(trace, 4, 1, 0)
    assert sum(row.tenant == "tenant-0" for row in even.rows) == 1_250


def test_fair_shares_are_max_min_fair() -> None:
    rng = random.Random(3)
    for _ in range(300):
        demands = {str(n): float(rng.randrange(0, 50)) for n in range(rng.randrange(1, 9))}
        capacity = rng.uniform(0, 200)
        shares = fair_shares(demands, capacity)
        assert sum(shares.values()) == pytest.approx(min(capacity, sum(demands.values())))
        assert all(0 <= shares[name] <= demand + 1e-9 for name, demand in demands.items())
        short = [name for name, demand in demands.items() if shares[name] < demand - 1e-9]
        # Whoever does not get all they ask for has as much as anybody has.
        assert all(shares[name] >= max(shares.values()) - 1e-9 for name in short)


def test_jain_and_the_mean_over_times() -> None:
    assert jain([1.0, 1.0, 1.0]) == pytest.approx(1.0)
    assert jain([1.0, 0.0, 0.0, 0.0]) == pytest.approx(0.25)
    assert jain([0.0]) is None
    means = [10.0, 20.0, 30.0]
    assert mean_while([], means) is None
    assert mean_while([(0.0, 3.0)], means) == 20.0
    assert mean_while([(-5.0, 0.5), (1.5, 2.25)], means) == 18.0
    assert mean_while([(9.0, 10.0)], means) is None
