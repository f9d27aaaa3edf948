"""The weight of an entry when nobody says it: an estimate of its deep size."""

from __future__ import annotations

import array
import gc
import sys
from collections import deque
from collections.abc import Callable, Iterable
from itertools import chain, islice
from types import GetSetDescriptorType, MappingProxyType, MemberDescriptorType, ModuleType
from typing import Any

#: Objects that :func:`deep_size` counts; beyond that it extrapolates nothing.
_OBJECTS = 10_000
#: References that it follows to them; shared objects are met more than once.
_REFERENCES = 40_000

#: What refers to nothing; their size is all that there is.
_LEAVES = frozenset({str, bytes, bytearray, int, float, complex, bool, type(None)})
#: Buffers whose memory is part of the size that they give.
_BUFFERS = (bytes, bytearray, array.array)

type_mro: Callable[[type], tuple[type, ...]] = vars(type)["__mro__"].__get__
type_dict: Callable[[type], MappingProxyType[str, Any]] = vars(type)["__dict__"].__get__


def deep_size(key: object, value: object) -> int:
    """An estimate in bytes of what an entry keeps alive.

    Follows dicts, lists, tuples, sets, deques, mapping proxies, the attributes and
    slots of instances, the arguments of exceptions (not their tracebacks), and the
    memory of memoryviews and NumPy arrays. Counts shared objects once, and stops
    after 10,000 objects. Of the objects' own code it runs ``__sizeof__`` only.
    """
    seen: set[int] = set()
    stack: list[Any] = [key, value]
    layouts: dict[int, _Layout] = {}
    size = 0
    for left in range(_REFERENCES, 0, -1):
        if not stack or len(seen) == _OBJECTS:
            break
        item = stack.pop()
        if id(item) in seen:
            continue
        # Never `isinstance`, which asks the object for its __class__.
        cls = type(item)
        if issubclass(cls, (type, ModuleType)):
            continue
        seen.add(id(item))
        try:
            size += sys.getsizeof(item, 64)
        except Exception:  # its own __sizeof__ failed, which is no reason not to store it
            size += 64
        if cls in _LEAVES:
            continue
        more = left - len(stack)
        if issubclass(cls, dict):
            stack.extend(islice(chain(dict.keys(item), dict.values(item)), more))
        else:
            for base, iterate in _ITERATE:
                if issubclass(cls, base):
                    stack.extend(islice(iterate(item), more))
                    break
        layout = layouts.get(id(cls))
        if layout is None:
            layout = layouts[id(cls)] = _Layout(cls)
        size += layout.follow(item, stack)
    return size


_ITERATE: tuple[tuple[type, Callable[[Any], Iterable[object]]], ...] = (
    (list, list.__iter__),
    (tuple, tuple.__iter__),
    (set, set.__iter__),
    (frozenset, frozenset.__iter__),
    (deque, deque.__iter__),
    # The mapping behind it may be anybody's: its own methods are not for us to call.
    (MappingProxyType, gc.get_referents),
)


class _Layout:
    """Where the instances of a class keep references, beside what containers hold."""

    __slots__ = ("buffer", "cls", "slots")

    def __init__(self, cls: type) -> None:
        self.cls = cls  # kept, so that its id stays its own
        self.slots: list[Callable[[object], object]] = []
        for base in type_mro(cls):
            names = type_dict(base)
            attributes: Any = names.get("__dict__")
            if type(attributes) in {GetSetDescriptorType, MemberDescriptorType}:
                self.slots.append(attributes.__get__)
            if "__slots__" in names:
                # Not those of built-in types: a function's lead to all that its module holds.
                self.slots += (
                    slot.__get__ for slot in names.values() if type(slot) is MemberDescriptorType
                )
        if issubclass(cls, BaseException):
            self.slots.append(vars(BaseException)["args"].__get__)
        self.buffer = _buffer_of(cls)

    def follow(self, item: object, stack: list[object]) -> int:
        """Puts what `item` refers to on the stack; the bytes of foreign memory that it keeps."""
        for slot in self.slots:
            try:
                stack.append(slot(item))
            except AttributeError:  # not assigned
                continue
        if self.buffer is None:
            return 0
        try:
            owner, nbytes = self.buffer(item)
        except ValueError:  # a released memoryview
            return 0
        stack.append(owner)
        counts_itself = owner is None or type(owner) in _BUFFERS or _buffer_of(type(owner))
        return 0 if counts_itself else nbytes


def _buffer_of(cls: type) -> Callable[[Any], tuple[object, int]] | None:
    """What gives the owner of a buffer's memory and its size, for classes that have one."""
    if cls is memoryview:
        return lambda view: (view.obj, view.nbytes)
    array_type = getattr(sys.modules.get("numpy"), "ndarray", None)
    if type(array_type) is type and issubclass(cls, array_type):
        names = type_dict(array_type)
        base, nbytes = names["base"].__get__, names["nbytes"].__get__
        return lambda view: (base(view), nbytes(view))
    return None
