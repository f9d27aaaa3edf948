"""Functions behind a guard, a circuit breaker or a retry policy."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, Literal, TypeVar, cast

from ferrogate import _core, _suites

__all__ = ["Function", "guarded"]

#: Which parts of a guard that has a cache.
Layer = Literal["all", "behind cache", "before cache"]
#: What is decorated stays what it is: as it is called, so it is called through the guard.
Function = TypeVar("Function", bound=Callable[..., Any])


def guarded(function: Function, owner: Any, what: str, layer: Layer = "all") -> Function:
    """``function`` behind ``owner``, a guard or one of its parts; ``what`` is for messages."""
    if isinstance(function, classmethod | staticmethod):
        raise TypeError(f"put @{type(function).__name__} above @{what}, not below it")
    if not callable(function):
        raise TypeError(f"{what}: expected a function to decorate, got {function!r}")
    # A callable object is what its class's `__call__` is.
    call = inspect.getattr_static(type(function), "__call__", None)
    kind = "plain"
    if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call):
        kind = "coroutine"
    elif inspect.isasyncgenfunction(function) or inspect.isasyncgenfunction(call):
        kind = "stream"
    elif inspect.isgeneratorfunction(function) or inspect.isgeneratorfunction(call):
        raise TypeError(
            f"{what}: {function!r} is a generator function, whose call only makes its generator; "
            "make it an async generator, or guard what it calls"
        )
    wrapper: Any = _core.GuardedFunction(function, owner, kind, layer)
    return cast("Function", functools.update_wrapper(wrapper, function))


_suites.tell(_core._set_bypass)
