"""The weight of an entry when nobody says it: an estimate of its deep size."""

from __future__ import annotations

import sys
from types import ModuleType

#: Objects that :func:`deep_size` looks at; beyond that it extrapolates nothing.
_DEEP_SIZE_LIMIT = 10_000


def deep_size(key: object, value: object) -> int:
    """An estimate in bytes of what an entry keeps alive.

    Follows dicts, lists, tuples, sets and instance attributes, counts shared
    objects once, and stops after 10,000 objects.
    """
    seen: set[int] = set()
    stack: list[object] = [key, value]
    size = 0
    while stack and len(seen) < _DEEP_SIZE_LIMIT:
        item = stack.pop()
        if id(item) in seen or isinstance(item, type | ModuleType):
            continue
        seen.add(id(item))
        size += sys.getsizeof(item, 64)
        if isinstance(item, dict):
            stack.extend(item.keys())
            stack.extend(item.values())
        elif isinstance(item, list | tuple | set | frozenset):
            stack.extend(item)
        elif not isinstance(item, str | bytes | int | float | complex | bytearray):
            attributes = getattr(item, "__dict__", None)
            if isinstance(attributes, dict):
                stack.append(attributes)
    return size
