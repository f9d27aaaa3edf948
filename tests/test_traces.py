"""`policy="lru"` is exact LRU: the same hits as twenty lines of OrderedDict, to the last one.

`policy="adaptive"` has no reference; it must stay above a floor on every trace.
"""

from __future__ import annotations

import functools
from array import array

import pytest
import traces

from ferrogate import Cache

pytestmark = pytest.mark.skipif(
    not traces.folder().is_dir(), reason=f"no traces at {traces.folder()} (set FERROGATE_TRACES)"
)

references = functools.cache(traces.references)


def hits_of(cache: Cache, trace: array[int]) -> int:
    """Hits when every miss is filled, as an agent does."""
    hits = 0
    get, put = cache.get, cache.set
    for block in trace:
        if get(block) is None:
            put(block, block + 1)  # never None or 0
        else:
            hits += 1
    return hits


@pytest.mark.parametrize(("name", "entries", "ratio"), traces.LRU_RATIOS)
@pytest.mark.parametrize("ttl", [None, 3600.0], ids=["no TTL", "TTL"])
def test_lru_hits_what_the_reference_hits(
    name: str, entries: int, ratio: float, ttl: float | None
) -> None:
    trace = references(name)
    cache = Cache(entries, policy="lru", ttl=ttl)
    expected = traces.lru_hits(trace, entries)
    assert hits_of(cache, trace) == expected
    assert round(expected / len(trace), 4) == ratio

    stats = cache.get_stats()
    assert stats["hits"] == expected
    assert stats["misses"] == len(trace) - expected
    assert len(cache) == min(entries, len(set(trace)))


@pytest.mark.parametrize(("name", "entries", "floor"), traces.ADAPTIVE_FLOORS)
def test_adaptive_stays_above_its_floor(name: str, entries: int, floor: float) -> None:
    trace = references(name)
    cache = Cache(entries, policy="adaptive")
    hits = hits_of(cache, trace)
    assert hits / len(trace) >= floor
    assert cache.get_stats()["hits"] == hits
    assert len(cache) == min(entries, len(set(trace)))
