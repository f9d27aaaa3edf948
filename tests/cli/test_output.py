"""The report on every terminal; streams that are full, closed, or read by nobody."""

from __future__ import annotations

import copy
import io
import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console

from ferrogate.cli.render import render

Ferrogate = Callable[..., subprocess.CompletedProcess[str]]

COMMAND = f"{sys.executable} -W error -m ferrogate.cli"
SHORT = "demo --virtual --limit 5 --no-baseline"


@pytest.fixture(scope="module")
def report(ferrogate: Ferrogate) -> dict[str, Any]:
    """One run's report, for everything that only prints it."""
    flags = ["--seconds", 60, "--repeat-rate", 0.2, "--inject-500", 0.05, "--rpm", 300]
    return json.loads(ferrogate("demo", "--virtual", "--json", *flags).stdout)


def printed(report: dict[str, Any], width: int, encoding: str = "utf-8") -> str:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    console = Console(file=file, width=width)
    render(report, console)
    file.seek(0)
    return file.read()


@pytest.mark.parametrize("width", [20, 30, 40, 60, 72, 73, 80, 120, 300])
def test_no_number_is_lost_on_a_narrow_terminal(report: dict[str, Any], width: int) -> None:
    text = printed(report, width)
    lines = text.splitlines()
    assert max(map(len, lines)) <= width
    assert "\u2026" not in text
    assert "\x1b" not in text
    words = text.split()
    for run in report["runs"].values():
        for value in (run["requests"], run["tokens_spent"]["input"], run["provider"]["received"]):
            assert f"{value:,}" in words
        assert f"{run['usd_spent']:.4f}" in words
        assert f"{run['latency_seconds']['p99']:.1f}" in words
    joined = " ".join(words)
    assert "SYNTHETIC" in joined
    assert "x 500 injected_error" in joined
    refused = [run["provider"]["rate_limited"] for run in report["runs"].values()]
    if width >= 73:  # side by side
        assert any(
            line.split() == ["429", "over", "a", "rate", "limit", *map(str, refused)]
            for line in lines
        )
    elif width >= 30:
        assert [
            int(line.split()[-1]) for line in lines if line.startswith("429 over a rate limit ")
        ] == refused


@pytest.mark.parametrize("width", [40, 80])
@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_an_encoding_without_blocks_gets_other_bars(
    report: dict[str, Any], width: int, encoding: str
) -> None:
    text = printed(report, width, encoding)
    assert text.encode("ascii")
    assert max(map(len, text.splitlines())) <= width
    (served,) = [line for line in printed(report, 80, encoding).splitlines() if "d, with " in line]
    assert served.count(".") > 20


def test_names_are_text_and_not_markup(report: dict[str, Any]) -> None:
    named = copy.deepcopy(report)
    named["trace"]["name"] = "[/red]trace[bold].csv"
    named["settings"]["model"] = "[/]mine"
    text = printed(named, 120)
    assert "[/red]trace[bold].csv: " in text
    assert "([/]mine; --price)" in text


@pytest.mark.parametrize("encoding", ["ascii"])
def test_the_report_is_printed_in_any_encoding(ferrogate: Ferrogate, encoding: str) -> None:
    done = ferrogate(*SHORT.split(), PYTHONIOENCODING=encoding, COLUMNS="80")
    assert done.returncode == 0
    assert "requests a second" in done.stdout
    assert done.stderr == "with ferrogate: 5 of 5 done, 0 reused, 0 failed\n"


def shell(line: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", line],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("what", [f"{SHORT} --json", SHORT, "doctor", "replay --help"])
def test_nobody_reads_on_which_is_no_error(what: str) -> None:
    # `true` has ended long before anything is printed.
    done = shell(f"{COMMAND} {what} | true")
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    assert "ignored" not in done.stderr


@pytest.mark.parametrize("what", [f"{SHORT} --json", SHORT, "doctor", "version", "replay --help"])
@pytest.mark.parametrize(
    ("where", "why"),
    [
        (">&-", "stdout is closed"),
        (">/dev/full", "cannot write to stdout: No space left on device"),
    ],
)
def test_a_stdout_that_takes_nothing_is_one_line(what: str, where: str, why: str) -> None:
    done = shell(f"{COMMAND} {what} {where}")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1] == f"ferrogate: {why}"
    assert "Traceback" not in done.stderr
    assert "ignored" not in done.stderr


def test_without_stderr_it_still_reports() -> None:
    done = shell(f"{COMMAND} {SHORT} --json 2>&-")
    assert done.returncode == 0
    assert json.loads(done.stdout)["runs"]["with"]["answered"] == 5
    assert shell(f"{COMMAND} replay /none 2>&-").returncode == 2
