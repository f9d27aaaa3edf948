"""`python benches/peers`: ferrogate beside its rivals, in one interleaved run.

Prints, for every row of the speed targets, each contender's median, how many times as
long as the named base (the first) it takes, and whether the target is met; then the same
as the table of README.md, where ratios are to ferrogate. `--json FILE` writes the same as data,
`--only PATTERN` picks rows, `--quick` trades care for time (a look, not a figure).
The exit code is 0 whether or not targets are met: the table says so.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
import json
import os
import platform
import re
import sys
from pathlib import Path
from typing import Any

import hit_ratios
import markdown
import rows_breaker
import rows_cache
import rows_guard
import rows_key
import rows_limiter
import rows_llm
import rows_redis
import rows_retry
import rows_shared_limiter
import rows_store
from measure import Row, Timing, measure

VERDICTS = {True: "met", False: "MISSED", None: "not measured"}
ROWS = [
    *rows_breaker.ROWS,
    *rows_cache.ROWS,
    *rows_guard.ROWS,
    *rows_key.ROWS,
    *rows_limiter.ROWS,
    *rows_llm.ROWS,
    *rows_redis.ROWS,
    *rows_retry.ROWS,
    *rows_shared_limiter.ROWS,
    *rows_store.ROWS,
]


def main() -> int:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(prog="benches/peers", description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the table as JSON")
    parser.add_argument("--only", default="", metavar="PATTERN", help="rows whose name matches")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds")
    parser.add_argument(
        "--seeds", type=int, default=0, metavar="N", help="adaptive: over so many seeds of the hash"
    )
    options = parser.parse_args()
    rows = [r for r in ROWS if re.search(options.only, r.name, re.IGNORECASE)]
    adaptive = re.search(options.only, "adaptive: hit ratios", re.IGNORECASE)
    if not rows and not adaptive:
        print(f"no row matches {options.only!r}; there are:", *(r.name for r in ROWS), sep="\n  ")
        return 2
    samples, budget = (5, 0.002) if options.quick else (31, 0.010)
    machine = describe()
    print(*(f"{name}: {value}" for name, value in machine.items()), sep="\n")
    print(f"{samples} interleaved rounds, medians; the loop's own cost is subtracted")
    print("x: as many times as long as the first of the row")
    table = []
    with asyncio.Runner() as runner:
        for row in rows:
            timings = measure(row, samples=samples, budget=budget, runner=runner)
            table.append(tabulate(row, timings))
            show(table[-1])
    ratios = hit_ratios.table(quick=options.quick, seeds=options.seeds) if adaptive else []
    if options.json:
        data = {"machine": machine, "rows": table, "hit_ratios": ratios}
        options.json.write_text(json.dumps(data, indent=2) + "\n")
    print(f"\n{sum(r['met'] is True for r in table)} of {len(table)} targets met")
    for row_data in table:
        if row_data["met"] is not True:
            print(f"  {VERDICTS[row_data['met']]}: {row_data['row']}")
    print(f"\nfor README.md:\n\n{markdown.table(table)}")
    return 0


def describe() -> dict[str, str]:
    """The machine and the versions, for whoever compares figures."""
    timed = {c.package for r in ROWS for c in r.contenders if c.package}
    names = sorted(timed | set(hit_ratios.PACKAGES))
    return {
        "machine": f"{cpu()}, {os.cpu_count()} cores, {platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "versions": ", ".join(f"{name} {version(name)}" for name in names),
    }


def cpu() -> str:
    """The processor's name."""
    facts = Path("/proc/cpuinfo")
    if facts.exists() and (named := re.search(r"model name\s*: (.*)", facts.read_text())):
        return named[1]
    return platform.processor() or platform.machine()


def version(package: str) -> str:
    """The installed version, or that there is none."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


def tabulate(row: Row, timings: list[Timing]) -> dict[str, Any]:
    """A row as data. `met` is None where ferrogate or the base could not be measured."""
    base = timings[0].nanoseconds
    contenders: list[dict[str, Any]] = [
        {
            "name": t.contender.name,
            "package": t.contender.package,
            "note": t.contender.note,
            "nanoseconds": round(t.nanoseconds, 1) if not t.problem else None,
            "ratio": round(t.nanoseconds / base, 3) if base and not t.problem else None,
            "problem": t.problem,
        }
        for t in timings
    ]
    ours = next(c for c in contenders if c["package"] == "ferrogate")
    measured = ours["ratio"] is not None
    met = row.target.met(ours["nanoseconds"], ours["ratio"]) if measured else None
    return {"row": row.name, "target": row.target.says, "met": met, "contenders": contenders}


def show(row: dict[str, Any]) -> None:
    """Prints one row."""
    print(f"\n{row['row']}\n  target {row['target']}: {VERDICTS[row['met']]}")
    for one in row["contenders"]:
        note = f"  {one['note']}" if one["note"] else ""
        if one["problem"]:
            print(f"  {one['name']:32} failed: {one['problem']}")
        else:
            ratio = "" if one["ratio"] is None else f"{one['ratio']:8.2f} x"
            print(f"  {one['name']:32} {one['nanoseconds']:10,.0f} ns {ratio:>10}{note}")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
