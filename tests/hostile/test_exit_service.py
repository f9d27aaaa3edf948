"""The interpreter exits over a cache service with threads, connections and requests of its own."""

from __future__ import annotations

import pytest
from child import patience
from exits import RUNS, check

pytestmark = [pytest.mark.hostile, pytest.mark.soak]

# name: (what the child does, the expected exit code, the expected last line on stderr)
ROWS: dict[str, tuple[str, int, str]] = {
    "idle": (
        """
service = store()
service.set_sync("ns", "k", 1)
""",
        0,
        "",
    ),
    "awaited": (
        """
service = store()
async def main():
    await asyncio.gather(*(service.set("ns", i, i) for i in range(50)))
    await asyncio.gather(*(service.get("ns", i) for i in range(50)))
    load = lambda: asyncio.sleep(0, 1)
    await asyncio.gather(*(service.get_or_set("ns", "k", load) for _ in range(9)))
asyncio.run(main())
""",
        0,
        "",
    ),
    "pending on a loop that is closed": (
        """
service = store()
async def main():
    tasks = [asyncio.ensure_future(service.set("ns", i, "x" * 1000)) for i in range(500)]
    tasks += [asyncio.ensure_future(service.get("ns", i)) for i in range(500)]
    load = lambda: asyncio.sleep(60)
    tasks += [asyncio.ensure_future(service.get_or_set("ns", i, load)) for i in range(5)]
    await asyncio.sleep(0)
    globals()["keep"] = tasks
asyncio.run(main())
""",
        0,
        "",
    ),
    "pending on a daemon thread's loop": (
        """
keep = Slow()
service = store()
async def main(i=0):
    while True:
        i += 1
        try:
            await asyncio.gather(service.set("ns", i, i), service.get("ns", i))
            await service.get_or_set("ns", ("l", i), lambda: asyncio.sleep(0, i))
        except RuntimeError:
            pass
daemons(lambda: asyncio.run(main()))
""",
        0,
        "",
    ),
    "blocking daemon threads": (
        """
keep = Slow()
service = store()
def work(i=0):
    while True:
        i += 1
        try:
            service.set_sync("ns", i, i)
            service.get_sync("ns", i)
            service.get_or_set_sync("ns", ("l", i), lambda: i)
        except RuntimeError:
            pass
daemons(work, count=4)
""",
        0,
        "",
    ),
    "a client's daemon threads": (
        """
from ferrogate import CacheClient
keep = Slow()
client = CacheClient(store().url)
def work(i=0):
    while True:
        i += 1
        client.set_sync(i, i)
        client.get_sync(i)
        client.get_or_set_sync(("l", i), lambda: i)
daemons(work, count=4)
""",
        0,
        "",
    ),
    "cancelled": (
        """
service = store()
async def main():
    for i in range(20):
        try:
            await asyncio.wait_for(asyncio.gather(
                service.get("ns", i), service.set("ns", i, i),
                service.get_or_set("ns", ("l", i), lambda: asyncio.sleep(60)),
            ), 0.001)
        except TimeoutError:
            pass
asyncio.run(main())
""",
        0,
        "",
    ),
    "sys.exit in a loader": (
        """
service = store()
async def load():
    await asyncio.sleep(0)
    sys.exit(7)
asyncio.run(service.get_or_set("ns", "k", load))
""",
        7,
        "",
    ),
    "unhandled exception": (
        """
service = store()
service.set_sync("ns", "k", 1)
asyncio.run(service.set("ns", "k", {"a": {1}}))
""",
        1,
        """TypeError: value['a']: set is no JSON value, which codec="json" cannot carry""",
    ),
    "used after the shutdown": (
        """
import atexit
service = store()
service.set_sync("ns", "k", 1)
def late():
    try:
        service.get_sync("ns", "other")
    except RuntimeError as error:
        assert "shut down" in str(error), error
    else:
        os._exit(9)
    from ferrogate import _core
    _core._shutdown(1.0)
# Runs after ferrogate's own: atexit goes backwards.
atexit.unregister(sys.modules["ferrogate"]._core._shutdown)
atexit.register(late)
atexit.register(sys.modules["ferrogate"]._core._shutdown, 5.0)
""",
        0,
        "",
    ),
}


@pytest.mark.timeout(patience(20, RUNS))
@pytest.mark.parametrize("row", ROWS)
def test_exit(row: str) -> None:
    check(*ROWS[row])
