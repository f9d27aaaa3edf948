"""Several processes on one SQLite file."""

from __future__ import annotations

import signal
import statistics
import subprocess
import textwrap
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

import pytest
from child import SEED, Done, patience, run, run_well, times
from services import Open
from waiting import eventually, in_time

pytestmark = pytest.mark.hostile

#: argv: the URL, the file that every load writes a line to, its seconds, the lease's, and a file
#: that is there once this process asks.
ASKS = """
import asyncio, os, sys, time
from ferrogate import CacheService

async def load():
    with open(sys.argv[2], "a") as loads:
        loads.write(f"{os.getpid()} {time.monotonic()}\\n")
    await asyncio.sleep(float(sys.argv[3]))
    return {"from": os.getpid()}

async def main():
    lease = float(sys.argv[4])
    async with CacheService(sys.argv[1], lease_seconds=lease, busy_seconds=60) as cache:
        tasks = [asyncio.create_task(cache.get_or_set("ns", "k", load)) for _ in range(50)]
        await asyncio.sleep(0.01)
        open(sys.argv[5] + str(os.getpid()), "w").close()
        got = await asyncio.gather(*tasks)
        assert all(one == got[0] for one in got), got
        print(got[0]["from"])

asyncio.run(main())
"""


class Asking:
    """Processes that ask for one key of one file; 50 tasks in each."""

    def __init__(self, folder: Path, lease: float) -> None:
        folder.mkdir()
        self.folder, self.lease = folder, lease
        self.log = folder / "loads"

    def run(
        self, seconds: float, meanwhile: Callable[[subprocess.Popen[bytes]], object] | None = None
    ) -> Done:
        url, began = f"sqlite://{self.folder}/cache.db", str(self.folder / "began-")
        args = (url, str(self.log), str(seconds), str(self.lease), began)
        return run(ASKS, *args, timeout=90, meanwhile=meanwhile)

    def loads(self) -> list[tuple[str, float]]:
        """By which process, and when."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [(pid, float(at)) for pid, at in map(str.split, lines)]

    def began(self) -> int:
        return len(list(self.folder.glob("began-*")))


def ask(folder: Path, count: int, seconds: float, lease: float) -> None:
    """So many processes make one load, and all of them get its value."""
    asking = Asking(folder, lease)
    with ThreadPoolExecutor(count) as pool:
        done = list(pool.map(asking.run, [seconds] * count))
    assert all((d.code, d.stderr) == (0, "") for d in done), "\n".join(map(str, done))
    assert len(asking.loads()) == 1, asking.loads()
    assert {d.stdout.strip() for d in done} == {asking.loads()[0][0]}


def test_ten_processes_make_one_load(tmp_path: Path) -> None:
    # A lease that does not run out: how it is kept is the next test's.
    ask(tmp_path / "asked", count=10, seconds=0.5, lease=3600)


@pytest.mark.timeout(patience(90, 3))
def test_a_long_load_keeps_its_lease(tmp_path: Path) -> None:
    """Longer than ``lease_seconds``, which is renewed for as long as the process lives."""

    def judge(attempt: int) -> None:
        # Not renewed, it would be taken over in each attempt. It has to be renewed within two
        # thirds of a lease, for which a machine may be too busy.
        lease = 0.8 * 4**attempt
        ask(tmp_path / str(attempt), count=3, seconds=2 * lease, lease=lease)

    in_time(judge)


@pytest.mark.timeout(patience(90, 3))
def test_a_killed_loader_is_replaced(tmp_path: Path) -> None:
    """Within its lease, which was renewed for the last time before it died."""

    def judge(attempt: int) -> None:
        asking = Asking(tmp_path / str(attempt), lease=1.0 * 3**attempt)
        killed: list[float] = []

        def kill(process: subprocess.Popen[bytes]) -> None:
            # All 50 of its tasks wait for its load, and so do all of the others'.
            eventually(lambda: asking.began() == 5, 60)
            process.kill()
            killed.append(time.monotonic())

        with ThreadPoolExecutor(5) as pool:
            first = pool.submit(asking.run, 600, kill)
            eventually(lambda: asking.loads() or first.done(), 60)
            rest = [pool.submit(asking.run, 0.1) for _ in range(4)]
            assert first.result().code == -signal.SIGKILL
            done = [one.result() for one in rest]
        assert all((d.code, d.stderr) == (0, "") for d in done), "\n".join(map(str, done))
        assert len(asking.loads()) == 2, asking.loads()
        replacement, at = asking.loads()[1]
        assert {d.stdout.strip() for d in done} == {replacement}
        # What it takes to notice, to commit and to begin to load.
        assert at - killed[0] < asking.lease + 0.5, (at, killed, asking.lease)

    in_time(judge)


WRITES = """
import asyncio, random, sys
from ferrogate import CacheService

async def main():
    bounds = {"near_bytes": 100_000, "max_entries": 500}
    async with CacheService(sys.argv[1], busy_seconds=60, **bounds) as cache:
        for turn in range(int(sys.argv[2])):
            keys = [random.randrange(1000) for _ in range(20)]
            stored = await asyncio.gather(*(cache.set("ns", k, {"k": k}, ttl=60) for k in keys))
            assert all(stored), cache.get_stats()
            for key in keys:
                got = await cache.get("ns", key)
                assert got in (None, {"k": key}), (key, got)
            if turn % 10 == 0:
                await cache.invalidate_namespace("ns")
        stats = cache.get_stats()
        assert stats["errors"] == stats["skipped"] == stats["unreadable"] == 0, stats
        assert stats["size"] <= 500, stats
asyncio.run(main())
"""


def test_four_processes_write_one_file(tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        args = (f"sqlite://{tmp_path}/cache.db", str(times(50, 1000)))
        runs = [pool.submit(run_well, WRITES, *args, timeout=100) for _ in range(4)]
        assert [one.result() for one in runs] == [""] * 4


KILLED = """
import sys
from ferrogate import CacheService
cache = CacheService(sys.argv[1], busy_seconds=60)
number = 0
while True:
    number += 1
    assert cache.set_sync("ns", str(number), number)
    with open(sys.argv[2], "a") as acknowledged:
        acknowledged.write(f"{number}\\n")
"""


def test_what_was_acknowledged_survives_a_kill(tmp_path: Path) -> None:
    random = Random(SEED)
    acknowledged: dict[str, int] = {}
    for turn in range(times(3, 50)):
        path, told = tmp_path / f"{turn}.db", tmp_path / f"{turn}.told"
        enough = random.randrange(50, 2000)

        def kill(process: subprocess.Popen[bytes], told: Path = told, bytes: int = enough) -> None:
            eventually(lambda: told.exists() and told.stat().st_size > bytes, 60)
            process.kill()

        done = run(KILLED, f"sqlite://{path}", str(told), timeout=60, meanwhile=kill)
        assert (done.code, done.stderr) == (-signal.SIGKILL, ""), str(done)
        acknowledged[str(path)] = int(told.read_text().split()[-1])
    check = f"""
        from ferrogate import CacheService
        for path, last in {acknowledged}.items():
            with CacheService(f"sqlite://{{path}}") as cache:
                missing = [n for n in range(1, last + 1) if cache.get_sync("ns", str(n)) != n]
                assert not missing, (path, missing)
                assert cache.get_stats()["recoveries"] == 0
    """
    run_well(check, timeout=100)


#: argv: the URL, a file that is there once this process serves, the control's file, the key.
#: Prints when it saw what first, and whether in the cache or in the control.
SERVES = """
import sys, threading, time
from ferrogate import CacheService

told = ""

def control():
    # What the service's watcher does: it looks every 20 ms.
    global told
    with open(sys.argv[3]) as file:
        while told != "end":
            time.sleep(0.02)
            file.seek(0)
            told = file.read().strip() or told

cache = CacheService(sys.argv[1])
threading.Thread(target=control, daemon=True).start()
last = {"cache": "", "control": ""}
open(sys.argv[2], "w").close()
while set(last.values()) != {"end"}:
    for where, got in ("cache", cache.get_sync("ns", sys.argv[4])), ("control", told):
        if got and got != last[where]:
            print(where, got, time.monotonic(), flush=True)
            last[where] = got
    time.sleep(0.0005)
cache.close_sync()
"""


def lags_of(seen: dict[str, float], sent: list[float]) -> list[float]:
    """For how long each of the values was still served after it had been replaced, in order."""
    lags, at = [], seen["end"]
    # Who sees a later one does not serve what was before this one either.
    for number in reversed(range(len(sent))):
        at = min(at, seen.get(str(number), at))
        lags.append(at - sent[number])
    return lags[::-1]


@pytest.mark.timeout(patience(90, 3))
def test_an_invalidation_reaches_the_others(tmp_path: Path, sqlite: Open) -> None:
    """A value that is replaced in one process is served by another for at most 100 ms.

    Beside it a thread of Python looks into a file as often as the service looks for changes: what
    that one sees late is the machine's fault.
    """
    cache, told = sqlite(), tmp_path / "told"

    def judge(attempt: int) -> None:
        key, ready = str(attempt), tmp_path / f"ready{attempt}"
        told.write_text("")
        sent: list[float] = []

        def tell(what: str) -> None:
            assert cache.set_sync("ns", key, what)
            with told.open("r+") as file:
                # Of one length, so that nobody reads half of it.
                file.write(what.ljust(8))

        def replace(_process: object) -> None:
            eventually(ready.exists, 60)
            for number in range(times(50, 100)):
                tell(str(number))
                sent.append(time.monotonic())
                time.sleep(0.03 + number % 10 / 1000)
            tell("end")

        url = f"sqlite://{tmp_path}/cache.db"
        args = (url, str(ready), str(told), key)
        done = run(SERVES, *args, timeout=90, meanwhile=replace)
        assert (done.code, done.stderr) == (0, ""), str(done)
        seen: dict[str, dict[str, float]] = {"cache": {}, "control": {}}
        for where, number, at in map(str.split, done.stdout.splitlines()):
            seen[where].setdefault(number, float(at))
        lags, control = (lags_of(seen[where], sent) for where in ("cache", "control"))
        late = sum(lag > 0.1 for lag in lags)
        excused = sum(lag > 0.08 for lag in control)
        assert late <= 1 + excused, (sorted(lags)[-10:], sorted(control)[-10:])
        median = statistics.median(lags)
        assert median < 0.05 + max(0, statistics.median(control) - 0.03), (lags, control)

    in_time(judge)


#: argv: the URL, a file that is there once it serves, a file that is there once the value has
#: changed while this process was stopped.
STOPPED = """
import os, sys, time
from ferrogate import CacheService
cache = CacheService(sys.argv[1], busy_seconds=60)
assert cache.set_sync("ns", "k", "old") and cache.get_sync("ns", "k") == "old"
last = time.monotonic()
open(sys.argv[2], "w").close()
while True:
    now = time.monotonic()
    # Nobody else stops it while it has not changed: then the machine was busy.
    stopped = now - last > 2.2 and os.path.exists(sys.argv[3])
    got = cache.get_sync("ns", "k")
    if stopped:
        print(got)
        break
    last = now
"""


def test_a_process_that_was_stopped_serves_nothing_old(tmp_path: Path, sqlite: Open) -> None:
    """Not even before its watcher gets its first turn again."""
    cache, ready, changed = sqlite(), tmp_path / "ready", tmp_path / "changed"

    def stop(process: subprocess.Popen[bytes]) -> None:
        eventually(ready.exists, 60)

        def replaced() -> bool:
            process.send_signal(signal.SIGSTOP)
            if cache.set_sync("ns", "k", "new"):
                return True
            # It was stopped while it swept, and keeps everybody out.
            process.send_signal(signal.SIGCONT)
            time.sleep(0.05)
            return False

        eventually(replaced, 60)
        changed.touch()
        # Longer than values are trusted without a look for changes: 2 s.
        time.sleep(2.3)
        process.send_signal(signal.SIGCONT)

    for _ in range(times(1, 10)):
        ready.unlink(missing_ok=True)
        changed.unlink(missing_ok=True)
        args = (f"sqlite://{tmp_path}/cache.db", str(ready), str(changed))
        done = run(STOPPED, *args, timeout=90, meanwhile=stop)
        assert (done.code, done.stdout, done.stderr) == (0, "new\n", ""), str(done)


def test_a_forked_child_and_its_parent(tmp_path: Path) -> None:
    code = """
        import warnings; warnings.filterwarnings("ignore", ".*fork.*", DeprecationWarning)
        import asyncio, os, sys, threading
        from ferrogate import CacheService
        cache = CacheService(sys.argv[1], busy_seconds=60)
        stop = threading.Event()
        def work(i):
            while not stop.is_set():
                assert cache.set_sync("ns", str(i), i), cache.get_stats()
                assert cache.get_sync("ns", str(i)) == i
                assert cache.get_or_set_sync("ns", ("l", i), lambda: i) == i
        def loop(i):
            async def main():
                while not stop.is_set():
                    assert await cache.set("ns", str(i), i)
                    assert await cache.get("ns", str(i)) == i
            asyncio.run(main())
        threads = [threading.Thread(target=t, args=(i,)) for i, t in enumerate([work, loop] * 4)]
        for t in threads: t.start()
        for n in range(10):
            pid = os.fork()
            if pid == 0:
                assert cache.set_sync("child", str(n), n)
                assert cache.get_sync("child", str(n)) == n
                assert asyncio.run(cache.get("child", str(n))) == n
                load = lambda: asyncio.sleep(0, n)
                assert asyncio.run(cache.get_or_set("child", ("l", n), load)) == n
                os._exit(0)
            assert os.waitpid(pid, 0)[1] == 0
            assert cache.get_sync("child", str(n)) == n
        stop.set()
        for t in threads: t.join()
        stats = cache.get_stats()
        assert stats["errors"] == 0, stats
    """
    for _ in range(times(1, 20)):
        run_well(code, f"sqlite://{tmp_path}/cache.db", timeout=100)


def test_two_children_of_one_parent_see_each_others_changes(tmp_path: Path) -> None:
    """As the workers of a server that loads the application before it forks."""
    code = """
        import os, sys, time
        from ferrogate import CacheService
        cache = CacheService(sys.argv[1], busy_seconds=60)
        assert cache.set_sync("ns", "k", 0)
        back = [os.pipe() for _ in range(2)]
        children = []
        for n in range(2):
            pid = os.fork()
            if pid == 0:
                # Nobody else writes there: who waits for a sibling that failed is told.
                os.close(back[1 - n][1]); os.close(back[n][0])
                # Each writes in its turn, and looks until it sees what the other one wrote.
                for turn in range(1, 9):
                    if turn % 2 == n:
                        assert cache.set_sync("ns", "k", turn)
                    end = time.monotonic() + 30
                    while cache.get_sync("ns", "k") != turn:
                        assert time.monotonic() < end, (n, turn, cache.get_sync("ns", "k"))
                        time.sleep(0.001)
                    # Both are here before the next turn.
                    os.write(back[n][1], b"x")
                    assert os.read(back[1 - n][0], 1)
                os._exit(0)
            children.append(pid)
        for _, end in back: os.close(end)
        for pid in children:
            assert os.waitpid(pid, 0)[1] == 0
    """
    run_well(code, f"sqlite://{tmp_path}/cache.db", timeout=100)


def test_multiprocessing(tmp_path: Path) -> None:
    code = """
        import warnings; warnings.filterwarnings("ignore", ".*fork.*", DeprecationWarning)
        import multiprocessing, sys
        from ferrogate import CacheService
        def child(url, n):
            cache = CacheService(url, busy_seconds=60)
            assert cache.set_sync("ns", n, n) and cache.get_sync("ns", "parent") == 0
        if __name__ == "__main__":
            cache = CacheService(sys.argv[1], busy_seconds=60)
            assert cache.set_sync("ns", "parent", 0)
            for method in ("fork", "forkserver", "spawn"):
                context = multiprocessing.get_context(method)
                names = [f"{method}{n}" for n in range(2)]
                all = [context.Process(target=child, args=(sys.argv[1], one)) for one in names]
                for one in all: one.start()
                for one in all: one.join()
                assert [one.exitcode for one in all] == [0] * 2
                assert [cache.get_sync("ns", one) for one in names] == names
    """
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(code))
    run_well(script, f"sqlite://{tmp_path}/cache.db", timeout=100)


@pytest.mark.timeout(patience(60))
def test_memory_stays_flat(tmp_path: Path) -> None:
    code = """
        import asyncio, os, resource, sys
        from ferrogate import CacheService
        def rss():
            with open("/proc/self/statm") as f: return int(f.read().split()[1]) * 4096
        async def main():
            count = int(sys.argv[2])
            cache = CacheService(sys.argv[1], near_bytes=1 << 20, max_entries=2000)
            async def some(turns):
                for turn in range(turns):
                    k = [f"{turn * 7919 % 5000}:{i}" for i in range(50)]
                    sets = (cache.set("ns", one, {"v": one}, tags=[one[:3]]) for one in k)
                    await asyncio.gather(*sets)
                    await asyncio.gather(*(cache.get("ns", one) for one in k))
                    await cache.delete("ns", k[0])
                    await cache.invalidate_tag(k[1][:3])
                    await cache.get_or_set("ns", ("load", turn), lambda: asyncio.sleep(0, 1))
            await some(count // 4)
            # What leaks grows every time; the allocator may take an arena more, and the log grows
            # over a reader that was suspended, once.
            taken = lambda: sum(os.path.getsize(sys.argv[1][9:] + s) for s in ("", "-wal"))
            grown = []
            while not grown or grown[-1][0] >= 8 << 20 or grown[-1][1] >= 16 << 20:
                assert len(grown) < 4, grown
                before = rss(), taken()
                await some(count)
                grown.append((rss() - before[0], taken() - before[1]))
            assert taken() < 80 << 20, (taken(), grown)
            await cache.close()
        asyncio.run(main())
    """
    run_well(code, f"sqlite://{tmp_path}/cache.db", str(times(200, 10_000)), timeout=600)
