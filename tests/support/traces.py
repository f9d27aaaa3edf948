"""Readers of the public reference traces, and the cache they are checked against.

A trace is a sequence of integers. The files lie outside the repository; the
variable FERROGATE_TRACES names their folder, `../shared/traces` by default.
"""

from __future__ import annotations

import gzip
import io
import json
import os
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from pathlib import Path

# (trace, entries, hit ratio of exact LRU): tests/test_traces.py holds us to it.
LRU_RATIOS = [
    ("mooncake", 10_000, 0.2112),
    ("mooncake", 50_000, 0.3546),
    ("oltp", 1_000, 0.3283),
    ("oltp", 5_000, 0.5365),
    ("multi1", 1_000, 0.4823),
    ("multi2", 1_000, 0.4780),
    ("sprite", 200, 0.3988),
    ("sprite", 1_000, 0.9064),
    ("loop", 512, 0.0000),
]

# (trace, entries, hit ratio below which policy="adaptive" never was). The hash that draws its
# samples is seeded per process; each floor is some 3 % below the worst of 20 to 100 processes,
# `make bench ARGS="--only adaptive --seeds 20"` has the figures beside the rivals'.
ADAPTIVE_FLOORS = [
    ("mooncake", 10_000, 0.195),
    ("mooncake", 50_000, 0.34),
    ("oltp", 1_000, 0.40),
    ("oltp", 5_000, 0.525),
    ("multi1", 1_000, 0.66),
    ("multi2", 1_000, 0.55),
    ("sprite", 200, 0.475),
    ("sprite", 1_000, 0.88),
    ("loop", 512, 0.48),
]

FILES = {
    "mooncake": "mooncake_conversation_trace.jsonl",
    "oltp": "arc_OLTP.lis.zst",
    "multi1": "lirs/multi1.trace.gz",
    "multi2": "lirs/multi2.trace.gz",
    "sprite": "lirs/sprite.trace.gz",
    "loop": "lirs/loop.trace.gz",
}


def folder() -> Path:
    """Where the traces lie, or should."""
    beside = Path(__file__).resolve().parents[3] / "shared" / "traces"
    return Path(os.environ.get("FERROGATE_TRACES") or beside)


def references(name: str) -> array[int]:
    """The references of a trace, in order."""
    path = folder() / FILES[name]
    read = {".jsonl": mooncake, ".zst": arc, ".gz": lirs}[path.suffix]
    return array("q", read(path))


def mooncake(path: Path) -> Iterator[int]:
    """Prefix blocks of 512 tokens, as each request asks for them."""
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            yield from json.loads(line)["hash_ids"]


def arc(path: Path) -> Iterator[int]:
    """`start count 0 sequence`: `count` blocks from `start` on."""
    import zstandard  # the standard library reads zstd from 3.14 on

    with path.open("rb") as packed, zstandard.ZstdDecompressor().stream_reader(packed) as raw:
        for line in io.TextIOWrapper(raw, encoding="ascii"):
            start, count, *_ = line.split()
            yield from range(int(start), int(start) + int(count))


def lirs(path: Path) -> Iterator[int]:
    """A block number a line; `*` ends a run."""
    with gzip.open(path, "rt", encoding="ascii") as lines:
        for line in lines:
            if (block := line.strip()) and block != "*":
                yield int(block)


def lru_hits(trace: Iterable[int], entries: int) -> int:
    """What an exact LRU of `entries` hits."""
    cache: OrderedDict[int, None] = OrderedDict()
    hits = 0
    for block in trace:
        if block in cache:
            hits += 1
            cache.move_to_end(block)
        else:
            if len(cache) == entries:
                cache.popitem(last=False)
            cache[block] = None
    return hits
