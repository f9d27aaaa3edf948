"""Where a service is, and what says so when it cannot be there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from ferrogate import CacheService


def test_a_subclass_does_not_lose_its_store(tmp_path: Path) -> None:
    url = f"sqlite://{tmp_path}/cache.db"

    class Passes(CacheService):
        def __init__(self) -> None:
            super().__init__(url, default_ttl=5)

    class Renames(CacheService):
        def __init__(self, path: str) -> None:
            super().__init__(f"sqlite://{path}")

    class Adds(CacheService):
        def __init__(self, url: str, **arguments: Any) -> None:
            super().__init__(url, **arguments)
            self.more = 1

    class Makes(CacheService):
        def __new__(cls, path: Path) -> Makes:
            return super().__new__(cls, path, default_ttl=5)

        def __init__(self, path: Path) -> None:
            super().__init__()

    with pytest.raises(TypeError, match=r"override Passes\.__new__ instead"):
        Passes()
    with pytest.raises(ValueError, match=r"^url: ") as caught:
        Renames(str(tmp_path))
    assert caught.value.__notes__ == ["Renames has an __init__, but a service is made in __new__"]
    with Adds(url, default_ttl=5) as cache:
        assert (cache.name, cache.more) == ("sqlite", 1)
    with Makes(tmp_path / "cache.db") as cache:
        assert cache.name == "sqlite"


@pytest.mark.parametrize("name", ["a b", "100%41", "a#b?c", "a\nb", "ü"])
def test_a_path_is_a_url(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    with CacheService(folder / "cache.db") as cache:
        assert cache.set_sync("ns", "k", 1)
        assert cache.name == "sqlite"
    assert (folder / "cache.db").exists()
    assert sorted(os.listdir(tmp_path)) == [name]


def test_a_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for url in (Path("one.db"), "sqlite:///./two.db", f"sqlite:///{tmp_path}/three.db"):
        with CacheService(url) as cache:
            assert cache.set_sync("ns", "k", 1)
    assert {"one.db", "two.db", "three.db"} <= set(os.listdir(tmp_path))


@pytest.mark.parametrize(
    ("url", "message"),
    [
        (5, "got int"),
        ("sqlite:agent.db", "expected '//' behind 'sqlite:'"),
        ("memory:", "expected '//' behind 'memory:'"),
        ("sqlite:///:memory:", "write 'memory://'"),
        ("sqlite:///a\nb.db", "no control characters"),
        ("sqlite://[", "Invalid IPv6 URL"),
        ("sqlite://agent.db", r"'sqlite:///\./agent\.db'"),
        ("memory://me:secret@x", r"nothing behind it, got 'memory://me:\*\*\*@x'"),
        ("agent.db", r"a pathlib\.Path"),
    ],
)
def test_what_is_no_url(url: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"^url: .*{message}"):
        CacheService(url)


def test_where_no_file_can_be(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="its directory does not exist"):
        CacheService(tmp_path / "missing" / "cache.db")
    with pytest.raises(IsADirectoryError, match="got a directory"):
        CacheService(tmp_path)
    with pytest.raises(ValueError, match=r"^readers: expected at most 64"):
        CacheService(tmp_path / "cache.db", readers=10**9)
