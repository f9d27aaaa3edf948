"""The pytest plugin; pytest finds it by itself where ferrogate is installed.

* ``ferrogate_clock``: a :class:`ferrogate.testing.ManualClock`.
* ``ferrogate_provider``: a :class:`ferrogate.testing.ScriptedProvider` that
  listens until the test ends.
* ``ferrogate_bypass``, as a fixture or as ``@pytest.mark.ferrogate_bypass``:
  every component is a transparent no-op during the test.
* After each test every component is reset, so that caches and limiters made at
  import do not carry one test's state into the next. ``ferrogate_reset = false``
  in pytest's configuration leaves them alone, and so does
  ``@pytest.mark.ferrogate_keep`` after one test.

The fixtures are plain functions: they serve ``async def`` tests of
pytest-asyncio and anyio as well as those that call ``asyncio.run``.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from ferrogate.testing import ManualClock, ScriptedProvider

__all__ = ["ferrogate_bypass", "ferrogate_clock", "ferrogate_provider"]

_BYPASS = "ferrogate_bypass"
_KEEP = "ferrogate_keep"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the switch of the reset."""
    parser.addini(
        "ferrogate_reset", "reset ferrogate's components after each test", "bool", default=True
    )


def pytest_configure(config: pytest.Config) -> None:
    """Names the markers."""
    for marker in (
        f"{_BYPASS}: ferrogate's caches, limiters and the like are no-ops during the test",
        f"{_KEEP}: what ferrogate's caches, limiters and the like hold stays for the next test",
    ):
        config.addinivalue_line("markers", marker)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Has marked tests use the fixture, before any other of their own."""
    for item in items:
        if isinstance(item, pytest.Function) and item.get_closest_marker(_BYPASS) is not None:
            if _BYPASS in item.fixturenames:
                item.fixturenames.remove(_BYPASS)
            item.fixturenames.insert(0, _BYPASS)


# A wrapper of the old kind: the plugin is in every pytest of its environment, of whatever age.
@pytest.hookimpl(hookwrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, Any, None]:
    """Resets every component once the test and its fixtures are done."""
    outcome = yield
    if item.config.getini("ferrogate_reset") and item.get_closest_marker(_KEEP) is None:
        from ferrogate import _suites

        try:
            _suites.reset_all()
        except Exception as error:
            if outcome.excinfo is None:
                outcome.force_exception(error)


@pytest.fixture
def ferrogate_clock() -> ManualClock:
    """A clock that stands still; give it to components as ``clock=``."""
    from ferrogate.testing import ManualClock

    return ManualClock()


@pytest.fixture
def ferrogate_bypass() -> Iterator[None]:
    """Every component is a transparent no-op during the test."""
    from ferrogate.testing import bypass

    with bypass():
        yield


@pytest.fixture
def ferrogate_provider() -> Iterator[ScriptedProvider]:
    """A provider on a loopback port that answers as the test scripts it."""
    from ferrogate.testing import ScriptedProvider

    with ScriptedProvider() as provider:
        yield provider
