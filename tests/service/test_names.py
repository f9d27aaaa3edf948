"""Functions whose results a namespace keeps, and what they are called there."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from child import patience
from services import Open

from ferrogate import CacheService

SCRIPT = """
import sys
from ferrogate import CacheService
cache = CacheService(sys.argv[1])
@cache.namespace("llm").cached
def ask(question):
    return WHO + ": " + question
WHO = {who!r}
print(ask("hi"))
cache.close_sync()
"""


@pytest.mark.timeout(patience(60, 5))
def test_two_scripts_share_nothing(tmp_path: Path) -> None:
    url = f"sqlite://{tmp_path}/cache.db"

    def run(*command: str) -> str:
        return subprocess.run(
            [sys.executable, *command, url],
            cwd=tmp_path,
            # Where Python is told not to look into the working directory, it is to find `asker`.
            env=os.environ | {"PYTHONPATH": str(tmp_path)},
            check=True,
            capture_output=True,
            text=True,
            timeout=60,
        ).stdout.strip()

    for folder, who in (("one", "A"), ("other", "B")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "main.py").write_text(SCRIPT.format(who=who))
    assert run("one/main.py") == "A: hi"
    assert run("other/main.py") == "B: hi"
    # The same script, from elsewhere and another time.
    (tmp_path / "one" / "main.py").write_text(SCRIPT.format(who="A again"))
    assert run("other/../one/main.py") == "A: hi"
    # As a module it is what those have who import it.
    (tmp_path / "asker.py").write_text(SCRIPT.format(who="C"))
    assert run("-m", "asker") == "C: hi"
    (tmp_path / "asker.py").write_text(SCRIPT.format(who="C again"))
    assert run("-c", "import asker") == "C: hi"


def test_a_notebook_s_cells_go_by_their_names() -> None:
    view = CacheService().namespace("llm")
    cell = "def ask(q):\n    return WHO + q"
    first = {"__name__": "__main__", "WHO": "A"}
    again = {"__name__": "__main__", "WHO": "B"}
    exec(cell, first)
    exec(cell, again)
    assert view.cached(first["ask"])("?") == view.cached(again["ask"])("?") == "A?"


def test_a_name_of_one_s_own(service: Open) -> None:
    view = service().namespace("llm")
    assert view.cached(name="ask")(lambda x: x + 1)(1) == 2
    assert view.cached(name="ask")(lambda x: x + 2)(1) == 2
    assert view.cached(name="ask.v2")(lambda x: x + 2)(1) == 3


async def words(text: str) -> Any:
    yield text


def letters(text: str) -> Any:
    yield from text


class Thing:
    def method(self, x: int) -> int:
        return x


def open_ended(x: int, **options: Any) -> int:
    return x


def test_what_cannot_be_cached() -> None:
    view = CacheService().namespace("functions")
    for stream in (words, letters):
        with pytest.raises(TypeError, match=r"is a generator, .*ferrogate\.cached keeps streams"):
            view.cached(stream)
    with pytest.raises(TypeError, match="write @classmethod above it"):
        view.cached(classmethod(len))
    with pytest.raises(ValueError, match=r"^ignore: Thing\.method has no parameter 'zzz'; it has"):
        view.cached(ignore=("zzz",))(Thing.method)
    with pytest.raises(TypeError, match=r"^ignore: "):
        view.cached(ignore=5)(Thing.method)
    with pytest.raises(TypeError, match=r"^key: expected a function, got int"):
        view.cached(key=5)(Thing.method)
    with pytest.raises(TypeError, match=r"^name: "):
        view.cached(name=5)(Thing.method)
    with pytest.raises(TypeError, match=r"^self: cannot make a cache key .* ignore="):
        view.cached(Thing.method)(Thing(), 1)
    with pytest.raises(ValueError, match=r"^key: .*Thing\.method takes self from around it"):
        view.cached(Thing().method)
    assert view.cached(Thing().method, name="one thing")(2) == 2
    cached = view.cached(ignore=("session",))(open_ended)
    assert cached.cache_key(1, session=object()) == cached.cache_key(1, session=object())
    assert cached.cache_key(1, session=1) != cached.cache_key(1, session=1, other=2)


def test_cache_invalidate_has_a_twin(service: Open) -> None:
    cached = service().namespace("functions").cached(open_ended)
    assert cached(1) == 1
    assert asyncio.run(cached.cache_invalidate_async(1))
    assert not cached.cache_invalidate(1)
