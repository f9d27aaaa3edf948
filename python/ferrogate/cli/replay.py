"""``ferrogate replay TRACE`` and ``ferrogate demo``: an agent's day, with and without ferrogate."""

from __future__ import annotations

import argparse
import json
from typing import Any

from ferrogate.cli._errors import FAILED, INTERRUPTED, CliError
from ferrogate.cli.arguments import AUTO, Parser, add_flags, settings_from
from ferrogate.cli.extras import require_demo_extra
from ferrogate.cli.generator import generate
from ferrogate.cli.output import Page, write
from ferrogate.cli.settings import Settings
from ferrogate.cli.traces import Trace, read_trace, with_repeats, with_tenants

__all__ = ["add_parsers"]

_DEMO_SECONDS = 240.0
# Minutes 20 to 24 of the fitted hour: the load rises from 351 to 408 a minute.
_DEMO_START = 1200.0
_DEMO_SPEED = 10.0
# A day: half a million requests, all in memory.
_LONGEST_DEMO = 86_400.0
# Below the load of 377 a minute: the plain run meets the wall, the guarded one a line.
_DEMO_REQUESTS_PER_MINUTE = 360

_REPLAY_HELP = """\
Replays a trace of LLM requests through the real openai SDK against an
OpenAI-compatible provider of its own (a process on loopback with its own limits
and its own count), once guarded by ferrogate and once plain, and compares.

Reads the Azure LLM inference CSV and the Mooncake JSONL formats. Prompts are
identical only where the trace says so (equal hash_ids).
"""


_DEMO_HELP = """\
Replays four minutes of generated traffic, fitted to the Azure conversation
trace, at speed 10: like `ferrogate replay`, without a trace and in a minute.
With --trace it takes four minutes of that file, or all of it with --virtual.
"""


def add_parsers(commands: argparse._SubParsersAction[Parser]) -> None:
    """Adds both subcommands."""
    raw = argparse.RawDescriptionHelpFormatter
    replay = commands.add_parser(
        "replay",
        help="replay a trace against a provider, with and without ferrogate",
        description=_REPLAY_HELP,
        formatter_class=raw,
    )
    replay.add_argument("trace", metavar="TRACE", help="a CSV or JSONL file")
    add_flags(replay, speed=1.0)
    replay.set_defaults(run=_replay)

    demo = commands.add_parser(
        "demo",
        help="the same on built-in traffic, in under two minutes",
        description=_DEMO_HELP,
        formatter_class=raw,
    )
    demo.add_argument("--trace", metavar="TRACE", help="replay this file instead")
    add_flags(demo, speed=_DEMO_SPEED)
    demo.set_defaults(run=_demo)


def _replay(options: argparse.Namespace) -> int:
    trace = read_trace(options.trace)
    trace = trace.part(start=options.start or 0.0, seconds=options.seconds, limit=options.limit)
    return _compare(trace, options, "replay")


def _demo(options: argparse.Namespace) -> int:
    if options.seconds is None and not (options.trace and options.virtual):
        options.seconds = _DEMO_SECONDS
    if options.trace:
        return _replay(options)
    if options.seconds > _LONGEST_DEMO:
        raise CliError(f"--seconds: the built-in traffic lasts at most {_LONGEST_DEMO:,.0f} s")
    start = _DEMO_START if options.start is None else options.start
    if options.rpm == AUTO:
        options.rpm = _DEMO_REQUESTS_PER_MINUTE
    trace = generate(options.seconds, seed=options.seed, start=start)
    return _compare(trace.part(limit=options.limit), options, "demo")


def _compare(trace: Trace, options: argparse.Namespace, command: str) -> int:
    settings = settings_from(options)
    require_demo_extra(command)
    seed = settings.provider.seed
    trace = with_repeats(trace, settings.repeat_rate, seed)
    trace = with_tenants(trace, settings.tenants, settings.flood, seed)
    report = _run(trace, settings.fitted_to(trace), quiet=options.json)
    if options.json:
        write(json.dumps(report, indent=1) + "\n")
    else:
        from rich.console import Console

        from ferrogate.cli.render import render

        # Not on stdout itself: rich exits when nobody reads on, and raises where
        # the encoding lacks a character.
        page = Page()
        render(report, Console(file=page))
        write(page.getvalue())
    for run in report["runs"].values():
        if run["stopped"]:
            raise CliError(run["stopped"], FAILED)
    return INTERRUPTED if report["partial"] else 0


def _run(trace: Trace, settings: Settings, *, quiet: bool) -> dict[str, Any]:
    from ferrogate.cli.agent import Run
    from ferrogate.cli.progress import Progress
    from ferrogate.cli.report import build_report
    from ferrogate.cli.runner import run_once

    runs: list[Run] = []
    with Progress(quiet=quiet) as progress:
        for name, label, guarded in (
            ("with", "with ferrogate", True),
            ("without", "without", False),
        ):
            if not guarded and not settings.baseline:
                continue
            run = Run(name)
            runs.append(run)
            tick = progress.start(label, len(trace.rows))
            run_once(trace, settings, run, guarded=guarded, tick=tick)
            if run.interrupted or run.stopped:
                break
    if not any(run.requests for run in runs):
        if runs[-1].stopped:
            raise CliError(runs[-1].stopped, FAILED)
        raise KeyboardInterrupt
    return build_report(trace, settings, runs)
