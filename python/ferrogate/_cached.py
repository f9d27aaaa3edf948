"""The decorator ``@cached``: its arguments, checked, and the native function they make."""

from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
import weakref
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from typing import Any, Literal, ParamSpec, TypeVar, overload

from ferrogate import _core, _failures, _flight, _streams
from ferrogate._arguments import flag, known_policy
from ferrogate._core import CachedFunction, ManualClock
from ferrogate._freshness import Terms, freshness_of
from ferrogate._refresh import refresh_async, refresh_sync
from ferrogate._streams import Replay
from ferrogate.cache import Cache, CacheInfo, Savings, Seconds

P = ParamSpec("P")
R = TypeVar("R")


class _Doc:
    """The class's docstring on the class, the function's on an instance.

    ``help()`` asks ``object.__getattribute__`` for it, which finds the class's.
    """

    def __init__(self, own: str | None) -> None:
        self.own = own

    def __get__(self, instance: Any, owner: Any = None) -> str | None:
        return self.own if instance is None else instance._doc


for _class in (CachedFunction, _core.CachedMethod):
    _class.__doc__ = _Doc(_class.__doc__)  # type: ignore[assignment]


class _Default(int):
    """Known from what a caller gives by its identity."""


_DEFAULT_SIZE = _Default(1000)


@overload
def cached(function: Callable[P, R], /) -> CachedFunction[P, R]: ...


@overload
def cached(
    *,
    max_size: int = ...,
    ttl: Seconds | None = ...,
    key: Callable[..., object] | None = ...,
    typed: bool = ...,
    ignore: Iterable[str] = ...,
    tags: Iterable[str] | Callable[..., Iterable[str]] | None = ...,
    policy: Literal["lru", "adaptive"] = ...,
    cache: _core.Cache | None = ...,
    stale_while_revalidate: Seconds | None = ...,
    stale_if_error: Seconds | None = ...,
    negative_ttl: Mapping[type[Exception], Seconds] | None = ...,
    skip_if: Callable[[Any], object] | None = ...,
    bypass_if: Callable[..., object] | None = ...,
    ttl_jitter: float | None = ...,
    early_refresh: float | None = ...,
    value: Callable[[Any], float | Savings] | None = ...,
    stream_replay: Replay = ...,
    stream_chunks: int = ...,
    single_flight: bool = ...,
    clock: ManualClock | None = ...,
    name: str | None = ...,
    enabled: bool = ...,
) -> Callable[[Callable[P, R]], CachedFunction[P, R]]: ...


def cached(
    function: Callable[..., Any] | None = None,
    /,
    *,
    max_size: int = _DEFAULT_SIZE,
    ttl: Seconds | None = None,
    key: Callable[..., object] | None = None,
    typed: bool = False,
    ignore: Iterable[str] = (),
    tags: Iterable[str] | Callable[..., Iterable[str]] | None = None,
    policy: Literal["lru", "adaptive"] = "lru",
    cache: _core.Cache | None = None,
    stale_while_revalidate: Seconds | None = None,
    stale_if_error: Seconds | None = None,
    negative_ttl: Mapping[type[Exception], Seconds] | None = None,
    skip_if: Callable[[Any], object] | None = None,
    bypass_if: Callable[..., object] | None = None,
    ttl_jitter: float | None = None,
    early_refresh: float | None = None,
    value: Callable[[Any], float | Savings] | None = None,
    stream_replay: Replay = "at_once",
    stream_chunks: int = 10_000,
    single_flight: bool = True,
    clock: ManualClock | None = None,
    name: str | None = None,
    enabled: bool = True,
) -> Any:
    """Caches the results of a function, a coroutine function, an async generator or a method.

    ``f(1, 2)``, ``f(1, y=2)`` and ``f(y=2, x=1)`` are one key, with defaults
    filled in. A method's results belong to its instance and leave with it; one
    that refers to the instance keeps it until it expires or is evicted.
    Exceptions are not cached unless ``negative_ttl`` says so. The result has
    ``cache_info()``, ``cache_clear()``, ``cache_invalidate(*args, **kwargs)``,
    ``cache_key(*args, **kwargs)``, ``cache_parameters()`` and ``__wrapped__``;
    ``cache_bypass(*args, **kwargs)`` calls through and stores nothing, and
    ``cache_refresh(*args, **kwargs)`` loads anew and stores, whatever there is.

    Args:
        max_size: results at most; the least recently used one makes room.
        ttl: seconds (or a timedelta) that a result lives.
        key: called with the arguments, returns what is to be the key.
        typed: keep ``1``, ``1.0`` and ``True`` apart.
        ignore: names of parameters that do not count for the key.
        tags: for ``cache.invalidate_tag``; a callable gets the arguments.
        policy: ``"lru"`` or ``"adaptive"``, as :class:`Cache` has it.
        cache: a :class:`Cache` to share with others instead of one of its own. Iterating
            over it skips the results of functions, whose keys are made from arguments.
        stale_while_revalidate: seconds after ``ttl`` in which a result is still
            served, while one refresh runs in the background: a task in asyncio, a
            thread for a plain function, in the context of the caller.
        stale_if_error: seconds after ``ttl`` in which a result is served to those
            whose load raised an ``Exception``.
        negative_ttl: exception classes and the seconds for which such a failure
            is raised again without a call; the class nearest in the MRO counts.
            Where there is a stale result, that is kept instead.
        skip_if: called with the result; true delivers it without storing it.
        bypass_if: called with the arguments; true calls through: nothing is looked
            up, shared or stored (``lambda *_, temperature=0, **__: temperature > 0``).
        ttl_jitter: ratio 0..1 of the ``ttl`` that may be cut off at random, so that
            what was written together does not expire together.
        stream_replay: of an async generator's stream: ``"at_once"``, or ``"recorded"``
            with the pauses in which it came.
        stream_chunks: of an async generator's stream: chunks that are kept for readers
            who come late or are slow. A longer one is shared by those who keep up, and not stored.
        early_refresh: the factor beta of XFetch (Vattani et al., VLDB 2015): the
            longer a load takes and the nearer the end of the ``ttl`` is, the
            likelier a hit begins a refresh in the background; 1.0 is the usual one.
        value: called with a result that is stored, returns what each hit on it will save: US
            dollars, or a :class:`Savings`; of a stream it gets the list of chunks. The sums
            are in ``cache.get_stats()``.
        single_flight: concurrent calls with one key run the function once.
        clock: a :class:`ferrogate.testing.ManualClock` in tests.
        name: the name of its own cache; the function's by default.
        enabled: ``False`` calls straight through and still counts, also past a shared cache.

    Raises:
        TypeError: the function is a generator, or an argument is of a wrong type.
        ValueError: an argument is out of range; the message names it.
    """
    if function is None:
        return functools.partial(
            cached,
            max_size=max_size,
            ttl=ttl,
            key=key,
            typed=typed,
            ignore=ignore,
            tags=tags,
            policy=policy,
            cache=cache,
            stale_while_revalidate=stale_while_revalidate,
            stale_if_error=stale_if_error,
            negative_ttl=negative_ttl,
            skip_if=skip_if,
            bypass_if=bypass_if,
            ttl_jitter=ttl_jitter,
            early_refresh=early_refresh,
            value=value,
            stream_replay=stream_replay,
            stream_chunks=stream_chunks,
            single_flight=single_flight,
            clock=clock,
            name=name,
            enabled=enabled,
        )
    known_policy(policy)
    _check_function(function, key)
    _check_bypass(bypass_if)
    is_stream = inspect.isasyncgenfunction(function)
    _streams.check(stream_replay, stream_chunks)
    if is_stream:
        _check_stream(
            stale_while_revalidate=stale_while_revalidate,
            stale_if_error=stale_if_error,
            negative_ttl=negative_ttl,
            early_refresh=early_refresh,
            single_flight=None if single_flight else False,
        )
        skip_if = _streams.skip_if(skip_if)
    terms: Terms = {
        "stale_while_revalidate": stale_while_revalidate,
        "stale_if_error": stale_if_error,
        "negative_ttl": negative_ttl,
        "skip_if": skip_if,
        "ttl_jitter": ttl_jitter,
        "early_refresh": early_refresh,
    }
    if isinstance(ignore, str):
        raise TypeError(f"ignore: expected names of parameters such as ({ignore!r},), got a str")
    if not isinstance(ignore, Iterable):
        got = type(ignore).__name__
        raise TypeError(f"ignore: expected an iterable of names of parameters, got {got}")
    ignore = tuple(ignore)
    for option, on in (("typed", typed), ("single_flight", single_flight), ("enabled", enabled)):
        flag(option, on)
    if tags is not None and not callable(tags):
        tags = tuple(_core._check_tags(tags))
    full_name = f"{getattr(function, '__module__', '?')}.{_qualname(function)}"
    shared_as = None
    if cache is None:
        cache = Cache(
            max_size,
            ttl=ttl,
            policy=policy,
            value=_of_result(value, is_stream=is_stream),
            name=name or full_name,
            clock=clock,
            enabled=enabled,
        )
        ttl = None
    elif not isinstance(cache, _core.Cache):
        raise TypeError(f"cache: expected a ferrogate.Cache or None, got {type(cache).__name__}")
    else:
        # Its keys and entries in there. Lambdas, and functions that one factory makes, all
        # have one name, so the name alone would give each the others' results.
        _check_shared(
            max_size=None if max_size is _DEFAULT_SIZE else max_size,
            policy=None if policy in ("lru", cache.policy) else policy,
            value=value,
            clock=clock,
            name=name,
        )
        shared_as = f"{full_name}#{_number(function)}"
        if key is not None and isinstance(cache, Cache):
            tags = cache._tags_of_calls(key, tags)
        if key is not None:
            shared_as += f" key#{_number(key)}"
        if typed or ignore:
            shared_as += f" {typed} {sorted(set(ignore))}"
    told = any(term is not None for term in terms.values())
    freshness = freshness_of(cache.ttl, ttl, terms if told else {})
    is_async = inspect.iscoroutinefunction(function)
    load: Callable[..., Any]
    load_anew: Callable[..., Any]
    refresh: Callable[..., Any]
    read = None
    if is_stream:
        load = functools.partial(_streams.read, pace=stream_replay, most=stream_chunks)
        load_anew = functools.partial(load, anew=True)
        read = functools.partial(_streams.replay, pace=stream_replay)
        refresh, fail = refresh_sync, _failures.fail  # refused, so never called
    elif is_async:
        load = _flight.load_async if single_flight else _flight.load_async_alone
        load_anew, refresh, fail = _flight.load_anew_async, refresh_async, _failures.fail_async
    else:
        load = _flight.load_sync if single_flight else _flight.load_sync_alone
        load_anew, refresh, fail = _flight.load_anew_sync, refresh_sync, _failures.fail
    wrapper = CachedFunction(
        function,
        cache,
        is_async=is_async,
        enabled=enabled,
        load=load,
        load_anew=load_anew,
        refresh=refresh,
        fail=fail,
        info=CacheInfo,
        parameters={
            "max_size": cache.max_size,
            "ttl": cache.ttl if ttl is None else ttl,
            "typed": typed,
            "ignore": tuple(ignore),
            "policy": cache.policy,
            **terms,
            "bypass_if": bypass_if,
            "single_flight": single_flight,
            "enabled": enabled and cache.enabled,
        },
        key=key,
        typed=typed,
        ignore=list(ignore),
        freshness=freshness,
        bypass_if=bypass_if,
        tags=tags,
        shared_as=shared_as,
        read=read,
    )
    return functools.update_wrapper(wrapper, function)


def _of_result(value: object, *, is_stream: bool) -> Callable[[Any, Any], Any] | None:
    """As a cache calls it, which knows nothing of arguments."""
    if value is None:
        return None
    if not callable(value):
        got = type(value).__name__
        raise TypeError(f"value: expected a callable that gets the result, got {got}")
    if is_stream:
        return lambda _, recording: value(recording.chunks)
    return lambda _, result: value(result)


def _check_stream(**given: object) -> None:
    for name, value in given.items():
        if value is not None:
            raise ValueError(f"{name}: not for async generators, whose streams are kept whole")


def _check_shared(**given: object) -> None:
    for name, value in given.items():
        if value is not None:
            raise ValueError(
                f"{name}: belongs to the cache, and cache= is one that has its own; "
                "leave one of the two out"
            )


def _check_bypass(bypass_if: object) -> None:
    if bypass_if is None:
        return
    if not callable(bypass_if):
        got = type(bypass_if).__name__
        raise TypeError(f"bypass_if: expected a callable that gets the arguments, got {got}")
    if inspect.iscoroutinefunction(bypass_if):
        raise TypeError("bypass_if: expected a plain function; it is not awaited")


def _check_function(function: object, key: object) -> None:
    if isinstance(function, int | float | timedelta):
        raise TypeError(
            f"cached takes its options by keyword: write @cached(ttl={function!r}) for seconds to "
            f"live, or @cached(max_size={function!r}) for a number of results"
        )
    if isinstance(function, classmethod | staticmethod):
        raise TypeError(f"put @{type(function).__name__} above @cached, not below it")
    if not callable(function):
        raise TypeError(f"cached: expected a function, got {type(function).__name__}")
    if inspect.isgeneratorfunction(function):
        raise TypeError(
            f"cached: {_qualname(function)} is a generator function; its generator could be read "
            "only once, so there is no result to keep. Return a list, or make it an async "
            "generator function, whose streams are kept"
        )
    if key is not None and not callable(key):
        raise TypeError(f"key: expected a callable or None, got {type(key).__name__}")


#: Functions that share a cache, by identity: their numbers, and how to tell a younger
#: function at the same address.
_numbered: dict[int, tuple[int, weakref.ref[Any]]] = {}
_next_number = itertools.count(1)


def _number(function: object) -> int:
    """A number of this very object; decorated again, it finds its results again."""
    address = id(function)
    known = _numbered.get(address)
    if known is not None and known[1]() is function:
        return known[0]
    number = next(_next_number)

    def forget(gone: weakref.ref[Any]) -> None:
        known = _numbered.get(address)
        if known is not None and known[1] is gone:
            del _numbered[address]

    with contextlib.suppress(TypeError):
        _numbered[address] = (number, weakref.ref(function, forget))
    return number


def _qualname(function: object) -> str:
    return getattr(function, "__qualname__", type(function).__qualname__)
