"""Functions whose results a cache service keeps: their names, and their keys."""

from __future__ import annotations

import functools
import inspect
import os
import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from ferrogate._arguments import text_or_none
from ferrogate._core import cache_key

if TYPE_CHECKING:
    from ferrogate._view import Store


class Place(NamedTuple):
    """Where results are kept, and for how long."""

    store: Store
    namespace: str
    ttl: float | None
    tags: list[str] | None


def wrapped(
    place: Place,
    function: Any,
    name: str | None,
    key: Callable[..., object] | None,
    ignore: Iterable[str],
) -> Any:
    """The function with its results kept in ``place``."""
    _check_kind(function)
    if key is not None and not callable(key):
        raise TypeError(f"key: expected a function, got {type(key).__name__}")
    text_or_none("name", name)
    if name is None and key is None:
        _refuse_nameless(function)
    prefix = full_name(function) if name is None else name
    key_of = _keys(prefix, function, key, ignore)
    store, ns, ttl, tags = place

    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def load_async(*args: Any, **kwargs: Any) -> Any:
            make = functools.partial(function, *args, **kwargs)
            return await store.get_or_set(ns, key_of(args, kwargs), make, ttl=ttl, tags=tags)

        wrapper: Any = load_async
    else:

        @functools.wraps(function)
        def load(*args: Any, **kwargs: Any) -> Any:
            make = functools.partial(function, *args, **kwargs)
            return store.get_or_set_sync(ns, key_of(args, kwargs), make, ttl=ttl, tags=tags)

        wrapper = load

    def cache_key_of(*args: Any, **kwargs: Any) -> str:
        return key_of(args, kwargs)

    def cache_invalidate(*args: Any, **kwargs: Any) -> bool:
        return store.delete_sync(ns, key_of(args, kwargs))

    async def cache_invalidate_async(*args: Any, **kwargs: Any) -> bool:
        return await store.delete(ns, key_of(args, kwargs))

    wrapper.cache_key = cache_key_of
    wrapper.cache_invalidate = cache_invalidate
    wrapper.cache_invalidate_async = cache_invalidate_async
    return wrapper


def _check_kind(function: Any) -> None:
    if isinstance(function, classmethod | staticmethod):
        raise TypeError(f"cached: write @{type(function).__name__} above it, not below")
    if not callable(function):
        raise TypeError(f"cached: expected a function, got {type(function).__name__}")
    if not hasattr(function, "__qualname__"):
        raise TypeError(f"cached: a {type(function).__name__} has no name; write a function")
    if inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
        raise TypeError(
            f"cached: {function.__qualname__} is a generator, and a service keeps values; "
            "ferrogate.cached keeps streams"
        )


def _refuse_nameless(function: Any) -> None:
    written = inspect.unwrap(function)
    if "<lambda>" in written.__qualname__:
        raise ValueError(
            f"key: {full_name(function)} has no name of its own, so any other lambda would get its "
            "results; write it as a function, or give key= or name="
        )
    code = getattr(written, "__code__", None)
    # A method that calls super() has its class around it.
    around = [one for one in getattr(code, "co_freevars", ()) if one != "__class__"]
    if inspect.ismethod(written):
        # Bound already: its parameters begin behind the instance.
        around.append("self")
    if around:
        raise ValueError(
            f"key: {full_name(function)} takes {', '.join(around)} from around it, which is in no "
            "key, so another one around other values would get its results; give key= if the "
            "values matter, name= if they do not, or make them parameters"
        )


def full_name(function: Any) -> str:
    """What a function is called in all processes that run the same program."""
    module = function.__module__
    if module in ("__main__", "__mp_main__"):
        module = _main(function, module)
    return f"{module}.{function.__qualname__}"


def _main(function: Any, module: str) -> str:
    """Two scripts are both called ``__main__``, and have nothing else in common."""
    names: dict[str, Any] = getattr(function, "__globals__", {})
    if names.get("__name__") != module:
        # A wrapper of somebody else's, that calls itself what it wraps.
        names = vars(sys.modules.get(module, sys))
    spec = names.get("__spec__")
    if spec is not None:
        return str(spec.name)  # python -m
    file = names.get("__file__")
    if isinstance(file, str):
        return os.path.realpath(file)
    return "__main__"  # a notebook, a prompt: the next cell has the same function again


def _keys(
    prefix: str,
    function: Any,
    key: Callable[..., object] | None,
    ignore: Iterable[str],
) -> Callable[[tuple[Any, ...], dict[str, Any]], str]:
    if isinstance(ignore, str):
        raise TypeError(f"ignore: expected names of parameters such as ({ignore!r},), got a str")
    if not isinstance(ignore, Iterable):
        got = type(ignore).__name__
        raise TypeError(f"ignore: expected an iterable of names of parameters, got {got}")
    left_out = frozenset(ignore)
    signature = inspect.signature(function)
    parameters = signature.parameters.values()
    keywords = next((one.name for one in parameters if one.kind is one.VAR_KEYWORD), None)
    for name in left_out:
        if name not in signature.parameters and keywords is None:
            known = ", ".join(signature.parameters)
            raise ValueError(
                f"ignore: {function.__qualname__} has no parameter {name!r:.100}; it has {known}"
            )

    def key_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        if key is not None:
            return f"{prefix}:{cache_key(key(*args, **kwargs))}"
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        counted = {k: v for k, v in bound.arguments.items() if k not in left_out}
        if left_out and keywords in counted:
            more = counted[keywords]
            counted[keywords] = {k: v for k, v in more.items() if k not in left_out}
        try:
            return f"{prefix}:{cache_key(counted)}"
        except TypeError as error:
            where = str(error).removeprefix("parts[0].")
            raise TypeError(where) from None

    return key_of
