"""Results of tasks, by what is in the task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict

from ferrogate._arguments import seconds_or_never, whole
from ferrogate._core import ManualClock, cache_key
from ferrogate.cache import Cache

__all__ = ["ResultCache", "ResultStats"]


class ResultStats(TypedDict):
    """What :meth:`ResultCache.get_stats` returns."""

    size: int
    max_size: int
    hits: int
    misses: int
    evictions: int
    hit_rate: float  #: hits / lookups, 0..1


class ResultCache:
    """A cache of results by the content of a task: equal tasks have one result.

    Args:
        ttl_seconds: seconds that a result lives.
        max_size: results at most; the least recently used one makes room.
        name: shown in ``repr``.
        clock: a :class:`ferrogate.testing.ManualClock` in tests.
    """

    def __init__(
        self,
        ttl_seconds: float = 3600,
        max_size: int = 1000,
        *,
        name: str | None = None,
        clock: ManualClock | None = None,
    ) -> None:
        ttl = seconds_or_never("ttl_seconds", ttl_seconds)
        whole("max_size", max_size, least=1)
        self._cache: Cache[str, Any] = Cache(max_size, ttl=ttl, name=name, clock=clock)

    @property
    def name(self) -> str | None:
        """Its name."""
        return self._cache.name

    @staticmethod
    def key(task: Mapping[str, Any]) -> str:
        """The digest of a task: the same in every process, whatever the order of its fields."""
        if not isinstance(task, Mapping):
            raise TypeError(f"task: expected a mapping, got {type(task).__name__}")
        return cache_key(dict(task))

    def get(self, task: Mapping[str, Any], default: Any = None) -> Any:
        """The result of an equal task, or ``default``."""
        return self._cache.get(self.key(task), default)

    def set(self, task: Mapping[str, Any], result: Any) -> None:
        """Keeps the result of a task."""
        self._cache.set(self.key(task), result)

    def delete(self, task: Mapping[str, Any]) -> bool:
        """Forgets the result of a task; true if there was one."""
        return self._cache.delete(self.key(task))

    def clear(self) -> None:
        """Forgets all results."""
        self._cache.clear()

    def __len__(self) -> int:
        return len(self._cache)

    def get_stats(self) -> ResultStats:
        """Size, hits, misses, evictions and hit rate."""
        stats = self._cache.get_stats()
        return {
            "size": stats["size"],
            "max_size": stats["max_size"],
            "hits": stats["hits"],
            "misses": stats["misses"],
            "evictions": stats["evictions"],
            "hit_rate": stats["hit_rate"],
        }

    def __repr__(self) -> str:
        stats = self.get_stats()
        return (
            f"{type(self).__name__}({stats['size']} of {stats['max_size']} results, "
            f"hit rate {stats['hit_rate']:.1%})"
        )
