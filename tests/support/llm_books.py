"""Books over an `LLMLimiter`, kept with lists: what it has to admit, and what was really spent."""

from __future__ import annotations

from dataclasses import dataclass, field

NS = 1_000_000_000
WINDOW = 60 * NS
DIMENSIONS = ("requests", "input_tokens", "output_tokens", "tokens", "usd")

#: Requests, tokens in, out and together, billionths of a dollar.
Amounts = tuple[int, int, int, int, int]
NOTHING: Amounts = (0, 0, 0, 0, 0)


def amounts(requests: int, input_tokens: int, output_tokens: int, nano_usd: int) -> Amounts:
    """All dimensions of one call."""
    return requests, input_tokens, output_tokens, input_tokens + output_tokens, nano_usd


def _above(one: Amounts, other: Amounts) -> Amounts:
    a, b, c, d, e = (max(0, x - y) for x, y in zip(one, other, strict=True))
    return a, b, c, d, e


@dataclass
class Call:
    """One caller's request."""

    reserved: Amounts
    actual: Amounts
    """What it will really take."""
    at: int = -1
    """When it was granted, in nanoseconds."""
    counted: Amounts = NOTHING
    """What of it counts at its own time."""
    open: bool = False


@dataclass
class Books:
    """A first-in-first-out limiter in its plainest form."""

    limits: tuple[int | None, ...]
    slots: int | None = None
    paused_until: int = 0
    granted: list[Call] = field(default_factory=list)
    line: list[Call] = field(default_factory=list)
    over: list[tuple[int, Amounts]] = field(default_factory=list)
    in_use: int = 0

    def used(self, now: int) -> list[int]:
        """Reserved and spent within the window, dimension by dimension."""
        counted = [call.counted for call in self.granted if now - call.at < WINDOW]
        counted += self._over(now)
        return [sum(column) for column in zip(NOTHING, *counted, strict=True)]

    def _over(self, now: int) -> list[Amounts]:
        return [over for at, over in self.over if now - at < WINDOW]

    def overused(self, now: int) -> list[int]:
        """What of it nobody had reserved."""
        return [sum(column) for column in zip(NOTHING, *self._over(now), strict=True)]

    def in_flight(self) -> list[int]:
        """What those under way will take beyond their reservations."""
        flying = [_above(call.actual, call.reserved) for call in self.granted if call.open]
        return [sum(column) for column in zip(NOTHING, *flying, strict=True)]

    def spent(self, now: int) -> list[int]:
        """What the calls of the last minute really take."""
        real = [call.actual for call in self.granted if now - call.at < WINDOW]
        return [sum(column) for column in zip(NOTHING, *real, strict=True)]

    def fits(self, now: int, asked: Amounts) -> bool:
        """Whether it may be granted, apart from the line."""
        if now < self.paused_until or (self.slots is not None and self.in_use >= self.slots):
            return False
        return all(
            limit is None or used + ask <= limit
            for limit, used, ask in zip(self.limits, self.used(now), asked, strict=True)
        )

    def pump(self, now: int) -> list[Call]:
        """Grants from the head of the line on; whom."""
        self._prune(now)
        granted = []
        while self.line and self.fits(now, self.line[0].reserved):
            call = self.line.pop(0)
            self.grant(now, call)
            granted.append(call)
        return granted

    def _prune(self, now: int) -> None:
        self.granted = [call for call in self.granted if call.open or now - call.at < WINDOW]
        self.over = [(at, over) for at, over in self.over if now - at < WINDOW]

    def grant(self, now: int, call: Call) -> None:
        """Enters a reservation."""
        call.at, call.counted, call.open = now, call.reserved, True
        self.granted.append(call)
        self.in_use += 1

    def settle(self, now: int, call: Call) -> None:
        """It has taken what it takes."""
        over = _above(call.actual, call.reserved)
        self.end(call, tuple(map(min, call.actual, call.reserved)))  # type: ignore[arg-type]
        if any(over):
            self.over.append((now, over))

    def end(self, call: Call, counted: Amounts) -> None:
        """It counts as that much from now on, and so much is what it took."""
        call.open, call.counted = False, counted
        self.in_use -= 1

    def release(self, call: Call, *, sent: bool) -> None:
        """It came to nothing."""
        call.actual = amounts(int(sent), 0, 0, 0)
        self.end(call, call.actual)
