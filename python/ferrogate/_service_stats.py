"""The figures of a cache service."""

from __future__ import annotations

from typing import TypedDict

__all__ = ["ServiceStats"]


class ServiceStats(TypedDict, total=False):
    """What :meth:`CacheService.get_stats` returns; those of a file or of Redis only with one."""

    name: str
    enabled: bool  #: false also where ``FERROGATE_DISABLED`` says so
    hits: int
    misses: int
    total_requests: int
    hit_rate: float  #: hits / lookups, 0..1; 0 before the first lookup
    hit_rate_percent: float  #: the same, 0..100
    memory_cache_size: int  #: as near_entries
    size: int  #: entries of the store, as far as it counts them; else of the near cache
    near_hits: int
    near_entries: int  #: of the near cache, with the dead ones that no lookup has met yet
    near_bytes: int  #: of the near cache, as its entries
    near_evictions: int
    tier_hits: int
    sets: int
    deletes: int
    invalidations: int
    evictions: int
    errors: int  #: requests that the store did not answer
    skipped: int  #: requests that were not sent because it was away
    unreadable: int  #: values of another codec, with a wrong signature, or garbage: misses
    rejections: int  #: values above ``max_value_bytes`` or the near cache
    outdated: int  #: loaded values that had been invalidated before they were stored
    available: bool  #: whether the store answers
    owed: int  #: what was deleted or invalidated while it was away, and it is not told yet
    near_flushes: int  #: near caches given up because what others did was not known in full
    # Of a file:
    store_bytes: int  #: of the values in it
    expirations: int  #: values that this process removed from the file because they had expired
    commits: int  #: of this process
    writes_committed: int  #: by those commits
    foreign_changes: int  #: what other processes wrote, deleted or invalidated
    invalidation_lag_ms: int  #: from another process's last change to its reaching this one
    invalidation_lag_max_ms: int
    recoveries: int  #: files that were broken and begun afresh
    # Of Redis:
    connections: int  #: open now
    connects: int  #: opened so far
    batches: int  #: pipelines sent
    direct_requests: int  #: that came alone: written and read by whoever asked
    tier_outdated: int  #: values read that had been invalidated
    listening: int  #: 1 while other processes' changes are heard of
    invalidations_heard: int
    invalidation_lag_microseconds: int  #: from another process's last change to its reaching us
    generations: int  #: of namespaces and tags, known here
    queued: int  #: requests that wait for a connection
    leases: int  #: of loads of this process
    channel_losses: int  #: how often they were not heard of any more


#: Counted by the near cache and the store, which know no reset.
NOT_RESET = ("evictions", "near_evictions", "expirations")
