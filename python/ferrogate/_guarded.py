"""Functions behind a guard, a circuit breaker or a retry policy."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from ferrogate import _core, _suites

__all__ = ["guarded"]


def guarded(function: Callable[..., Any], owner: Any, what: str) -> Callable[..., Any]:
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
    wrapper: Callable[..., Any] = _core.GuardedFunction(function, owner, kind)
    return functools.update_wrapper(wrapper, function)


_suites.tell(_core._set_bypass)
