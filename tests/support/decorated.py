"""Cached functions of every kind."""

from __future__ import annotations

from typing import Any

from ferrogate import cached

calls: list[Any] = []


@cached
def square(x: int) -> int:
    """The square.

    >>> square(3)
    9
    """
    calls.append(x)
    return x * x


@cached(ttl=60)
async def asquare(x: int) -> int:
    """The square, awaited."""
    calls.append(x)
    return x * x


class Client:
    def __init__(self, name: str = "c") -> None:
        self.name = name

    @cached
    def ask(self, x: Any = 0) -> object:
        """Asks."""
        calls.append((self.name, x))
        return object()

    @cached
    async def aask(self, x: Any = 0) -> object:
        calls.append((self.name, x))
        return object()

    @classmethod
    @cached
    def of_class(cls, x: int = 0) -> object:
        calls.append(x)
        return object()

    @staticmethod
    @cached
    def static(x: int) -> object:
        calls.append(x)
        return object()

    @property
    @cached
    def prop(self) -> object:
        calls.append(self.name)
        return object()
