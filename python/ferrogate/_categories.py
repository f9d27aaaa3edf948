"""A cache whose entries can be removed by the category in front of their key."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from datetime import timedelta
from typing import Any, Unpack

from ferrogate._freshness import Terms
from ferrogate.cache import Cache

# A key with more colons than this is still cached; it is then found under its first eight
# prefixes and the longest one, so that a URL with a thousand does not weigh a megabyte. The
# longest is the category of a key that `ProductionOptimizer.cache_key` made.
_MAX_PREFIXES = 8


def _category_tags(key: object) -> tuple[str, ...]:
    """A tag for every category that ``key`` belongs to: each part before a colon."""
    if not isinstance(key, str) or ":" not in key:
        return ()
    tags: list[str] = []
    end = key.find(":")
    while end != -1 and len(tags) < _MAX_PREFIXES:
        tags.append(f"category:{key[:end]}")
        end = key.find(":", end + 1)
    if end != -1:
        tags.append(f"category:{key[: key.rfind(':')]}")
    return tuple(tags)


def _with_category(key: object, tags: Iterable[str] | None) -> Iterable[str]:
    if isinstance(tags, str):
        return tags  # refused by the cache, which names the argument
    return (*(tags or ()), *_category_tags(key))


_CallTags = Iterable[str] | Callable[..., Iterable[str]] | None


class CategoryCache(Cache[Any, Any]):
    """A cache that knows the category of a key by its prefix, ``"{category}:…"``.

    Writing adds a tag for it, so that :meth:`invalidate_category` costs as
    much as there are entries to remove and never a scan. Reading is the plain
    native cache.
    """

    def set(
        self,
        key: Any,
        value: Any,
        ttl: float | timedelta | None = None,
        tags: Iterable[str] | None = None,
    ) -> None:
        """Stores ``value``; like :meth:`Cache.set`."""
        super().set(key, value, ttl, _with_category(key, tags))

    def __setitem__(self, key: Any, value: Any) -> None:
        super().set(key, value, None, _category_tags(key))

    def setdefault(
        self, key: Any, default: Any = None, *, tags: Iterable[str] | None = None
    ) -> Any:
        """Like :meth:`Cache.setdefault`."""
        return super().setdefault(key, default, tags=_with_category(key, tags))

    def get_or_set(
        self,
        key: Any,
        factory: Callable[[], Awaitable[Any]],
        *,
        ttl: float | timedelta | None = None,
        tags: Iterable[str] | None = None,
        **terms: Unpack[Terms],
    ) -> Awaitable[Any]:
        """Like :meth:`Cache.get_or_set`."""
        tags = _with_category(key, tags)
        return super().get_or_set(key, factory, ttl=ttl, tags=tags, **terms)

    def get_or_set_sync(
        self,
        key: Any,
        factory: Callable[[], Any],
        *,
        ttl: float | timedelta | None = None,
        tags: Iterable[str] | None = None,
        **terms: Unpack[Terms],
    ) -> Any:
        """Like :meth:`Cache.get_or_set_sync`."""
        tags = _with_category(key, tags)
        return super().get_or_set_sync(key, factory, ttl=ttl, tags=tags, **terms)

    def _tags_of_calls(self, key: Callable[..., object], tags: _CallTags) -> _CallTags:
        def both(*args: Any, **kwargs: Any) -> Iterable[str]:
            own = tags(*args, **kwargs) if callable(tags) else tags
            return _with_category(key(*args, **kwargs), own)

        return both

    def invalidate_category(self, category: str) -> int:
        """Removes all entries whose key starts with ``"{category}:"``; returns how many.

        Of a key with more than nine colons, the first eight prefixes and the longest count.
        """
        return self.invalidate_tag(f"category:{category}")
