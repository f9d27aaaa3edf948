"""What goes in comes out equal, or does not go in."""

from __future__ import annotations

import collections
import datetime
import enum
import json
import math
import struct
import subprocess
import sys
from pathlib import Path
from random import Random
from typing import Any

import pytest
from child import SEED, patience, times
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from services import Open

from ferrogate import CacheService

KEY = b"0123456789abcdef"
SCALARS = st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False)
SCALARS |= st.text(st.characters(exclude_categories=["Cs"]))


def trees(leaves: st.SearchStrategy[Any], keys: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.recursive(
        leaves,
        lambda inner: st.lists(inner, max_size=5) | st.dictionaries(keys, inner, max_size=5),
        max_leaves=20,
    )


TEXT = st.text(st.characters(exclude_categories=["Cs"]))
JSON = trees(SCALARS | st.integers(-(10**40), 10**40), TEXT)
MSGPACK = trees(SCALARS | st.integers(-(2**63), 2**64 - 1) | st.binary(), TEXT | st.integers(0, 9))


def same(one: Any, other: Any) -> bool:
    """Equal with equal types all the way down."""
    if type(one) is not type(other):
        return False
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[k], other[k]) for k in one)
    if isinstance(one, float):
        return struct.pack("d", one) == struct.pack("d", other)
    return bool(one == other)


@given(JSON)
@settings(suppress_health_check=[HealthCheck.too_slow])
def test_json(value: Any) -> None:
    service = CacheService(compress_over=64)
    assert service.set_sync("ns", "k", value)
    assert same(service.get_sync("ns", "k"), value)


@given(MSGPACK)
@settings(suppress_health_check=[HealthCheck.too_slow])
def test_msgpack(value: Any) -> None:
    service = CacheService(codec="msgpack", compress_over=64)
    assert service.set_sync("ns", "k", value)
    assert same(service.get_sync("ns", "k"), value)


class Text(str):
    pass


class Number(enum.IntEnum):
    SEVEN = 7


@pytest.mark.parametrize(
    ("codec", "value"),
    [
        ("json", {"a": [Text("x"), Number.SEVEN]}),
        ("msgpack", [Number.SEVEN, b"x", {1: 2}]),
        ("bytes", b"\x00\xf5"),
        ("bytes", bytearray(b"abc")),
        ("pickle", (1, {2}, datetime.date(2026, 1, 1))),
    ],
)
def test_equal(service: Open, codec: Any, value: Any) -> None:
    hmac_key = KEY if codec == "pickle" else None
    writer = service(codec=codec, hmac_key=hmac_key)
    assert writer.set_sync("ns", "k", value)
    assert writer.get_sync("ns", "k") == value


RECURSIVE: list[Any] = []
RECURSIVE.append(RECURSIVE)


@pytest.mark.parametrize(
    ("codec", "value", "says"),
    [
        ("json", {"a": {"b": [1, (2,)]}}, r"^value\['a'\]\['b'\]\[1\]: tuple"),
        ("json", {"a": {1: 2}}, r"^value\['a'\]\[1\]: int as a key"),
        ("json", [b"x"], r"^value\[0\]: bytes"),
        ("json", [float("nan")], r"^value\[0\]: NaN"),
        ("json", {"when": datetime.date(2026, 1, 1)}, r"^value\['when'\]: date"),
        ("json", "\ud800", "lone surrogate"),
        ("json", RECURSIVE, "contains itself"),
        ("msgpack", [2**64], r"^value\[0\]: an int of more than 64 bits"),
        ("msgpack", {"a": {1, 2}}, r"^value\['a'\]: set"),
        ("msgpack", RECURSIVE, "contains itself"),
        ("bytes", "text", "str is no bytes"),
        ("pickle", lambda: None, "pickle"),
    ],
)
def test_refused_with_its_path(service: Open, codec: Any, value: Any, says: str) -> None:
    writer = service(codec=codec, hmac_key=KEY if codec == "pickle" else None)
    writer.set_sync("ns", "k", b"old" if codec == "bytes" else "old")
    with pytest.raises(TypeError, match=says):
        writer.set_sync("ns", "k", value)
    # Nothing half-written.
    assert writer.get_sync("ns", "k") == (b"old" if codec == "bytes" else "old")


def test_a_value_that_is_too_large(service: Open) -> None:
    writer = service(max_value_bytes=100)
    with pytest.raises(ValueError, match="max_value_bytes is 100"):
        writer.set_sync("ns", "k", "x" * 100)
    assert writer.set_sync("ns", "k", "x" * 98)
    assert writer.get_stats()["rejections"] == 1


def test_a_foreign_codec_is_a_counted_miss(sqlite: Open) -> None:
    sqlite(codec="msgpack").set_sync("ns", "k", {"a": 1})
    for codec in ("json", "bytes"):
        reader = sqlite(codec=codec)
        assert reader.get_sync("ns", "k") is None
        assert reader.get_stats()["unreadable"] == 1
        assert reader.get_stats()["misses"] == 1
        assert reader.get_stats()["hits"] == 0


def test_a_wrong_signature_is_a_counted_miss(sqlite: Open) -> None:
    sqlite(codec="pickle", hmac_key=KEY).set_sync("ns", "k", (1, 2))
    reader = sqlite(codec="pickle", hmac_key=b"another key of 16+")
    assert reader.get_sync("ns", "k") is None
    assert reader.get_stats()["unreadable"] == 1
    assert sqlite(codec="pickle", hmac_key=KEY.decode()).get_sync("ns", "k") == (1, 2)


def test_a_signed_value_is_good_where_it_was_put_and_nowhere_else(sqlite: Open) -> None:
    writer = sqlite(codec="pickle", hmac_key=KEY)
    writer.set_sync("ns", "k", "user")
    writer.set_sync("ns", "admin", "admin")
    copied = "(SELECT value FROM entries WHERE key = 'admin')"
    assert raw(writer, f"UPDATE entries SET value = {copied} WHERE key = 'k'") == 1
    reader = sqlite(codec="pickle", hmac_key=KEY)
    assert reader.get_sync("ns", "k") is None
    assert reader.get_stats()["unreadable"] == 1
    assert reader.get_sync("ns", "admin") == "admin"


GARBAGE = [
    b"", b"{", b'{"a":}', b"[1,]", b"01", b"1.", b"nul", b'"\\ud800"', b'"\x01"', b"\xff", b"NaN",
    b"1e999", b"[" * 5000, b"{}x", b"\xf5", b"\xf5j", b"\xf5j\x01garbage", b'"\\u12"', b"-",
]  # fmt: skip


@pytest.mark.parametrize("garbage", GARBAGE)
def test_garbage_in_the_store_is_a_counted_miss(sqlite: Open, garbage: bytes) -> None:
    # Two services, so that neither's near cache has it.
    sqlite(codec="bytes").set_sync("ns", "other", b"")
    writer, reader = sqlite(codec="bytes"), sqlite()
    writer.set_sync("ns", "k", garbage)
    # The frame of the bytes codec goes; its body stays.
    rows = raw(writer, "UPDATE entries SET value = substr(value, 4) WHERE key = 'k'")
    assert rows == 1
    assert reader.get_sync("ns", "k") is None
    assert reader.get_stats()["unreadable"] == 1


def raw(service: CacheService, statement: str) -> int:
    """Runs SQL on the file, from another process as it must be."""
    service.close_sync()
    code = (
        "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); "
        "print(c.execute(sys.argv[2]).rowcount); c.commit()"
    )
    path = service.url.removeprefix("sqlite://")
    done = subprocess.run(
        [sys.executable, "-c", code, path, statement], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


STORES = """
import json, sqlite3, sys
file = sqlite3.connect(sys.argv[1])
for key, value in json.load(sys.stdin):
    file.execute("UPDATE entries SET value = ? WHERE key = ?", (bytes.fromhex(value), key))
file.commit()
"""


def stored(service: Open, codec: Any, bodies: list[bytes]) -> list[Any]:
    """What a reader makes of these bytes in the store; ``UNREADABLE`` for a miss."""
    writer = service(codec="bytes", max_entries=10**7)
    for number in range(len(bodies)):
        assert writer.set_sync("ns", str(number), b"")
    writer.close_sync()
    command = [sys.executable, "-c", STORES, writer.url.removeprefix("sqlite://")]
    rows = json.dumps([(str(number), body.hex()) for number, body in enumerate(bodies)])
    subprocess.run(command, input=rows, text=True, check=True)
    reader = service(codec=codec, max_entries=10**7)
    found = [reader.get_sync("ns", str(n), UNREADABLE) for n in range(len(bodies))]
    stats = reader.get_stats()
    missed = sum(one is UNREADABLE for one in found)
    assert (stats["unreadable"], stats["misses"]) == (missed, missed)
    assert stats["hits"] == len(bodies) - missed
    return found


UNREADABLE = object()


@pytest.mark.parametrize(
    ("codec", "before", "inside", "behind"),
    [
        ("json", b"[", b"[]", b"]"),
        ("json", b'{"k":', b"{}", b"}"),
        ("msgpack", b"\x91", b"\x90", b""),
        ("msgpack", b"\x81\xa1k", b"\x80", b""),
    ],
)
def test_what_can_be_read_can_be_written(
    sqlite: Open, codec: Any, before: bytes, inside: bytes, behind: bytes
) -> None:
    frame = b"\xf5m\x00" if codec == "msgpack" else b""
    bodies = [frame + before * depth + inside + behind * depth for depth in (199, 200)]
    deepest, deeper = stored(sqlite, codec, bodies)
    assert sqlite(codec=codec).set_sync("ns", "again", deepest)
    assert deeper is UNREADABLE


def tree(random: Random, depth: int = 0) -> Any:
    """A value that both codecs carry."""
    match random.randrange(9 if depth < 4 else 7):
        case 0:
            return random.choice([None, True, False])
        case 1:
            return random.choice([0, -1, 2**63 - 1, -(2**63), 127, 128, 255, 256, 65536, -33])
        case 2:
            return random.choice([0.0, -0.0, 1.5, 1e308, 5e-324, -2.5e-7])
        case 3 | 4:
            return "".join(random.choices('ab"\\\n\té€\U0001f600\x00/u', k=random.randrange(40)))
        case 5 | 6:
            return random.randrange(-(2 ** random.randrange(1, 63)), 2 ** random.randrange(1, 63))
        case 7:
            return [tree(random, depth + 1) for _ in range(random.randrange(5))]
        case _:
            return {f"k{n}": tree(random, depth + 1) for n in range(random.randrange(5))}


def damaged(random: Random, body: bytes) -> bytes:
    """Cut off, with bytes changed, put in, left out or doubled, or not at all."""
    made = bytearray(body)
    for _ in range(random.randrange(4)):
        at = random.randrange(len(made) + 1)
        match random.randrange(6):
            case 0:
                del made[at:]
            case 1:
                made[at : at + 1] = bytes([random.randrange(256)])
            case 2:
                made[at:at] = random.choice([b"0", b"-", b",", b'"', b"[", b"}", b"\xf5", b" "])
            case 3:
                del made[at : at + random.randrange(1, 4)]
            case 4:
                made += made[at:]
            case _:
                made[at:at] = random.choice([b"\\ud83d", b"\\u0000", b"1e999", b"NaN", b"\xc0\x80"])
    return bytes(made)


def strict(text: bytes) -> Any:
    """What the standard library makes of RFC 8259's JSON, or a ValueError."""

    def refuse(what: str) -> Any:
        raise ValueError(what)

    def finite(what: str) -> float:
        return number if math.isfinite(number := float(what)) else refuse(what)

    value = json.loads(text.decode(), parse_constant=refuse, parse_float=finite)
    json.dumps(value, ensure_ascii=False).encode()  # no lone surrogates
    return value


@pytest.mark.timeout(patience(0.01, times(3_000, 30_000)))
def test_json_is_what_the_standard_library_says_or_a_miss(sqlite: Open) -> None:
    random = Random(SEED)
    bodies = [
        damaged(random, json.dumps(tree(random), ensure_ascii=random.random() < 0.5).encode())
        for _ in range(times(3_000, 30_000))
    ]
    readable = 0
    for body, found in zip(bodies, stored(sqlite, "json", bodies), strict=True):
        try:
            expected = strict(body)
        except (ValueError, UnicodeError):
            assert found is UNREADABLE, (body, found)
        else:
            assert same(found, expected), (body, found)
            readable += 1
    assert len(bodies) // 10 < readable < len(bodies)


@pytest.mark.timeout(patience(0.01, times(3_000, 30_000)))
def test_damaged_msgpack_is_a_value_or_a_miss(sqlite: Open) -> None:
    """There is no reference here: what is read has to be what writes the same bytes again."""
    random = Random(SEED)
    bodies = []
    for _ in range(times(3_000, 30_000)):
        # Its own bytes, as a string that MessagePack carries as it is: 0xd9, length, text.
        text = "".join(random.choices("aé€", k=random.randrange(32, 80))).encode()[:255]
        body = b"\xd9" + bytes([len(text)]) + text
        bodies.append(b"\xf5m\x00" + damaged(random, random.choice([body, b"\x93\x01\xc3" + body])))
    again = CacheService(codec="msgpack")
    found = stored(sqlite, "msgpack", bodies)
    for body, value in zip(bodies, found, strict=True):
        if value is UNREADABLE:
            continue
        assert again.set_sync("ns", "k", value)
        assert same(again.get_sync("ns", "k"), value), (body, value)
    assert sum(one is UNREADABLE for one in found) > len(bodies) // 10
    assert sum(one is not UNREADABLE for one in found) > len(bodies) // 10


def test_plain_json_in_the_store_is_readable_by_others(sqlite: Open) -> None:
    writer = sqlite(compress_over=None)
    writer.set_sync("ns", "k", {"a": [1, "é"]})
    assert raw(writer, 'UPDATE entries SET used = 0 WHERE json(value) = \'{"a":[1,"é"]}\'') == 1


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"codec": "yaml"}, ValueError, "codec: expected"),
        ({"codec": "pickle"}, ValueError, "hmac_key: .* needs a secret"),
        ({"codec": "pickle", "hmac_key": "short"}, ValueError, "at least 16 bytes"),
        ({"codec": "pickle", "hmac_key": 5}, TypeError, "hmac_key: expected bytes"),
        ({"hmac_key": KEY}, ValueError, "only codec="),
        ({"default_ttl": 0}, ValueError, "default_ttl: expected a duration above 0"),
        ({"default_ttl": -(10**300)}, ValueError, "default_ttl: expected a duration .*0{60}…$"),
        ({"default_ttl": -(10**5000)}, ValueError, "default_ttl: .* got a number without end"),
        ({"default_ttl": "1"}, TypeError, "default_ttl: expected seconds"),
        ({"near_bytes": 0}, ValueError, "near_bytes: expected at least 1"),
        ({"max_value_bytes": True}, TypeError, "max_value_bytes: expected an int"),
        ({"compress_over": -1}, ValueError, "compress_over: expected at least 0"),
        ({"lease_seconds": -1}, ValueError, "lease_seconds: expected a duration above 0"),
        ({"lease_seconds": 1e-9}, ValueError, "lease_seconds: expected at least 0.1 .* got 1e-09"),
        (
            {"lease_seconds": datetime.timedelta(milliseconds=99)},
            ValueError,
            r"^lease_seconds: expected at least 0.1 seconds, got datetime.timedelta\(",
        ),
        ({"lease_seconds": -(10**5000)}, ValueError, "lease_seconds: .* a negative int of 16610 b"),
        ({"strict": 1}, TypeError, "strict: expected True or False"),
        ({"max_bytes": 1 << 20}, TypeError, "max_bytes: a memory:// service has no such option"),
        ({"nonsense": 1}, TypeError, "nonsense: a memory:// service has no such option"),
    ],
)
def test_wrong_arguments(arguments: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        CacheService("memory://", **arguments)


@pytest.mark.parametrize("ever", [math.inf, 10**400, 10**5000], ids=["inf", "long", "longer"])
def test_for_ever_as_a_number(tmp_path: Path, ever: float) -> None:
    url = f"sqlite://{tmp_path}/cache.db"
    with CacheService(url, lease_seconds=ever, default_ttl=ever) as cache:
        assert cache.set_sync("ns", "set", 1, ttl=ever)
        assert cache.get_sync("ns", "set") == 1
        assert cache.get_or_set_sync("ns", "k", lambda: 1, ttl=ever) == 1
        assert cache.namespace("ns", ttl=ever).get_sync("k") == 1
    with pytest.raises(ValueError, match=r"^busy_seconds: expected a finite duration"):
        CacheService(url, busy_seconds=ever)


@pytest.mark.parametrize(
    ("url", "error"),
    [
        ("mongodb://x", ValueError),
        ("", ValueError),
        ("memory", ValueError),
        ("memory://host", ValueError),
        ("sqlite://", ValueError),
        ("sqlite://host/x", ValueError),
        ("sqlite:///nowhere/at/all/c.db", OSError),
        ("sqlite:////", ValueError),
        (5, TypeError),
    ],
)
def test_wrong_urls(url: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="url: "):
        CacheService(url)


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda s: s.set_sync("ns", "k", 1, ttl=0), ValueError, "ttl: expected"),
        (lambda s: s.set_sync("ns", "k", 1, ttl="x"), TypeError, "ttl: expected"),
        (lambda s: s.set_sync("ns", "k", 1, tags="x"), TypeError, "tags: expected"),
        (lambda s: s.set_sync(1, "k", 1), TypeError, "ns: expected a str"),
        (lambda s: s.get_sync("ns", object()), TypeError, "key: cannot make"),
        (lambda s: s.get_sync("n" * 2000, "k"), ValueError, "ns: expected at most"),
    ],
)
def test_wrong_calls(service: Open, call: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        call(service())


def test_tags_that_no_store_could_find_again() -> None:
    cache = CacheService()
    for wrong in ("a\x1fb", "x" * 1025):
        with pytest.raises(ValueError, match=r"^tags: expected "):
            cache.set_sync("ns", "k", 1, tags=[wrong])
        with pytest.raises(ValueError, match=r"^tag: expected "):
            cache.invalidate_tag_sync(wrong)
    with pytest.raises(TypeError, match=r"^tag: expected a str, got int"):
        cache.invalidate_tag_sync(5)  # type: ignore[arg-type]


class Colour(enum.StrEnum):
    RED = "red"


class Size(enum.IntEnum):
    LARGE = 3


@pytest.mark.parametrize("codec", ["json", "msgpack"])
@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (collections.Counter("aab"), {"a": 2, "b": 1}),
        (collections.defaultdict(int, a=1), {"a": 1}),
        ([Colour.RED, Size.LARGE], ["red", 3]),
    ],
)
def test_subclasses_come_back_as_what_they_equal(codec: Any, value: Any, plain: Any) -> None:
    cache = CacheService(codec=codec)
    assert cache.set_sync("ns", "k", value)
    found = cache.get_sync("ns", "k")
    assert found == value == plain
    assert repr(found) == repr(plain)
