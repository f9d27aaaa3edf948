"""That `make test-memcheck` can fail: it sees what it is there to see."""

from __future__ import annotations

import sys

import pytest
from child import MEMCHECK, run, run_well

pytestmark = [
    pytest.mark.hostile,
    pytest.mark.valgrind,
    pytest.mark.skipif(not MEMCHECK, reason="needs valgrind: `make test-memcheck`"),
]

PRELUDE = """
import ctypes
from ferrogate import Cache
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes = [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
cache = Cache(4)
cache["a"] = object()
"""

#: By what an extension does wrong.
WRONG = {
    "a read of freed memory": """
block = libc.malloc(64)
libc.free(block)
ctypes.string_at(block, 8)
""",
    "a reference given back too often": """
class Value: pass
value = Value()
cache["a"] = value
ctypes.pythonapi.Py_DecRef(ctypes.py_object(value))
ctypes.pythonapi.Py_DecRef(ctypes.py_object(value))
del value
cache.get("a")
cache.clear()
""",
}


@pytest.mark.skipif(sys.platform != "linux", reason="not on macOS or Windows")
@pytest.mark.parametrize("wrong", WRONG)
def test_valgrind_sees(wrong: str) -> None:
    done = run(PRELUDE + WRONG[wrong], timeout=10)
    assert done.code == 99, str(done)
    assert "Invalid " in done.stderr, str(done)


def test_valgrind_says_nothing_where_nothing_is_wrong() -> None:
    run_well(PRELUDE, timeout=10)
