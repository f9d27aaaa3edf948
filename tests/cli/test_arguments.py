"""What a newcomer types wrong: one line, exit code 2, nothing else."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import pytest

from ferrogate.cli import main

Ferrogate = Callable[..., subprocess.CompletedProcess[str]]

HUGE = "9" * 30


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ("replay", "TRACE"),
        ("nonsense", "invalid choice"),
        ("replay a b", "unrecognized arguments: b"),
        ("demo --speed 0", "--speed: must be at least 0.001"),
        ("demo --speed nan", "--speed: must be at least 0.001"),
        ("demo --speed 1e300", "--speed: must be at least 0.001 and at most 10,000: 1e300"),
        ("demo --repeat-rate 1.5", "at most 1: 1.5"),
        ("demo --rpm -1", "--rpm: must be at least 0"),
        ("demo --limit 0", "--limit: must be at least 1"),
        ("demo --limit 1e3", "--limit: must be a whole number: 1e3"),
        ("demo --seed x", "--seed: must be a whole number: x"),
        ("demo --price 1", "INPUT,OUTPUT"),
        ("demo --price 1e308,1e308", "--price: must be at least 0 and at most"),
        ("demo --seconds x", "--seconds: must be a number: x"),
        ("demo --seconds 1e7", "--seconds: the built-in traffic lasts at most 86,400 s"),
        ("demo --start 1e300", "--start: must be"),
        ("demo --model unheard-of", "no price known for 'unheard-of'"),
        ("demo --margin 1e300", "--margin: must be at least 0 and at most 3,600: 1e300"),
        ("demo --max-wait inf", "--max-wait: must be"),
        ("demo --retries 1001", "--retries: must be"),
        ("demo --timeout 1e300", "--timeout: must be"),
        ("demo --cache-ttl 1e300", "--cache-ttl: must be"),
        *((f"demo --{flag} {HUGE}", f"--{flag}: must be at least")
          for flag in ("rpm", "rph", "tpm", "concurrency", "cache-size", "limit")),
        (f"demo --limit {'9' * 5000}", "--limit: must be"),
    ],
)  # fmt: skip
def test_a_bad_argument_is_one_line(
    capsys: pytest.CaptureFixture[str], arguments: str, what: str
) -> None:
    assert main(arguments.split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith("ferrogate: ")
    assert what in line
    assert len(line) < 400


EXTREMES = [
    {"margin": 3600, "rpm": 10**9, "rph": 10**9, "tpm": 10**9, "concurrency": 10**9},
    {"cache-size": 10**9, "cache-ttl": 1e9, "timeout": 1e6, "max-wait": 1e9, "start": 1e9},
    {"margin": 0, "rpm": 1, "timeout": 1e-9, "max-wait": 0, "retries": 0, "concurrency": 1},
    {"cache-size": 1, "cache-ttl": 1e-9, "price": "1e6,1e6", "seed": -(10**20), "retries": 1000},
]


@pytest.mark.parametrize("flags", EXTREMES, ids=str)
def test_the_extremes_run(capsys: pytest.CaptureFixture[str], flags: dict[str, object]) -> None:
    arguments = [f"--{name}={value}" for name, value in flags.items()]
    assert main(["demo", "--virtual", "--limit", "5", *arguments]) == 0
    out, err = capsys.readouterr()
    assert "with ferrogate" in out
    assert "Traceback" not in err


def test_without_a_command_it_says_which_there_are(ferrogate: Ferrogate) -> None:
    done = ferrogate()
    assert (done.returncode, done.stdout) == (2, "")
    for command in ("replay", "demo", "doctor", "version"):
        assert command in done.stderr
    for asked in (["--help"], ["help"], ["help", "replay"], ["demo", "-h"]):
        done = ferrogate(*asked)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("usage: ferrogate ")
    assert ferrogate("--version").stdout == ferrogate("version").stdout
