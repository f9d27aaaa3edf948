"""`Cache` against an ordered dict with deadlines, by a hypothesis state machine."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import pytest
from child import patience, times
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ferrogate import Cache, _refresh
from ferrogate._weigher import deep_size
from ferrogate.testing import ManualClock

NS = 1_000_000_000
FAR = 2**63
#: The keys as Python sees them; each row is one key, the last row found by `==` alone.
SPELLINGS: list[list[Any]] = [
    ["a"],
    [1, 1.0, True],
    [(1, "b"), (1.0, "b"), (True, "b")],
    [{"x": 1, "y": {2}}, {"y": {2.0}, "x": True}],
    ["c" * 100],
    [b"a"],
    [None],
    [frozenset({1, 2}), frozenset({2.0, 1.0})],
]
KEYS = st.sampled_from([(n, key) for n, row in enumerate(SPELLINGS) for key in row])
SECONDS = st.integers(1, 12)


class Value:
    """A value with a weight, equal to itself only."""

    def __init__(self, weight: int) -> None:
        self.weight = weight

    def __repr__(self) -> str:
        return f"<{id(self):x}, weight {self.weight}>"


VALUES = st.builds(Value, st.sampled_from([0, 1, 1, 2, 3, 5, 9, 10, 11, 2**70]))


class No(LookupError):
    """What a loader raises; it weighs something too."""

    weight = deep_size(None, LookupError("no"))


@dataclass
class Entry:
    value: Value | No
    written: int
    end: int  # of its time to live
    deadline: int
    touched: int
    tags: list[str]
    asked: int = -NS  # to refresh it

    def state(self, now: int) -> str:
        if isinstance(self.value, No):
            return "negative"
        return "fresh" if now < self.end or self.end >= FAR else "stale"


class CacheModel(RuleBasedStateMachine):
    policy: Literal["lru", "adaptive"] = "lru"

    @initialize(
        max_size=st.integers(1, 6),
        ttl=st.none() | SECONDS,
        tti=st.none() | SECONDS,
        max_bytes=st.none() | st.integers(1, 20),
        start=st.integers(0, 10**6),
    )
    def start(
        self, max_size: int, ttl: int | None, tti: int | None, max_bytes: int | None, start: int
    ) -> None:
        self.max_size, self.max_bytes = max_size, max_bytes
        self.ttl, self.tti = ttl, tti
        self.clock = ManualClock(start)
        # No room in the background: what is refreshed is refreshed in place.
        self.threads, _refresh._threads = _refresh._threads, _refresh.Threads(0, 0.0)
        self.told: list[tuple[int, Any, str]] = []
        self.cache: Cache[Any, Value] = Cache(
            max_size,
            policy=self.policy,
            ttl=ttl,
            tti=tti,
            max_bytes=max_bytes,
            weigher=None if max_bytes is None else lambda _, value: value.weight,
            on_evict=lambda key, value, cause: self.told.append((number(key), value, cause)),
            clock=self.clock,
        )
        self.entries: OrderedDict[int, Entry] = OrderedDict()
        self.left: list[tuple[int, Any, str]] = []
        self.counts: Counter[str] = Counter()

    def teardown(self) -> None:
        if hasattr(self, "threads"):
            _refresh._threads = self.threads

    # ── the model

    def expires(self, entry: Entry) -> int:
        return min(entry.deadline, entry.touched + self.tti * NS if self.tti else FAR)

    def expire(self) -> None:
        """Drops the dead. The cache drops them later, which nobody may notice."""
        now = self.clock.now_ns()
        for key, entry in list(self.entries.items()):
            if self.expires(entry) <= now:
                del self.entries[key]

    def leave(self, key: int, cause: str) -> Entry:
        entry = self.entries.pop(key)
        self.left.append((key, entry.value, cause))
        return entry

    def fresh(self) -> dict[int, Entry]:
        """What anybody sees, in order."""
        now = self.clock.now_ns()
        return {key: one for key, one in self.entries.items() if one.state(now) == "fresh"}

    def weight(self) -> int:
        return sum(entry.value.weight for entry in self.entries.values()) if self.max_bytes else 0

    def look_up(self, key: int) -> Value | None:
        entry = self.fresh().get(key)
        self.counts["misses" if entry is None else "hits"] += 1
        if entry is None:
            return None
        self.touch(key)
        assert isinstance(entry.value, Value)
        return entry.value

    def touch(self, key: int) -> None:
        self.entries[key].touched = self.clock.now_ns()
        self.entries.move_to_end(key)

    def store(
        self,
        key: int,
        value: Value | No,
        ttl: int | None = None,
        tags: Any = (),
        grace: int = 0,
    ) -> None:
        heavy = self.max_bytes is not None and value.weight > self.max_bytes
        if key in self.entries:
            self.leave(key, "replaced")
            self.counts["updates"] += not heavy
        if heavy:
            self.counts["rejections"] += 1
            return
        self.counts["insertions"] += 1
        self.make_room(value.weight)
        now = self.clock.now_ns()
        ttl = self.ttl if ttl is None else ttl
        end = FAR if ttl is None else now + ttl * NS
        tags = list(dict.fromkeys(tags))
        self.entries[key] = Entry(value, now, end, end + grace * NS, now, tags)

    def is_too_full(self, more: int = 0, weight: int = 0) -> bool:
        """Whether so many more entries of that weight in sum do not fit."""
        return len(self.entries) + more > self.max_size or (
            self.max_bytes is not None and self.weight() + weight > self.max_bytes
        )

    def make_room(self, weight: int) -> None:
        while self.is_too_full(1, weight):
            self.leave(next(iter(self.entries)), "evicted")
            self.counts["evictions"] += 1

    # ── what is done to both

    @rule(by=st.integers(0, 6 * NS) | SECONDS.map(lambda s: s * NS))
    def advance(self, by: int) -> None:
        self.clock._advance_ns(by)
        self.expire()

    @rule(key=KEYS, way=st.sampled_from(["get", "[]"]))
    def get(self, key: tuple[int, Any], way: str) -> None:
        expected = self.look_up(key[0])
        if way == "get":
            assert self.cache.get(key[1]) is expected
        elif expected is not None:
            assert self.cache[key[1]] is expected
        else:
            with pytest.raises(KeyError):
                self.cache[key[1]]

    @rule(key=KEYS)
    def see(self, key: tuple[int, Any]) -> None:
        entry = self.entries.get(key[0])
        assert (key[1] in self.cache) == (key[0] in self.fresh())
        facts = self.cache.explain(key[1])
        assert facts["present"] == (entry is not None)
        if entry is not None:
            now, expires = self.clock.now_ns(), self.expires(entry)
            left = None if expires >= FAR else (expires - now) / NS
            assert facts["expires_in_seconds"] == (left if left is None else pytest.approx(left))
            assert facts["age_seconds"] == pytest.approx((now - entry.written) / NS)
            assert facts["state"] == entry.state(now)
            end = 0 if entry.state(now) == "negative" else min(entry.end, expires)
            fresh = None if end >= FAR else max(0, end - now) / NS
            assert facts["fresh_for_seconds"] == (fresh if fresh is None else pytest.approx(fresh))
            assert facts["weight"] == (entry.value.weight if self.max_bytes else 0)
            assert facts["tags"] == entry.tags

    @rule(key=KEYS, value=VALUES)
    def put(self, key: tuple[int, Any], value: Value) -> None:
        self.store(key[0], value)
        self.cache[key[1]] = value

    @rule(
        key=KEYS,
        value=VALUES,
        ttl=st.none() | SECONDS,
        tags=st.lists(st.sampled_from("xyz"), max_size=3),
    )
    def put_with(
        self, key: tuple[int, Any], value: Value, ttl: int | None, tags: list[str]
    ) -> None:
        self.store(key[0], value, ttl, tags)
        self.cache.set(key[1], value, ttl=ttl, tags=tags)

    @rule(
        key=KEYS,
        brings=VALUES | st.builds(No, st.just("no")),
        ttl=st.none() | SECONDS,
        tags=st.lists(st.sampled_from("xyz"), max_size=2),
        stale=st.none() | SECONDS,
        on_error=st.none() | SECONDS,
        negative=st.none() | SECONDS,
        skips=st.booleans(),
    )
    def load_by_terms(
        self,
        key: tuple[int, Any],
        brings: Value | No,
        ttl: int | None,
        tags: list[str],
        stale: int | None,
        on_error: int | None,
        negative: int | None,
        skips: bool,
    ) -> None:
        if ttl is None and self.ttl is None:
            ttl = 5

        def factory() -> Value:
            if isinstance(brings, No):
                raise brings
            return brings

        try:
            found: Value | No = self.cache.get_or_set_sync(
                key[1],
                factory,
                ttl=ttl,
                tags=tags,
                stale_while_revalidate=stale,
                stale_if_error=on_error,
                negative_ttl=None if negative is None else {KeyError: 1, LookupError: negative},
                skip_if=lambda _: skips,
            )
        except No as error:
            found = error
        assert found is self.answer(key[0], brings, ttl, tags, stale, on_error, negative, skips)

    def answer(
        self,
        key: int,
        brings: Value | No,
        ttl: int | None,
        tags: list[str],
        stale: int | None,
        on_error: int | None,
        negative: int | None,
        skips: bool,
    ) -> Value | No:
        now, entry, grace = (
            self.clock.now_ns(),
            self.entries.get(key),
            max(stale or 0, on_error or 0),
        )
        state = "absent" if entry is None else entry.state(now)
        within = stale or 0
        if entry is not None and (state in ("fresh", "negative") or now - entry.end < within * NS):
            self.counts["hits"] += 1
            self.touch(key)
            if state == "fresh":
                return entry.value
            self.counts[f"{state}_hits"] += 1
            if state == "negative" or now < entry.asked + NS:
                return entry.value
            entry.asked = now
            self.counts["refreshes"] += 1
            if isinstance(brings, No):
                self.counts["refresh_failures"] += 1
                return entry.value
            if not skips:
                self.store(key, brings, ttl, tags, grace)
            return brings
        self.counts["misses"] += 1
        if isinstance(brings, Value):
            if not skips:
                self.store(key, brings, ttl, tags, grace)
            return brings
        if entry is None:
            if negative is not None:
                self.store(key, brings, negative, tags)
        elif now - entry.end < (on_error or 0) * NS:
            self.counts["stale_on_error"] += 1
            return entry.value
        return brings

    @rule(key=KEYS, value=VALUES, way=st.sampled_from(["load", "setdefault"]))
    def load(self, key: tuple[int, Any], value: Value, way: str) -> None:
        entry = self.entries.get(key[0])
        if way == "load" and entry is not None and isinstance(entry.value, No):
            with pytest.raises(No) as caught:
                self.cache.get_or_set_sync(key[1], lambda: value)
            assert caught.value is self.answer(key[0], value, None, [], None, None, None, False)
            return
        expected = self.look_up(key[0])
        if expected is None:
            expected = value
            self.store(key[0], value)
        if way == "load":
            assert self.cache.get_or_set_sync(key[1], lambda: value) is expected
        else:
            assert self.cache.setdefault(key[1], value) is expected

    @rule(key=KEYS, way=st.sampled_from(["delete", "del", "pop", "pop or"]))
    def delete(self, key: tuple[int, Any], way: str) -> None:
        there, seen = key[0] in self.entries, key[0] in self.fresh()
        value = self.leave(key[0], "deleted").value if there else None
        value = value if seen else None
        ways: dict[str, Callable[[], object]] = {
            "delete": lambda: self.cache.delete(key[1]),
            "del": lambda: self.cache.__delitem__(key[1]),
            "pop": lambda: self.cache.pop(key[1]),
            "pop or": lambda: self.cache.pop(key[1], None),
        }
        if way in ("del", "pop") and not seen:
            with pytest.raises(KeyError):
                ways[way]()
            return
        expected = {"delete": there, "del": None}.get(way, value)
        assert ways[way]() is expected

    @rule()
    def popitem(self) -> None:
        if not self.fresh():
            with pytest.raises(KeyError):
                self.cache.popitem()
            return
        oldest = next(iter(self.fresh()))
        value = self.leave(oldest, "deleted").value
        key, popped = self.cache.popitem()
        assert (number(key), popped) == (oldest, value)

    @precondition(lambda self: len(self.entries) > 2)
    @rule()
    def clear(self) -> None:
        self.check_what_left()
        live = {(key, entry.value, "cleared") for key, entry in self.entries.items()}
        self.entries.clear()
        self.told.clear()
        self.cache.clear()
        cleared = [told for told in self.told if told[2] != "expired"]
        assert set(cleared) == live
        assert len(cleared) == len(live)
        self.counts["expirations"] += len(self.told) - len(live)
        self.counts["cleared"] += len(live)
        self.told.clear()

    @rule(tag=st.sampled_from("xyz"))
    def invalidate(self, tag: str) -> None:
        # In no promised order among themselves.
        self.check_what_left()
        gone = [key for key, entry in self.entries.items() if tag in entry.tags]
        assert self.cache.invalidate_tag(tag) == len(gone)
        self.counts["invalidations"] += len(gone)
        told = [one for one in self.told if one[2] != "expired"]
        assert len(told) == len(gone)
        assert set(told) == {(key, self.entries.pop(key).value, "invalidated") for key in gone}
        self.counts["left"] += len(gone)
        self.counts["expirations"] += len(self.told) - len(told)
        self.told.clear()

    @rule()
    def cleanup(self) -> None:
        self.check_what_left()
        swept = self.cache.cleanup()
        assert [cause for *_, cause in self.told] == ["expired"] * swept
        assert self.cache.cleanup() == 0

    @rule()
    def count(self) -> None:
        assert len(self.cache) == len(self.fresh())

    @rule()
    def statistics_agree(self) -> None:
        stats = self.cache.get_stats()
        self.check_what_left()
        assert stats["size"] == len(self.entries)
        assert stats["bytes"] == self.weight()
        for name in (
            *("hits", "misses", "insertions", "updates"),
            *("evictions", "expirations", "invalidations", "rejections"),
            *("stale_hits", "negative_hits", "stale_on_error", "refreshes", "refresh_failures"),
        ):
            assert stats[name] == self.counts[name], name  # type: ignore[literal-required]
        # Whatever came in is there or was told to have left.
        gone = self.counts["left"] + self.counts["expirations"] + self.counts["cleared"]
        assert stats["insertions"] == len(self.entries) + gone

    @rule()
    def reset_statistics(self) -> None:
        self.statistics_agree()
        self.cache.reset_stats()
        self.counts = Counter(insertions=0)
        # The law above counts from the beginning; so must what is there now.
        self.counts["left"] = -len(self.entries)

    # ── what always holds

    def check_what_left(self) -> None:
        """The listener was told what the model says, in its order; besides, of the dead."""
        dead = [one for one in self.told if one[2] == "expired"]
        self.counts["expirations"] += len(dead)
        self.counts["left"] += len(self.told) - len(dead)
        told = [one for one in self.told if one[2] != "expired"]
        expected, self.left = self.left, []
        self.told.clear()
        assert told == expected

    @invariant()
    def order_and_bounds(self) -> None:
        if not hasattr(self, "cache"):
            return
        snapshot = list(self.cache.items())
        assert [number(key) for key, _ in snapshot] == list(self.fresh())
        assert [value for _, value in snapshot] == [one.value for one in self.fresh().values()]
        assert len(self.entries) <= self.max_size
        assert self.max_bytes is None or self.weight() <= self.max_bytes
        self.check_what_left()


class AdaptiveModel(CacheModel):
    """The same with the policy's own choice of what leaves: anything but the newest."""

    policy = "adaptive"

    def make_room(self, weight: int) -> None:
        """That is seen when it is told."""

    def store(self, key: int, *arguments: Any, **named: Any) -> None:
        self.newest = key
        super().store(key, *arguments, **named)

    def check_what_left(self) -> None:
        chosen = [one for one in self.told if one[2] == "evicted"]
        self.told = [one for one in self.told if one[2] != "evicted"]
        for key, value, _ in chosen:
            assert self.is_too_full(), "in vain"
            assert key != self.newest
            assert self.entries.pop(key).value is value
        assert not self.is_too_full()
        self.counts["evictions"] += len(chosen)
        self.counts["left"] += len(chosen)
        super().check_what_left()

    @invariant()
    def order_and_bounds(self) -> None:
        if hasattr(self, "cache"):
            self.check_what_left()
            super().order_and_bounds()


def number(key: Any) -> int:
    """Which key it is, however it was spelled."""
    return next(n for n, row in enumerate(SPELLINGS) if key in row)


EXAMPLES = times(100, 5_000)
for model in (CacheModel, AdaptiveModel):
    model.TestCase.settings = settings(max_examples=EXAMPLES, stateful_step_count=50, deadline=None)
pytestmark = [pytest.mark.soak, pytest.mark.timeout(patience(0.1, EXAMPLES))]
TestCache = CacheModel.TestCase
TestAdaptiveCache = AdaptiveModel.TestCase
