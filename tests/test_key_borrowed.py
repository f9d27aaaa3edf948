"""The walk borrows items of small dicts and lists until one of them may run Python code."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from typing import Any

import pytest

from ferrogate import cache_key

pytestmark = pytest.mark.memcheck


class Meddler:
    """Runs `deed` while its key is made."""

    def __init__(self, deed: Callable[[], object]) -> None:
        self.deed = deed

    def __cache_key__(self) -> int:
        self.deed()
        gc.collect()
        return 1


@pytest.mark.parametrize("size", [1, 2, 5, 8])
def test_a_small_dict_is_walked_as_it_was_when_an_item_empties_it(size: int) -> None:
    for at in range(size):
        # Texts that nobody else holds: they die with the dict.
        request: dict[str, Any] = {f"k{n}": f"text {n} " * 3 for n in range(size)}
        expected = cache_key(request | {f"k{at}": Meddler(lambda: None)})
        request[f"k{at}"] = Meddler(request.clear)
        assert cache_key(request) == expected
        assert not request


@pytest.mark.parametrize("size", [1, 2, 5, 8])
def test_a_list_that_an_item_empties_is_refused(size: int) -> None:
    for at in range(size):
        request: list[Any] = [f"text {n} " * 3 for n in range(size)]
        request[at] = Meddler(request.clear)
        with pytest.raises(RuntimeError, match="list changed"):
            cache_key(request)


def test_the_walk_gives_back_every_reference() -> None:
    key, text, inner = "key" * 5, "some text " * 3, ["é"]
    request = {key: text, "b": inner, "c": Meddler(lambda: None), "d": {"é": text}}
    held = [key, text, inner, request]
    before = [sys.getrefcount(one) for one in held]
    for _ in range(100):
        cache_key(request)
        with pytest.raises(TypeError, match="z"):
            cache_key({"a": text, key: inner, "z": [object()]})
    assert before == [sys.getrefcount(one) for one in held]
