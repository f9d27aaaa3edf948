"""A decorated function stays what it was: to tools, to copies, to other processes."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import copy
import doctest
import functools
import inspect
import io
import multiprocessing
import pickle
import pydoc
import types
import typing
import weakref
from typing import Any

import decorated
import pytest
from child import run_well
from decorated import Client, asquare, calls, square

from ferrogate import cached

# It stays the function that it was.


def test_introspection() -> None:
    assert square.__name__ == "square"
    assert square.__qualname__ == "square"
    assert square.__module__ == decorated.__name__
    assert square.__doc__ == square.__wrapped__.__doc__
    assert square.__annotations__ == {"x": "int", "return": "int"}
    assert typing.get_type_hints(square) == {"x": int, "return": int}
    assert typing.get_type_hints(Client.ask) == {"x": Any, "return": object}
    assert str(inspect.signature(square)) == "(x: 'int') -> 'int'"
    assert inspect.signature(square, eval_str=True).parameters["x"].annotation is int
    assert inspect.unwrap(square) is square.__wrapped__
    assert square.__globals__ is vars(decorated)
    assert square.__code__ is square.__wrapped__.__code__
    assert square.__defaults__ is None
    assert callable(square)
    assert inspect.getsource(square).startswith("@cached\ndef square")
    for function in (asquare, Client.aask, Client().aask, functools.partial(asquare, 1)):
        assert inspect.iscoroutinefunction(function)
        assert asyncio.iscoroutinefunction(function)
    for function in (square, Client.ask, Client().ask):
        assert not inspect.iscoroutinefunction(function)
        assert not inspect.isgeneratorfunction(function)
    assert inspect.isroutine(square)
    with pytest.raises(AttributeError, match="no_such"):
        square.no_such  # noqa: B018


def test_attributes() -> None:
    @cached
    def f() -> int:
        return 1

    f.note = "x"
    assert f.note == "x"
    assert vars(f)["note"] == "x"
    del f.note
    assert not hasattr(f, "note")
    with pytest.raises(AttributeError):
        del f.note

    def g() -> int:
        return 2

    g.mark = "from g"  # type: ignore[attr-defined]
    assert cached(g).mark == "from g"
    assert weakref.ref(f)() is f
    method = weakref.ref(Client().ask)
    assert method() is None


def test_help_and_doctest() -> None:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        pydoc.Helper(output=out).help(square)
    assert "square(x: 'int') -> 'int'" in out.getvalue()
    assert "The square." in out.getvalue()
    found = doctest.DocTestFinder().find(square, "square", module=decorated, globs=vars(decorated))
    assert [test.name for test in found] == ["square"]
    results = [doctest.DocTestRunner(verbose=False).run(test) for test in found]
    assert results == [(0, 1)]
    holder = types.ModuleType("holder")
    holder.square = square  # type: ignore[attr-defined]
    square.__module__ = "holder"
    try:
        assert "holder.square" in [test.name for test in doctest.DocTestFinder().find(holder)]
    finally:
        square.__module__ = decorated.__name__


def test_wraps_and_decorating_twice() -> None:
    @functools.wraps(square)
    def wrapper(*args: Any) -> Any:
        return square(*args)

    assert wrapper.__name__ == "square"
    assert wrapper.__wrapped__ is square
    assert str(inspect.signature(wrapper)) == "(x: 'int') -> 'int'"
    twice = cached(ttl=1)(square)
    assert twice(3) == twice(3) == twice(x=3) == 9
    assert calls == [3]
    assert twice.cache_info().hits == 2
    assert square.cache_info()[:2] == (0, 1)
    atwice = cached(asquare)
    assert asyncio.iscoroutinefunction(atwice)

    async def main() -> None:
        assert await atwice(3) == await atwice(3) == 9

    asyncio.run(main())
    lru = functools.lru_cache(square)
    assert lru(4) == 16
    assert cached(functools.lru_cache(square.__wrapped__))(5) == 25


# Across processes. The child imports this module by name, as a program's own would be.

PROGRAM = """
import concurrent.futures, copy, multiprocessing, os, pickle, sys
from ferrogate import Cache, cached

@cached
def job(x):
    return (os.getpid(), x * x)

class Client:
    @cached
    def ask(self, x):
        return x + 1

def main(method):
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert pickle.loads(pickle.dumps(job, protocol)) is job
        assert pickle.loads(pickle.dumps(Client.ask, protocol)) is Client.ask
    assert copy.copy(job) is job and copy.deepcopy([job])[0] is job
    client = Client()
    method_copy = pickle.loads(pickle.dumps(client.ask))
    assert method_copy(1) == 2 and method_copy.__self__ is not client
    job(0)
    context = multiprocessing.get_context(method)
    with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as pool:
        results = list(pool.map(job, range(20)))
    assert [r for _, r in results] == [x * x for x in range(20)]
    assert os.getpid() not in {pid for pid, _ in results[1:]}
    with context.Pool(1) as pool:
        assert pool.apply(job, (7,))[1] == 49
    queue = context.SimpleQueue()
    process = context.Process(target=put, args=(queue, client))
    process.start()
    assert queue.get() == 6
    process.join()
    assert process.exitcode == 0
    assert job.cache_info().currsize == 1
    print("fine")

def put(queue, client):
    queue.put(client.ask(5))

if __name__ == "__main__":
    main(sys.argv[1])
"""


@pytest.mark.hostile
@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_jobs_of_process_pools(method: str, tmp_path: Any) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    code = f"""
    import sys, runpy
    sys.argv = ["program", {method!r}]
    sys.path.insert(0, {str(tmp_path)!r})
    if __name__ == "__main__":
        import program
        program.main({method!r})
    """
    assert run_well(code, timeout=60) == "fine\n"


def test_pickling_what_has_no_name_fails_as_for_functions() -> None:
    @cached
    def local() -> int:
        return 1

    with pytest.raises((AttributeError, pickle.PicklingError)):
        pickle.dumps(local)
    assert copy.copy(local) is local
    assert copy.deepcopy({"f": local})["f"] is local


def test_executors() -> None:
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert list(pool.map(square, [3] * 20)) == [9] * 20
    assert calls == [3]
