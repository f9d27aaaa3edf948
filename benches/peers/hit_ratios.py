"""Hit ratios on the public traces: exact LRU, moka, theine and our adaptive policy.

Every size from 2^6 in steps of four times up to half the distinct keys, and OLTP, loop and
Mooncake one after the other. Each cache is asked for every reference and filled on a miss.

moka puts its bookkeeping off and holds up to 64 entries too many meanwhile: at a size of 64 it
hits what others hit with 128. So the rival is moka that tidies up after every write, which
holds its bound as the others do; how it does as it is stands beside it.

The adaptive policy hashes with a seed that each process draws anew. With `seeds` it is run in so
many processes more; as a program, this module is one of them.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from array import array
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[2] / "tests" / "support"))
# By name, for it lies where only the tests look.
traces: Any = import_module("traces")

#: Of the best rival, on every trace and size.
TARGET = 0.98
#: The rivals beside our own LRU.
PACKAGES = ("moka-py", "theine")
#: One after the other, as a cache of a long-lived process sees them.
SEQUENCE = ("oltp", "loop", "mooncake")


def ours(policy: str) -> Callable[[int], tuple[Any, Any]]:
    def make(size: int) -> tuple[Any, Any]:
        cache = import_module("ferrogate").Cache(size, policy=policy)
        return cache.get, cache.set

    return make


def moka(size: int) -> tuple[Any, Any]:
    """Within its bound."""
    cache = import_module("moka_py").Moka(size)
    write, tidy = cache.set, cache.run_pending_tasks

    def put(key: int, value: int) -> None:
        write(key, value)
        tidy()

    return cache.get, put


def untidy_moka(size: int) -> tuple[Any, Any]:
    """As it is."""
    cache = import_module("moka_py").Moka(size)
    return cache.get, cache.set


def theine(size: int) -> tuple[Any, Any]:
    cache = import_module("theine").Cache(size, nolock=True)
    found = cache.get
    return lambda key: found(key)[0], cache.set


CACHES = {
    "lru": ours("lru"),
    "moka": moka,
    "theine": theine,
    "adaptive": ours("adaptive"),
    "moka as is": untidy_moka,
}


def workloads() -> Iterator[tuple[str, array[int]]]:
    """All traces, then the sequence; no key of one is a key of another."""
    read = {name: traces.references(name) for name in traces.FILES}
    yield from read.items()
    joined = array("q")
    for number, name in enumerate(SEQUENCE):
        joined.extend(key + (number << 40) for key in read[name])
    yield " + ".join(SEQUENCE), joined


def sizes(trace: array[int], most: int) -> Iterator[int]:
    """2^6, 2^8 ... up to half the distinct keys."""
    size, distinct = 64, len(set(trace))
    while size <= min(distinct / 2, most):
        yield size
        size *= 4


def hit_ratio(make: Callable[[int], tuple[Any, Any]], size: int, trace: array[int]) -> float:
    """The share of the references that hit."""
    get, put = make(size)
    hits = 0
    for key in trace:
        if get(key) is None:
            put(key, 1)
        else:
            hits += 1
    return hits / len(trace)


def runs(*, quick: bool) -> Iterator[tuple[str, array[int], int]]:
    """Every workload with each of its sizes; `quick` leaves out those above 1,024."""
    for name, trace in workloads():
        for size in sizes(trace, 1024 if quick else sys.maxsize):
            yield name, trace, size


def drawn_anew(*, quick: bool) -> list[float]:
    """The adaptive policy's hit ratios with another seed, run by run."""
    command = [sys.executable, __file__, *(["--quick"] if quick else [])]
    said = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
    found: list[float] = json.loads(said)
    return found


def table(*, quick: bool, seeds: int = 0) -> list[dict[str, Any]]:
    """Measures and prints; with `seeds` also the least and the median over so many of them."""
    if not traces.folder().is_dir():
        print(f"\nhit ratios: no traces at {traces.folder()} (set FERROGATE_TRACES)")
        return []
    print(f"\nadaptive: hit ratios on the public traces\n  target ≥ {TARGET} x the best rival")
    print('  ("moka as is" holds up to 64 entries more than the size between two of its clean-ups)')
    print(f"  {'trace':24}{'size':>8}" + "".join(f"{name:>12}" for name in CACHES) + "   of best")
    rows: list[dict[str, Any]] = []
    for name, trace, size in runs(quick=quick):
        ratios = {one: hit_ratio(make, size, trace) for one, make in CACHES.items()}
        best = max(ratios["lru"], ratios["moka"], ratios["theine"])
        share = ratios["adaptive"] / best
        rows.append({"trace": name, "size": size, **ratios, "best": best, "of_best": share})
        figures = "".join(f"{ratio:12.4f}" for ratio in ratios.values())
        verdict = "" if share >= TARGET else "  MISSED"
        print(f"  {name:24}{size:8,}{figures}{share:10.3f}{verdict}", flush=True)
    reached = sum(row["of_best"] >= TARGET for row in rows)
    print(f"  {reached} of {len(rows)} reach the target")
    if seeds:
        over_seeds(rows, [drawn_anew(quick=quick) for _ in range(seeds)])
    return rows


def over_seeds(rows: list[dict[str, Any]], draws: list[list[float]]) -> None:
    """Notes in each row, and prints, the least and the median of these draws of the best rival."""
    print(f"\n  adaptive with {len(draws)} seeds, of the best rival")
    print(f"  {'trace':24}{'size':>8}{'least':>12}{'median':>12}")
    for row, ratios in zip(rows, zip(*draws, strict=True), strict=True):
        shares = [ratio / row["best"] for ratio in ratios]
        row["least_of_best"], row["median_of_best"] = min(shares), statistics.median(shares)
        verdict = "" if min(shares) >= TARGET else "  below the target"
        figures = f"{row['least_of_best']:12.4f}{row['median_of_best']:12.4f}"
        print(f"  {row['trace']:24}{row['size']:8,}{figures}{verdict}")
    reached = sum(row["least_of_best"] >= TARGET for row in rows)
    print(f"  {reached} of {len(rows)} reach the target with each of them")


if __name__ == "__main__":
    adaptive = CACHES["adaptive"]
    every = runs(quick="--quick" in sys.argv)
    print(json.dumps([hit_ratio(adaptive, size, trace) for _, trace, size in every]))
