"""The report for people: tables and a small chart on the terminal, plain text in a pipe."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

__all__ = ["render"]

_BARS = " ▁▂▃▄▅▆▇█"
_LISTED = 5
_LATE = 0.5
_NONE = "-"
_TITLES = {"with": "with ferrogate", "without": "without"}


def render(report: dict[str, Any], console: Console) -> None:
    """Prints the whole report."""
    trace, settings, runs = report["trace"], report["settings"], report["runs"]
    console.print(_heading(trace, settings), highlight=False)
    if report["partial"]:
        why = [run["stopped"] for run in runs.values() if run["stopped"]]
        text = f"PARTIAL: {why[0] if why else 'interrupted before the end'}"
        console.print(Text(text, style="bold red"))
    console.print(_table(report))
    _never_granted(runs, console)
    _alerts(runs, console)
    _chart(report, console)
    for line in _notes(report):
        console.print(line, highlight=False, soft_wrap=False)


def _heading(trace: dict[str, Any], settings: dict[str, Any]) -> str:
    provider = settings["provider"]
    how = "in virtual time" if settings["virtual"] else f"over HTTP at speed {provider['speed']:g}"
    limits = [
        f"{provider[key]:,} {label}"
        for key, label in (
            ("requests_per_minute", "requests/min"),
            ("requests_per_hour", "requests/h"),
            ("tokens_per_minute", "tokens/min"),
            ("concurrency", "at once"),
        )
        if provider[key]
    ]
    automatic = " (automatic: 1.05 times the mean rate)" if settings["automatic_limit"] else ""
    repeats = ""
    if trace["synthetic_repeats"]:
        repeats = f"\n{trace['synthetic_repeats']:,} repeats are SYNTHETIC (--repeat-rate)"
    about = f"\n{trace['about']}" if trace["about"] else ""
    return (
        f"[bold]{trace['name']}[/bold]: {trace['requests']:,} requests in "
        f"{_duration(trace['seconds'])}, {trace['distinct_prompts']:,} distinct prompts, {how}"
        f"{about}\nprovider limits: {', '.join(limits) or 'none'}{automatic}{repeats}"
    )


def _table(report: dict[str, Any]) -> Table:
    runs = report["runs"]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("", no_wrap=True)
    for name in runs:
        table.add_column(_TITLES.get(name, name), justify="right")

    def row(label: str, value: Callable[[dict[str, Any]], str], style: str = "") -> None:
        table.add_row(label, *(value(run) for run in runs.values()), style=style)

    def counted(label: str, *path: str, always: bool = True) -> None:
        values = [_at(run, path) for run in runs.values()]
        if always or any(values):
            table.add_row(label, *(_NONE if v is None else f"{v:,}" for v in values))

    def section(title: str) -> None:
        table.add_section()
        table.add_row(Text(title, style="bold"))

    table.add_row(Text("the work", style="bold"))
    counted("requests", "requests")
    counted("answered", "answered")
    counted("failed", "failed")
    row("can never be granted", lambda run: f"{len(run['never_granted']):,}")
    counted("waited too long", "rejected")
    counted("unfinished", "unfinished", always=False)
    section("answered without a call")
    counted("cache hits", "hits")
    counted("joined a call under way", "joins")
    section("the provider's own count")
    counted("received", "provider", "received")
    counted("served", "provider", "served")
    row("429 over a rate limit", lambda run: _number(run["provider"].get("rate_limited")), "bold")
    counted("429 larger than a limit", "provider", "too_large", always=False)
    counted("injected 429", "provider", "injected_429", always=False)
    counted("injected 500", "provider", "injected_500", always=False)
    counted("injected timeouts", "provider", "injected_timeout", always=False)
    counted("client hung up", "provider", "abandoned", always=False)
    counted("most at once", "provider", "peak_in_flight")
    section("tokens and money")
    counted("input tokens spent", "tokens_spent", "input")
    counted("output tokens spent", "tokens_spent", "output")
    counted("input tokens saved", "tokens_saved", "input")
    counted("output tokens saved", "tokens_saved", "output")
    row("USD spent", lambda run: _usd(run["usd_spent"]))
    row("USD saved", lambda run: _usd(run["usd_saved"]))
    row("USD spent per 1,000 answers", _per_thousand)
    section("time, as the agent sees it")
    row("answers p50 / p95 / p99", lambda run: _spread(run["latency_seconds"]))
    row("permits p50 / p95 / p99", lambda run: _spread(run["wait_seconds"]))
    counted("waited for a permit", "waits")
    counted("retries", "retries")
    row("until the last answer", lambda run: _duration(run["seconds"]))
    row("real time of the run", lambda run: _duration(run["wall_seconds"]))
    return table


def _never_granted(runs: dict[str, Any], console: Console) -> None:
    for name, run in runs.items():
        refused: list[dict[str, Any]] = run["never_granted"]
        if not refused:
            continue
        console.print(f"[bold]can never be granted[/bold], {_TITLES.get(name, name)}:")
        for request in refused[:_LISTED]:
            console.print(
                f"  line {request['line']}: {request['input_tokens']:,} + "
                f"{request['output_tokens']:,} tokens, {request['reason']}",
                highlight=False,
            )
        if len(refused) > _LISTED:
            console.print(f"  … and {len(refused) - _LISTED:,} more (all in --json)")


def _alerts(runs: dict[str, Any], console: Console) -> None:
    for name, run in runs.items():
        for alert in run.get("alerts", ()):
            since, until = alert["raised_after_seconds"], alert["resolved_after_seconds"]
            when = f"from {_duration(since)}" + (f" to {_duration(until)}" if until else " on")
            style = "red" if alert["severity"] == "critical" else "yellow"
            line = Text(f"{alert['severity']}, {_TITLES.get(name, name)}: ", style=style)
            console.print(line.append(f"{alert['message']} ({when})", style="default"))
        if not run.get("alerts"):
            console.print(f"no alerts {_TITLES.get(name, name)}")
    console.print()


def _chart(report: dict[str, Any], console: Console) -> None:
    runs = report["runs"]
    end = max([report["trace"]["seconds"], *(run["seconds"] for run in runs.values())], default=0.0)
    lines: list[tuple[str, list[tuple[int, int]], str]] = [
        ("offered", [(s, n) for s, n in report["trace"]["offered_per_second"]], "")
    ]
    for name, run in runs.items():
        timeline = run["provider"].get("timeline", [])
        served = [(second, served) for second, _, served, _ in timeline]
        lines.append((f"served, {name}", served, "green"))
        refused = [(second, refused) for second, _, _, refused in timeline]
        lines.append((f"429s, {name}", refused, "red"))
    label = max(len(name) for name, _, _ in lines)
    width = max(20, min(console.width, 120) - label - 16)
    width = min(width, math.ceil(max(end, 1.0)))
    console.print(f"[bold]requests a second[/bold] over {_duration(end)}", highlight=False)
    scaled = [(name, _buckets(points, end, width), style) for name, points, style in lines]
    top = max((max(values, default=0.0) for _, values, _ in scaled), default=0.0)
    for name, values, style in scaled:
        peak = max(values, default=0.0)
        text = Text(f"{name:>{label}} ")
        text.append(_spark(values, top), style=style)
        text.append(f" most {peak:.1f}/s")
        console.print(text, no_wrap=True)
    console.print()


def _buckets(points: Iterable[tuple[int, int]], end: float, width: int) -> list[float]:
    span = max(end, 1.0) / width
    values = [0.0] * width
    for second, count in points:
        values[min(width - 1, int(second / span))] += count
    # A bucket narrower than a second still holds whole seconds' counts.
    return [value / max(span, 1.0) for value in values]


def _spark(values: Sequence[float], top: float) -> str:
    if top <= 0:
        return _BARS[0] * len(values)
    steps = len(_BARS) - 1
    return "".join(_BARS[0 if v <= 0 else max(1, round(v / top * steps))] for v in values)


def _notes(report: dict[str, Any]) -> list[str]:
    settings, runs = report["settings"], report["runs"]
    notes = [
        f"USD at {settings['price_input']:g} / {settings['price_output']:g} per million input / "
        f"output tokens ({settings['model']}; --price)."
    ]
    if "without" in runs:
        notes.append(
            f"Without ferrogate: the same SDK calls, {settings['retries']} retries by the SDK's "
            "own rule, no cache, no limiter. Times are those of answered requests: a limiter "
            "lets wait what fails without one."
        )
    transit = runs.get("with", {}).get("transit_wall_seconds", {})
    if transit.get("max") is not None:
        notes.append(
            f"From permit to arrival: p50 {_short(transit['p50'])}, most {_short(transit['max'])}; "
            f"the agent's windows are {_short(settings['margin'])} longer than the provider's "
            "for that (--margin)."
        )
    for name, run in runs.items():
        if run["late_wall_seconds"] > _LATE:
            notes.append(
                f"This machine did not keep up {_TITLES[name]}: requests left up to "
                f"{_short(run['late_wall_seconds'])} late. A lower --speed measures better."
            )
    return notes


def _at(value: Any, path: Sequence[str]) -> Any:
    for key in path:
        if not isinstance(value, dict):
            return None
        value = value.get(key)
    return value


def _number(value: int | None) -> str:
    return _NONE if value is None else f"{value:,}"


def _per_thousand(run: dict[str, Any]) -> str:
    spent, answered = run["usd_spent"], run["answered"]
    return _usd(spent / answered * 1000) if answered and spent is not None else _NONE


def _usd(value: float | None) -> str:
    return _NONE if value is None else f"{value:,.4f}"


def _spread(values: dict[str, float | None]) -> str:
    known = [value for p in ("p50", "p95", "p99") if (value := values[p]) is not None]
    if not known:
        return _NONE
    if known[-1] < 1:
        return " / ".join(f"{value * 1000:.0f}" for value in known) + " ms"
    return " / ".join(f"{v:.1f}" if v < 100 else f"{v:,.0f}" for v in known) + " s"


def _short(seconds: float | None) -> str:
    if seconds is None:
        return _NONE
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    return f"{seconds:.1f} s" if seconds < 100 else f"{seconds:,.0f} s"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min {rest} s"
