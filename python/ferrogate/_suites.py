"""What test suites may do to all components at once: reset them, bypass them.

A component takes part with three lines: :func:`register` in its constructor, a
method ``_reset`` that forgets what calls have left behind (entries, windows,
states, counters, but neither settings nor callbacks), and for the bypass either
:func:`replaces` in its module, or :func:`tell` where the native side has a switch.

Everything here is called by test suites only, apart from :func:`register`.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
import os
import weakref
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

__all__ = [
    "bypass",
    "call_through",
    "call_through_sync",
    "do_nothing",
    "do_nothing_async",
    "enter",
    "enter_async",
    "register",
    "replaces",
    "reset_all",
    "state",
    "tell",
]


if TYPE_CHECKING:

    class Component(Protocol):
        """What can be reset."""

        def _reset(self) -> object: ...


# Without a lock, so that a component may be collected and a process forked at any moment:
# each access is one step of the interpreter.
_living: dict[int, weakref.ref[Component]] = {}
_numbers = itertools.count()


class _State:
    """What holds now."""

    bypassed = False
    """Misses of caches look at it; hits need not, since nothing is kept then."""
    depth = 0


state = _State()
_replacements: list[tuple[type, str, Any]] = []
_listeners: list[Callable[[bool], object]] = []
_VARIABLE = "FERROGATE_DISABLED"


def register(component: Component) -> None:
    """Has :func:`reset_all` find ``component``, which is held weakly."""
    number = next(_numbers)
    _living[number] = weakref.ref(component, functools.partial(_gone, number))


def replaces(owner: type, **methods: Any) -> None:
    """Has ``owner`` have these methods instead of its own while everything is bypassed."""
    _replacements.extend((owner, name, method) for name, method in methods.items())


def tell(listener: Callable[[bool], object]) -> None:
    """Has ``listener`` called with True when a bypass begins and with False when it ends."""
    _listeners.append(listener)


def reset_all() -> None:
    """Resets every living component; see ``ferrogate.testing.reset_all``."""
    failures: list[Exception] = []
    for reference in list(_living.values()):
        component = reference()
        if component is not None:
            try:
                component._reset()
            except Exception as error:
                failures.append(error)
    if failures:
        raise ExceptionGroup("components that could not be reset", failures)


@contextlib.contextmanager
def bypass() -> Iterator[None]:
    """Makes every component a no-op; see ``ferrogate.testing.bypass``."""
    reset_all()  # what was kept before would be served
    state.depth += 1
    undo = contextlib.ExitStack()
    try:
        if state.depth == 1:
            _begin(undo)
        yield
    finally:
        state.depth -= 1
        undo.close()


def _begin(undo: contextlib.ExitStack) -> None:
    """Switches everything off, and has ``undo`` switch it on again."""
    state.bypassed = True
    undo.callback(setattr, state, "bypassed", False)
    undo.callback(_set_environment, os.environ.get(_VARIABLE))
    _set_environment("1")  # for those that are made meanwhile
    for owner, name, method in _replacements:
        if name in owner.__dict__:
            undo.callback(setattr, owner, name, owner.__dict__[name])
        else:
            undo.callback(delattr, owner, name)
        setattr(owner, name, method)
    for listener in _listeners:
        undo.callback(listener, False)
        listener(True)


def _set_environment(value: str | None) -> None:
    if value is None:
        os.environ.pop(_VARIABLE, None)
    else:
        os.environ[_VARIABLE] = value


async def call_through(_self: object, function: Any, /, *args: Any, **kwargs: Any) -> Any:
    """For ``call``: the function alone."""
    result = function(*args, **kwargs)
    return await result if inspect.isawaitable(result) else result


def call_through_sync(_self: object, function: Any, /, *args: Any, **kwargs: Any) -> Any:
    """For ``call_sync``: the function alone."""
    return function(*args, **kwargs)


def enter(self: Any) -> Any:
    """For ``__enter__``: nothing is taken."""
    return self


async def enter_async(self: Any) -> Any:
    """For ``__aenter__``: nothing is taken."""
    return self


def do_nothing(_self: object, *_: object) -> None:
    """For ``__exit__``."""


async def do_nothing_async(_self: object, *_: object) -> None:
    """For ``__aexit__``."""


def _gone(number: int, _: object) -> None:
    _living.pop(number, None)
