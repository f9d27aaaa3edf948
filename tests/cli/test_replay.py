"""`ferrogate replay` and `ferrogate demo` as their user meets them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ferrogate.cli.traces import read_trace

Ferrogate = Callable[..., subprocess.CompletedProcess[str]]

PERCENTILES = {"p50", "p95", "p99", "mean", "max"}
RUN_KEYS = {
    "alerts", "answered", "attempts", "components", "errors", "failed", "flow", "hits",
    "interrupted", "joins", "late_wall_seconds", "latency_seconds",
    "never_granted", "provider", "rejected", "requests", "retries",
    "seconds", "stopped", "tokens_saved", "tokens_spent", "transit_wall_seconds", "unfinished",
    "usd_saved", "usd_spent", "wait_seconds", "waits", "wall_seconds",
}  # fmt: skip


def report_of(done: subprocess.CompletedProcess[str], code: int = 0) -> dict[str, Any]:
    assert (done.returncode, done.stderr) == (code, ""), done.stdout[:500] + done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def check_books(report: dict[str, Any]) -> None:
    """What must add up in every complete report."""
    assert report["report_version"] == 1
    assert report["partial"] is False
    offered = sum(count for _, count in report["trace"]["offered_per_second"])
    assert offered == report["trace"]["requests"]
    for name, run in report["runs"].items():
        assert set(run) == RUN_KEYS
        assert run["requests"] == report["trace"]["requests"]
        ended = run["answered"] + run["failed"] + run["rejected"] + len(run["never_granted"])
        assert ended == run["requests"]
        provider = run["provider"]
        assert run["attempts"] == provider["received"]
        assert provider["in_flight"] == 0
        refused = provider["rate_limited"] + provider["too_large"] + provider["injected_429"]
        lost = provider["injected_500"] + provider["injected_timeout"] + provider["abandoned"]
        assert provider["served"] + refused + lost == provider["received"]
        assert run["answered"] - run["hits"] - run["joins"] == provider["served"]
        columns = [sum(column) for column in zip(*provider["timeline"], strict=True)]
        assert columns[1:] == [provider[key] for key in ("received", "served", "rate_limited")]
        for key in ("latency_seconds", "wait_seconds", "transit_wall_seconds"):
            assert set(run[key]) == PERCENTILES
        if report["settings"]["provider"]["output_counted"] == "admission":
            for peak in provider["peaks"].values():
                assert peak["most_in_any_window"] <= peak["limit"]
        tenants = provider["tenants"].values()
        for key in ("received", "served", "rate_limited", "too_large"):
            assert sum(tenant[key] for tenant in tenants) == provider[key]
        assert run["flow"]["rate_limited"] == provider["rate_limited"]
        assert run["flow"]["refused_at_once"] == len(run["never_granted"])
        performance = run["components"]["performance"]
        assert performance["total_generations"] == run["requests"]
        assert performance["successful"] == run["answered"]
        assert performance["total_cost_usd"] == pytest.approx(run["usd_spent"], abs=1e-5)
        if name == "without":
            assert (run["hits"], run["joins"], run["usd_saved"]) == (0, 0, 0)


def test_no_429_with_ferrogate_many_without(ferrogate: Ferrogate) -> None:
    report = report_of(ferrogate("demo", "--virtual", "--json", "--seconds", 150))
    check_books(report)
    guarded, plain = report["runs"]["with"], report["runs"]["without"]
    assert guarded["provider"]["rate_limited"] == 0
    assert plain["provider"]["rate_limited"] > 60
    assert guarded["answered"] == guarded["requests"] > plain["answered"]
    assert guarded["waits"] > 0
    transit = guarded["transit_wall_seconds"]["max"]
    assert 0 < transit < report["settings"]["margin"]


def test_without_the_margin_the_same_run_is_over_the_limit(ferrogate: Ferrogate) -> None:
    report = report_of(
        ferrogate("demo", "--virtual", "--json", "--seconds", 150, "--margin", 0, "--no-baseline")
    )
    assert report["runs"]["with"]["provider"]["rate_limited"] > 0


def test_virtual_time_repeats_itself(ferrogate: Ferrogate) -> None:
    def run(seed: int) -> dict[str, Any]:
        flags = ["--repeat-rate", 0.2, "--inject-500", 0.02, "--inject-429", 0.02]
        done = ferrogate("demo", "--virtual", "--json", "--seconds", 20, "--seed", seed, *flags)
        report = report_of(done)
        check_books(report)
        for run in report["runs"].values():
            del run["wall_seconds"], run["alerts"]
        return report

    assert run(1) == run(1)
    assert run(1) != run(2)


def test_every_limit_every_fault_and_repeats_at_once(ferrogate: Ferrogate) -> None:
    report = report_of(
        ferrogate(
            *("demo", "--virtual", "--json", "--seconds", 90, "--repeat-rate", 0.25, "--stream"),
            *("--rpm", 330, "--rph", 350, "--tpm", 400_000, "--concurrency", 25),
            *("--inject-429", 0.02, "--inject-500", 0.02, "--inject-timeout", 0.01, "--retries", 6),
        )
    )
    check_books(report)
    guarded = report["runs"]["with"]
    assert guarded["provider"]["rate_limited"] == 0
    assert guarded["failed"] == 0
    for fault in ("injected_429", "injected_500", "injected_timeout"):
        assert guarded["provider"][fault] > 0
    assert guarded["hits"] + guarded["joins"] == report["trace"]["synthetic_repeats"] > 90
    assert guarded["joins"] > 0
    assert guarded["usd_saved"] > 0
    assert guarded["provider"]["peak_in_flight"] <= 25
    cache = guarded["components"]["cache"]
    assert cache["hits"] >= guarded["hits"]


def test_what_can_never_be_granted_is_refused_at_once_and_listed(ferrogate: Ferrogate) -> None:
    flags = ["--virtual", "--tpm", 4_500, "--rpm", 0, "--limit", 200]
    report = report_of(ferrogate("demo", "--json", *flags))
    guarded = report["runs"]["with"]
    assert guarded["provider"]["too_large"] == 0
    assert report["runs"]["without"]["provider"]["too_large"] == len(guarded["never_granted"]) > 0
    for refused in guarded["never_granted"]:
        assert refused["input_tokens"] + refused["output_tokens"] > 4_500
        assert "more than the limit" in refused["reason"]
        assert refused["refused_after_seconds"] == 0.0
    shown = ferrogate("demo", *flags)
    assert shown.returncode == 0
    assert "can never be granted" in shown.stdout
    assert "tokens are more than the limit per minute" in shown.stdout


def test_giving_up_on_a_permit_is_a_rejection(ferrogate: Ferrogate) -> None:
    flags = ["--virtual", "--rpm", 200, "--max-wait", 5, "--seconds", 120]
    report = report_of(ferrogate("demo", "--json", *flags))
    check_books(report)
    guarded = report["runs"]["with"]
    assert guarded["rejected"] > 100
    assert guarded["wait_seconds"]["max"] <= 5.001
    assert guarded["provider"]["rate_limited"] == 0


def test_the_busiest_minutes_of_the_conversation_trace(
    ferrogate: Ferrogate, conversation: Path
) -> None:
    part = ["--start", 1_560, "--seconds", 180]
    report = report_of(ferrogate("replay", conversation, "--virtual", "--json", *part))
    check_books(report)
    assert report["trace"]["distinct_prompts"] == report["trace"]["requests"] > 1_300
    assert report["runs"]["with"]["provider"]["rate_limited"] == 0
    assert report["runs"]["without"]["provider"]["rate_limited"] > 30


def test_mooncake_hits_are_its_repeats(ferrogate: Ferrogate, mooncake: Path) -> None:
    flags = ["--virtual", "--json", "--no-baseline", "--limit", 1_500]
    report = report_of(ferrogate("replay", mooncake, *flags))
    check_books(report)
    distinct = len({row.prompt for row in read_trace(mooncake).rows[:1_500]})
    guarded = report["runs"]["with"]
    assert guarded["hits"] + guarded["joins"] == 1_500 - distinct > 10
    assert guarded["provider"]["served"] == distinct
    assert guarded["provider"]["rate_limited"] == 0
    assert guarded["tokens_saved"]["input"] > 100_000


def test_a_slice_over_real_http(ferrogate: Ferrogate) -> None:
    report = report_of(
        ferrogate(
            # A window of 2 s and its margin of 1 s: it meets the limit and waits for room once.
            *("demo", "--json", "--seconds", 50, "--speed", 30, "--rpm", 240, "--margin", 1),
            *("--repeat-rate", 0.1, "--inject-500", 0.02, "--concurrency", 40),
        )
    )
    check_books(report)
    guarded, plain = report["runs"]["with"], report["runs"]["without"]
    assert guarded["provider"]["rate_limited"] == 0
    assert plain["provider"]["rate_limited"] > 0
    assert guarded["answered"] >= plain["answered"]
    assert guarded["hits"] + guarded["joins"] > 10
    assert guarded["waits"] > 0
    # Not in virtual time: the row that left last did so after that many real seconds.
    assert guarded["wall_seconds"] > guarded["seconds"] / 30 > 50 / 30


def test_streamed_over_real_http(ferrogate: Ferrogate) -> None:
    flags = ["--seconds", 20, "--speed", 40, "--stream", "--no-baseline"]
    report = report_of(ferrogate("demo", "--json", *flags))
    check_books(report)
    assert report["runs"]["with"]["failed"] == 0


@pytest.mark.parametrize("machine", [True, False], ids=["json", "table"])
@pytest.mark.parametrize("mode", ["--virtual", "--speed=5"])
def test_ctrl_c_prints_the_partial_report(mode: str, machine: bool) -> None:
    flags = ["--seconds", "3000", mode, *(["--json"] if machine else [])]
    for delay in (1.5, 3.0, 6.0, 12.0):  # a busy machine may not even have imported by then
        process = subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "ferrogate.cli", "demo", *flags],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started = time.monotonic()
        while mode != "--virtual" and not children(process.pid):
            assert time.monotonic() - started < 30
            time.sleep(0.02)
        time.sleep(delay)
        providers = children(process.pid)
        # A terminal signals the whole group; the provider is not in it.
        os.killpg(process.pid, signal.SIGINT)
        asked = time.monotonic()
        try:
            out, err = process.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            # It came while a module was imported, within a callback in which Python ignores it.
            assert "Exception ignored" in err, err
            assert "importlib" in err, err
            continue
        waited = time.monotonic() - asked
        assert not any(Path(f"/proc/{pid}").exists() for pid in providers)
        if out:
            break
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert waited < 10
    assert len(providers) == (mode != "--virtual")
    if machine:
        report = json.loads(out)
        assert report["partial"] is True
        run = report["runs"]["with"]
        assert run["interrupted"] is True
        assert 0 < run["requests"] < report["trace"]["requests"]
        assert run["answered"] <= run["provider"]["served"]
        assert run["answered"] + run["unfinished"] + run["failed"] == run["requests"]
    else:
        assert "PARTIAL" in out


def test_a_killed_replay_leaves_no_provider_behind() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "ferrogate.cli", "demo", "--seconds", "3000", "--json"],
        stdout=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 30
    while not (providers := children(process.pid)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.kill()
    process.wait()
    while any(Path(f"/proc/{pid}").exists() for pid in providers):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def children(pid: int) -> list[int]:
    listed = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in listed]


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (None, "no such file"),
        ("", "empty file"),
        ("a,b\n1,2\n", "line 1: neither the Azure header"),
        (
            "TIMESTAMP,ContextTokens,GeneratedTokens\r\n"
            + "2023-11-16 18:15:46.6805900,374,44\r\n" * 6_999
            + "2023-11-16 18:15:46,many,44\r\n",
            "line 7,001: ContextTokens is not a whole number: 'many'",
        ),
    ],
)
def test_a_bad_trace_is_one_line_and_exit_code_2(
    ferrogate: Ferrogate, tmp_path: Path, content: str | None, what: str
) -> None:
    path = tmp_path / "trace.csv"
    if content is not None:
        path.write_bytes(content.encode())
    for flags in ([], ["--virtual", "--limit", 5], ["--json"]):
        done = ferrogate("replay", path, *flags)
        assert (done.returncode, done.stdout) == (2, "")
        (line,) = done.stderr.splitlines()
        assert line.startswith(f"ferrogate: {path}: ")
        assert what in line


def test_a_part_without_requests(ferrogate: Ferrogate, tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"timestamp": 0, "input_length": 1, "output_length": 1, "hash_ids": [1]}\n')
    done = ferrogate("replay", path, "--start", 100)
    assert done.returncode == 2
    assert "no request in the part asked for" in done.stderr
