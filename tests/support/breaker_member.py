"""A child's program: one of several processes with a breaker whose state is shared in Redis.

``python breaker_member.py URL PORT CONFIG``: does what lines on stdin say (JSON: a word and
arguments), and answers each with a line of JSON. ``PORT`` is the provider's.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
import time
from typing import Any

from ferrogate import CircuitBreaker, CircuitBreakerConfig, CircuitBreakerOpenError


def now() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Down(Exception):
    """What the provider says, or nobody does."""


class Member:
    def __init__(self, url: str, port: int, config: dict[str, Any]) -> None:
        self.breaker = CircuitBreaker("shared", CircuitBreakerConfig(**config), store=url)
        self.port = port
        self.events: list[str] = []
        self.breaker.on_open(lambda _: self.events.append("open"))
        self.breaker.on_close(lambda _: self.events.append("close"))

    def call_provider(self) -> None:
        with socket.create_connection(("127.0.0.1", self.port), timeout=60) as one:
            one.sendall(b"?")
            if one.recv(1) != b"1":
                raise Down

    def call(self) -> str:
        """``well``, ``down`` or ``refused``."""
        try:
            self.breaker.call_sync(self.call_provider)
        except CircuitBreakerOpenError:
            return "refused"
        except (Down, OSError):
            return "down"
        return "well"

    def hold(self) -> None:
        """Begins a call in the background, as soon as one is let through."""

        def body() -> None:
            while self.call() == "refused":
                time.sleep(0.01)

        threading.Thread(target=body, daemon=True).start()

    def storm(self, seconds: float, threads: int) -> dict[str, Any]:
        """Calls all the time; how they ended, and the longest that a refusal took."""
        until, ended, longest = now() + seconds, {"well": 0, "down": 0, "refused": 0}, [0.0]
        lock = threading.Lock()

        def body() -> None:
            while (begun := now()) < until:
                how = self.call()
                took = now() - begun
                with lock:
                    ended[how] += 1
                    if how == "refused":
                        longest[0] = max(longest[0], took)
                time.sleep(0.002)

        running = [threading.Thread(target=body) for _ in range(threads)]
        for one in running:
            one.start()
        for one in running:
            one.join()
        return {**ended, "longest": longest[0]}

    def until(self, state: str, seconds: float) -> float | None:
        """When it is there; calls all the time if it is to close."""
        end = now() + seconds
        while now() < end:
            if state == "closed" and self.breaker.state != "closed":
                self.call()
            if self.breaker.state == state:
                return now()
            time.sleep(0.002)
        return None

    def joined(self, seconds: float) -> bool:
        end = now() + seconds
        while now() < end:
            shared = self.breaker.get_stats()["shared"]
            if shared and shared["joined"]:
                return True
            time.sleep(0.005)
        return False

    def fork(self) -> str:
        """What a child finds, and that it shares as well."""
        ours, theirs = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(ours)
            found = self.breaker.state if self.joined(20) else "nobody answers"
            os.write(theirs, found.encode())
            os._exit(0)
        os.close(theirs)
        found = os.read(ours, 100).decode()
        os.waitpid(pid, 0)
        os.close(ours)
        return found

    def act(self, word: str, *arguments: Any) -> Any:
        match word:
            case "fail":
                for _ in range(5):
                    with contextlib.suppress(Down, CircuitBreakerOpenError), self.breaker:
                        raise Down
                return now()
            case "state":
                return self.breaker.state
            case "stats":
                return self.breaker.get_stats()
            case "events":
                return [self.breaker.state, *self.events]
            case "force_open" | "disable" | "metrics_only" | "reset":
                getattr(self.breaker, word)()
                return None
            case _:
                return getattr(self, word)(*arguments)


def main() -> None:
    url, port, config = sys.argv[1:]
    member = Member(url, int(port), json.loads(config))
    print('"ready"', flush=True)
    for line in sys.stdin:
        print(json.dumps(member.act(*json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
