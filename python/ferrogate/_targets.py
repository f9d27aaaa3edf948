"""What a guard with targets has Python look at and say."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from typing import Any

from ferrogate.exceptions import TargetsUnavailable
from ferrogate.targets import Target

__all__ = ["check", "checked", "given", "unavailable"]

_KEYWORDS = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def check(function: Any, *, defaulted: bool = False) -> None:
    """Refuses a function that has no parameter for its target, or none that a cache can leave
    out of its key."""
    if defaulted:
        _check_default(function)
    code = getattr(function, "__code__", None)
    if code is not None:
        # As fast as it gets: it is looked at on every call through `Guard.call`.
        named = code.co_varnames[code.co_posonlyargcount : code.co_argcount]
        named += code.co_varnames[code.co_argcount : code.co_argcount + code.co_kwonlyargcount]
        if "target" in named or code.co_flags & inspect.CO_VARKEYWORDS:
            return
    else:
        try:
            parameters = inspect.signature(function).parameters
        except (TypeError, ValueError):
            return  # It does not say.
        if any(known.kind is inspect.Parameter.VAR_KEYWORD for known in parameters.values()):
            return
        found = parameters.get("target")
        if found is not None and found.kind in _KEYWORDS:
            return
    name = getattr(function, "__qualname__", None) or repr(function)
    raise TypeError(
        f"{name}: expected a parameter `target`, which the guard fills in for each attempt: "
        f"def {name.rpartition('.')[2]}(..., *, target)"
    )


def _check_default(function: Any) -> None:
    """A cache makes its keys from what callers give, and these give no target."""
    try:
        found = inspect.signature(function).parameters.get("target")
    except (TypeError, ValueError):
        return  # It does not say.
    if found is not None and found.default is inspect.Parameter.empty:
        name = getattr(function, "__qualname__", None) or repr(function)
        raise TypeError(
            f"{name}: expected a default for `target` in a guard with cache=, whose keys have no "
            "target: `target=Target.chosen`"
        )


def checked(targets: Sequence[Target[Any]], route: str) -> tuple[Target[Any], ...]:
    """The targets of a guard."""
    if isinstance(targets, str | bytes) or not isinstance(targets, Sequence):
        got = type(targets).__name__
        raise TypeError(f"targets: expected a list of ferrogate.Target, got {got}")
    if not targets:
        raise ValueError("targets: expected at least one Target, got none")
    names: set[str] = set()
    for target in targets:
        if not isinstance(target, Target):
            got = type(target).__name__
            raise TypeError(f"targets: expected ferrogate.Target objects, got {got}")
        if target.name in names:
            raise ValueError(f"targets: expected names that differ, got {target.name!r} twice")
        names.add(target.name)
        if route == "cheapest" and target.price is None:
            raise ValueError(f'targets: expected a price of {target.name!r} for route="cheapest"')
    return tuple(targets)


def given(target: Target[Any]) -> tuple[Any, ...]:
    """A target as the native side takes it."""
    if isinstance(target.price, tuple):
        prices = [0.0, *target.price]
    else:
        prices = [target.price or 0.0, 0.0, 0.0]
    return (
        target,
        target.name,
        target.breaker,
        target.limiter,
        target.bulkhead,
        target.weight,
        prices,
    )


def unavailable(name: str, reasons: list[tuple[str, str, float, bool]]) -> TargetsUnavailable:
    """The error of a call that no target takes in time: name and reason of each, for how many
    seconds at least, and whether that is all."""

    def told(target: str, reason: str, after: float, known: bool) -> str:
        when = f" for {after:.3f} s" if known and math.isfinite(after) else ""
        return f"{target}: {reason}{when}"

    soonest = min(after for _, _, after, _ in reasons)
    return TargetsUnavailable(
        f"{name}: no target takes the call in time ({'; '.join(told(*one) for one in reasons)})",
        name=name,
        reasons={target: reason for target, reason, _, _ in reasons},
        retry_after=soonest,
    )
