"""Whether a dictionary is exactly what its TypedDict promises."""

from __future__ import annotations

from typing import Any, Literal, get_args, get_origin, get_type_hints, is_typeddict


def mismatch(value: object, hint: Any, path: str = "") -> str | None:
    """Where ``value`` is not what ``hint`` says, key for key and type for type; else ``None``."""
    if hint is Any:
        return None
    if is_typeddict(hint):
        hints = get_type_hints(hint)
        if not isinstance(value, dict):
            return f"{path}: {value!r} is no dict"
        if list(value) != list(hints):
            return f"{path}: keys {list(value)} instead of {list(hints)}"
        found = (mismatch(value[name], of, f"{path}.{name}") for name, of in hints.items())
        return next((where for where in found if where), None)
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return None if value in arguments else f"{path}: {value!r} is none of {arguments}"
    if origin is list:
        if not isinstance(value, list):
            return f"{path}: {value!r} is no list"
        found = (mismatch(v, arguments[0], f"{path}[{i}]") for i, v in enumerate(value))
        return next((where for where in found if where), None)
    if origin is dict:
        if not isinstance(value, dict):
            return f"{path}: {value!r} is no dict"
        found = (mismatch(v, arguments[1], f"{path}[{k!r}]") for k, v in value.items())
        return next((where for where in found if where), None)
    if arguments:  # a union
        ways = [mismatch(value, of, path) for of in arguments]
        return None if None in ways else ways[0]
    return None if type(value) is hint else f"{path}: {value!r} is no {hint}"
