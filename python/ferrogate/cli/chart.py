"""A small chart of requests a second, on a terminal of any width and encoding."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from ferrogate.cli.units import duration

__all__ = ["print_chart", "says"]

# Below this many columns a line's label stands above it.
_NARROW = 60
_BLOCKS = " ▁▂▃▄▅▆▇█"
_ASCII = " .:-=+*#@"


def says(console: Console, text: str) -> bool:
    """Whether the console's encoding has these characters."""
    try:
        text.encode(console.encoding)
    except UnicodeEncodeError:
        return False
    return True


def print_chart(report: dict[str, Any], console: Console) -> None:
    """Prints what was offered, and what each run got of it."""
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
    narrow = console.width < _NARROW
    width = max(4, min(console.width, 120) - (14 if narrow else label + 16))
    width = min(width, math.ceil(max(end, 1.0)))
    console.print(f"[bold]requests a second[/bold] over {duration(end)}", highlight=False)
    scaled = [(name, _buckets(points, end, width), style) for name, points, style in lines]
    top = max((max(values, default=0.0) for _, values, _ in scaled), default=0.0)
    steps = _BLOCKS if says(console, _BLOCKS) else _ASCII
    for name, values, style in scaled:
        text = Text(f"{name}\n" if narrow else f"{name:>{label}} ")
        text.append(_spark(values, top, steps), style=style)
        text.append(f" most {max(values, default=0.0):.1f}/s")
        console.print(text, no_wrap=True, overflow="ignore", crop=False)
    binding = next((run["flow"]["binding"] for run in runs.values() if run["flow"]["binding"]), "")
    if binding:
        console.print(f"[bold]in use[/bold] of {binding}", highlight=False)
    for name, run in runs.items():
        seconds = run["provider"].get("usage", {}).get(binding)
        if seconds:
            title = f"in use, {name}"
            means = _means(seconds, end, width)
            text = Text(f"{title}\n" if narrow else f"{title:>{label}} ")
            text.append(_spark(means, 100.0, steps), style="cyan")
            text.append(f" most {max(means):.0f} %")
            console.print(text, no_wrap=True, overflow="ignore", crop=False)
    console.print()


def _means(seconds: Sequence[float], end: float, width: int) -> list[float]:
    """The mean of each column's seconds."""
    span = max(end, 1.0) / width
    columns = [
        seconds[int(c * span) : max(int((c + 1) * span), int(c * span) + 1)] for c in range(width)
    ]
    return [sum(column) / len(column) if column else 0.0 for column in columns]


def _buckets(points: Iterable[tuple[int, int]], end: float, width: int) -> list[float]:
    span = max(end, 1.0) / width
    values = [0.0] * width
    for second, count in points:
        values[min(width - 1, int(second / span))] += count
    # A bucket narrower than a second still holds whole seconds' counts.
    return [value / max(span, 1.0) for value in values]


def _spark(values: Sequence[float], top: float, steps: str) -> str:
    if top <= 0:
        return steps[0] * len(values)
    most = len(steps) - 1
    return "".join(steps[0 if v <= 0 else max(1, round(v / top * most))] for v in values)
