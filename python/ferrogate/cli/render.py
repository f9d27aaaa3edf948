"""The report for people: tables and a small chart on the terminal, plain text in a pipe."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from ferrogate.cli.chart import print_chart, says
from ferrogate.cli.units import NONE, duration, number, percent, ratio, short, spread, usd

__all__ = ["render"]

_LISTED = 5
_LATE = 0.5
_WIDE = 1000
_REFUSED = "429 over a rate limit"
_TITLES = {"with": "with ferrogate", "without": "without"}
# Like SIMPLE_HEAD, for an encoding that lacks its line.
_ASCII_HEAD = box.Box("    \n    \n -- \n    \n    \n    \n    \n    \n", ascii=True)


def render(report: dict[str, Any], console: Console) -> None:
    """Prints the whole report."""
    trace, settings, runs = report["trace"], report["settings"], report["runs"]
    console.print(_heading(trace, settings), highlight=False)
    if report["partial"]:
        why = [run["stopped"] for run in runs.values() if run["stopped"]]
        text = f"PARTIAL: {why[0] if why else 'interrupted before the end'}"
        console.print(Text(text, style="bold red"))
    table = _table(runs, console)
    if console.measure(table, options=console.options.update(width=_WIDE)).maximum > console.width:
        _stack(runs, console)
    else:
        console.print(table)
    _errors(runs, console)
    _never_granted(runs, console)
    _alerts(runs, console)
    print_chart(report, console)
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
            ("input_tokens_per_minute", "input tokens/min"),
            ("output_tokens_per_minute", "output tokens/min"),
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
        f"[bold]{escape(trace['name'])}[/bold]: {trace['requests']:,} requests in "
        f"{duration(trace['seconds'])}, {trace['distinct_prompts']:,} distinct prompts, {how}"
        f"{about}\nprovider limits: {', '.join(limits) or 'none'}{automatic}{repeats}"
    )


def _rows(runs: dict[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """Every line of the table: a label and a value for each run, or no value for a heading."""

    def row(label: str, value: Callable[[dict[str, Any]], str]) -> tuple[str, list[str]]:
        return label, [value(run) for run in runs.values()]

    def counted(label: str, *path: str) -> tuple[str, list[str]]:
        return label, [number(_at(run, path)) for run in runs.values()]

    def if_any(label: str, *path: str) -> Iterator[tuple[str, list[str]]]:
        if any(_at(run, path) for run in runs.values()):
            yield counted(label, *path)

    yield "the work", []
    yield counted("requests", "requests")
    yield counted("answered", "answered")
    yield counted("failed", "failed")
    yield row("can never be granted", lambda run: number(len(run["never_granted"])))
    yield counted("waited too long", "rejected")
    yield from if_any("unfinished", "unfinished")
    yield "answered without a call", []
    yield counted("cache hits", "hits")
    yield counted("joined a call under way", "joins")
    yield "the provider's own count", []
    yield counted("received", "provider", "received")
    yield counted("served", "provider", "served")
    yield counted(_REFUSED, "provider", "rate_limited")
    yield from if_any("429 larger than a limit", "provider", "too_large")
    yield from if_any("injected 429", "provider", "injected_429")
    yield from if_any("injected 500", "provider", "injected_500")
    yield from if_any("injected timeouts", "provider", "injected_timeout")
    yield from if_any("client hung up", "provider", "abandoned")
    yield counted("most at once", "provider", "peak_in_flight")
    yield from _flow_rows(runs)
    yield "tokens and money", []
    yield counted("input tokens spent", "tokens_spent", "input")
    yield counted("output tokens spent", "tokens_spent", "output")
    yield counted("input tokens saved", "tokens_saved", "input")
    yield counted("output tokens saved", "tokens_saved", "output")
    yield row("USD spent", lambda run: usd(run["usd_spent"]))
    yield row("USD saved", lambda run: usd(run["usd_saved"]))
    yield row("USD spent per 1,000 answers", _per_thousand)
    yield "time, as the agent sees it", []
    yield row("answers p50 / p95 / p99", lambda run: spread(run["latency_seconds"]))
    yield row("permits p50 / p95 / p99", lambda run: spread(run["wait_seconds"]))
    yield counted("waited for a permit", "waits")
    yield counted("retries", "retries")
    yield row("until the last answer", lambda run: duration(run["seconds"]))
    yield row("real time of the run", lambda run: duration(run["wall_seconds"]))


def _flow_rows(runs: dict[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """How full the provider's limits were while requests waited, and who got how much of them."""
    flows = [run["flow"] for run in runs.values()]
    if any(flow["backlog_seconds"] for flow in flows):
        yield "used while requests waited", []
        yield "requests waited for", [duration(flow["backlog_seconds"]) for flow in flows]
        for name in dict.fromkeys(name for flow in flows for name in flow["used_percent"]):
            yield name, [percent(flow["used_percent"].get(name)) for flow in flows]
    if any(flow["fairness"] for flow in flows):
        yield "tenants at the last arrival", []
        fair = [flow["fairness"] or {} for flow in flows]
        yield "received / fair share, Jain", [ratio(each.get("jain")) for each in fair]
        yield "the worst off", [ratio(each.get("worst")) for each in fair]


def _table(runs: dict[str, Any], console: Console) -> Table:
    """The runs side by side."""
    rule = box.SIMPLE_HEAD if says(console, str(box.SIMPLE_HEAD)) else _ASCII_HEAD
    table = Table(box=rule, pad_edge=False)
    table.add_column("", no_wrap=True)
    for name in runs:
        table.add_column(_TITLES.get(name, name), justify="right", no_wrap=True)
    for number_of_line, (label, values) in enumerate(_rows(runs)):
        if not values and number_of_line:
            table.add_section()
        style = "bold" if not values or label == _REFUSED else ""
        table.add_row(label, *values, style=style)
    return table


def _stack(runs: dict[str, Any], console: Console) -> None:
    """The runs one under the other. What does not fit beside its label stands below it."""
    width = console.width
    for name, run in runs.items():
        console.print(Text(f"\n{_TITLES.get(name, name)}", style="bold underline"))
        for label, values in _rows({name: run}):
            if not values:
                console.print(Text(label, style="bold"))
                continue
            (value,) = values
            room = width - len(label) - 1
            text = label + (f"\n{value:>{width}}" if len(value) > room else f" {value:>{room}}")
            console.print(Text(text, style="bold" if label == _REFUSED else ""))
    console.print()


def _errors(runs: dict[str, Any], console: Console) -> None:
    for name, run in runs.items():
        if run["errors"]:
            kinds = ", ".join(f"{count:,} x {kind}" for kind, count in run["errors"].items())
            console.print(Text(f"failed attempts, {_TITLES.get(name, name)}: {kinds}"))


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
            console.print(f"  and {len(refused) - _LISTED:,} more (all in --json)")


def _alerts(runs: dict[str, Any], console: Console) -> None:
    for name, run in runs.items():
        for alert in run.get("alerts", ()):
            since, until = alert["raised_after_seconds"], alert["resolved_after_seconds"]
            when = f"from {duration(since)}" + (f" to {duration(until)}" if until else " on")
            style = "red" if alert["severity"] == "critical" else "yellow"
            line = Text(f"{alert['severity']}, {_TITLES.get(name, name)}: ", style=style)
            console.print(line.append(f"{alert['message']} ({when})", style="default"))
        if not run.get("alerts"):
            console.print(f"no alerts {_TITLES.get(name, name)}")
    console.print()


def _notes(report: dict[str, Any]) -> list[str]:
    settings, runs = report["settings"], report["runs"]
    notes = [
        f"USD at {settings['price_input']:g} / {settings['price_output']:g} per million input / "
        f"output tokens ({escape(settings['model'])}; --price)."
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
            f"From permit to arrival: p50 {short(transit['p50'])}, most {short(transit['max'])}; "
            f"the agent's windows are {short(settings['margin'])} longer than the provider's "
            "for that (--margin)."
        )
    for name, run in runs.items():
        if run["late_wall_seconds"] > _LATE:
            notes.append(
                f"This machine did not keep up {_TITLES[name]}: requests left up to "
                f"{short(run['late_wall_seconds'])} late. A lower --speed measures better."
            )
    return notes


def _at(value: Any, path: Sequence[str]) -> Any:
    for key in path:
        if not isinstance(value, dict):
            return None
        value = value.get(key)
    return value


def _per_thousand(run: dict[str, Any]) -> str:
    spent, answered = run["usd_spent"], run["answered"]
    return usd(spent / answered * 1000) if answered and spent is not None else NONE
