"""A child's program: forks while a service on Redis is in use. ``python redis_forks.py URL``."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time

from ferrogate import CacheService


def in_child(service: CacheService, number: int) -> None:
    async def main() -> None:
        assert await service.get("ns", "k") == 1
        assert await service.set("ns", f"child {number}", number)
        assert await service.get_or_set("ns", f"load {number}", lambda: asyncio.sleep(0, 7)) == 7

    asyncio.run(main())
    assert service.get_stats()["errors"] == 0


def fork(service: CacheService, number: int) -> int:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            in_child(service, number)
            code = 0
        finally:
            os._exit(code)
    return pid


def main(url: str) -> None:
    service = CacheService(url, timeout_seconds=5.0)
    assert service.set_sync("ns", "k", 1)
    over = False
    wrong: list[BaseException] = []

    def hammer(number: int) -> None:
        try:
            turn = 0
            while not over:
                turn += 1
                assert service.set_sync("ns", f"thread {number}", turn)
                assert service.get_sync("ns", f"missing {number} {turn}") is None
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=hammer, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    children = []
    for number in range(10):
        children.append(fork(service, number))
        time.sleep(0.02)
    over = True
    for thread in threads:
        thread.join()
    assert not wrong, wrong
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0] * len(children)
    assert [service.get_sync("ns", f"child {n}") for n in range(10)] == list(range(10))
    # A change made in a child reaches the parent, which listens again.
    changer = os.fork()
    if changer == 0:
        os._exit(0 if service.set_sync("ns", "child 1", "changed") else 1)
    assert os.waitpid(changer, 0)[1] == 0
    deadline = time.monotonic() + 30
    while service.get_sync("ns", "child 1") != "changed":
        assert time.monotonic() < deadline
        time.sleep(0.005)
    print("survived")


if __name__ == "__main__":
    main(sys.argv[1])
