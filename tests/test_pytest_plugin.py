"""The pytest plugin in suites of its users."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys

import pytest

import ferrogate._scripted
import ferrogate.pytest_plugin

pytest_plugins = ["pytester"]

# `pytester` forgets what its runs have imported, but `ferrogate._core` loads once in a process.
IMPORTED = (ferrogate._scripted, ferrogate.pytest_plugin)

STATE = """
    import asyncio
    import pytest
    from ferrogate import Cache, RateLimiter, cached, rate_limited

    limiter = RateLimiter("2/minute", "5/hour", burst=1)
    kept = Cache(10)
    calls = []

    @cached(ttl=3600)
    def loaded(n):
        calls.append(n)
        return len(calls)

    @cached(ttl=3600)
    async def awaited(n):
        calls.append(n)
        return len(calls)

    @cached(ttl=3600)
    async def streamed(n):
        calls.append(n)
        yield len(calls)

    @rate_limited(limiter=limiter)
    def limited():
        return True

    @pytest.fixture(autouse=True)
    def count():
        calls.clear()
"""


def run(pytester: pytest.Pytester, tests: str, *options: str) -> pytest.RunResult:
    pytester.makepyfile(STATE + tests)
    # Without what the installed package may have registered: the sources are what is tested.
    mine = ("-p", "no:ferrogate", "-p", "ferrogate.pytest_plugin", "-W", "error")
    others = () if "asyncio_mode=auto" in options else ("-p", "no:asyncio")
    # An HTTP client imports much as it goes; forgotten and imported again, its exceptions are
    # others than those that the SDKs of later tests in this process wait for.
    here = "httpx2" not in tests
    start = pytester.runpytest_inprocess if here else pytester.runpytest_subprocess
    return start(*mine, *others, "--strict-markers", *options)


SPOILED = """
    def use():
        kept["a"] = 1
        assert (loaded(1), loaded(1)) == (1, 1)
        assert limiter.try_acquire()
        assert limiter.try_acquire()
        assert not limiter.try_acquire()
        assert limiter.try_acquire(key="k", cost=2)
        assert not limiter.try_acquire(key="k")

    def fresh():
        return not kept and loaded(1) == 1 and bool(limiter.try_acquire())
"""


def test_components_made_at_import_are_fresh_in_every_test(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        SPOILED
        + """
    @pytest.mark.parametrize("n", range(3))
    def test_function(n):
        use()
        assert kept.get_stats()["misses"] == 0

    class TestClass:
        def test_method(self):
            use()

    import unittest

    class TestCase(unittest.TestCase):
        def test_case(self):
            use()

    def test_failing():
        use()
        assert False

    def test_after_failing():
        use()
    """,
    )
    result.assert_outcomes(passed=6, failed=1)


def test_a_reset_that_fails_is_an_error_of_that_test(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
    from ferrogate import _suites

    class Broken:
        fails = False

        def _reset(self):
            if self.fails:
                raise OSError("cannot be reset")

    broken = Broken()
    _suites.register(broken)

    def test_first():
        pass

    def test_second():
        broken.fails = True

    def test_third():
        broken.fails = False

    @pytest.fixture
    def failing():
        kept["a"] = 1
        yield
        assert False, "its own"

    def test_fourth(failing):
        pass

    def test_fifth():
        assert not kept
    """,
    )
    result.assert_outcomes(passed=5, errors=2)
    result.stdout.fnmatch_lines(["*OSError: cannot be reset*", "*AssertionError: its own*"])


def test_the_reset_can_be_switched_off(pytester: pytest.Pytester) -> None:
    tests = (
        SPOILED
        + """
    def test_first():
        use()

    def test_second():
        assert not fresh()
    """
    )
    run(pytester, tests, "-o", "ferrogate_reset=false").assert_outcomes(passed=2)


def test_one_test_may_leave_its_state_to_the_next(pytester: pytest.Pytester) -> None:
    run(
        pytester,
        SPOILED
        + """
    @pytest.mark.ferrogate_keep
    def test_first():
        use()

    def test_second():
        assert kept == {"a": 1}
        assert not limiter.try_acquire()

    def test_third():
        assert fresh()
    """,
    ).assert_outcomes(passed=3)


BYPASSED = """
    def check():
        assert (loaded(1), loaded(1)) == (1, 2)

        async def main():
            assert (await awaited(1), await awaited(1)) == (3, 4)
            assert [n async for n in streamed(1)] == [5]
            assert [n async for n in streamed(1)] == [6]
            for _ in range(9):
                await limiter.acquire()
                async with limiter, limiter:
                    pass
            return await asyncio.gather(*(awaited(1) for _ in range(5)))

        assert len(set(asyncio.run(main()))) == 5
        kept["a"] = 1
        assert "a" not in kept
        assert all(limited() for _ in range(9))
        assert limiter.try_acquire(cost=2)
        assert limiter.eta() == 0
        assert not RateLimiter("1/minute").enabled
"""


def test_bypass_as_marker_and_as_fixture(pytester: pytest.Pytester) -> None:
    run(
        pytester,
        BYPASSED
        + """
    kept["a"] = 1
    loaded(1)

    @pytest.mark.ferrogate_bypass
    def test_marked():
        check()

    def test_fixture(ferrogate_bypass):
        check()

    @pytest.fixture
    def warmed():
        return loaded(1)

    @pytest.mark.ferrogate_bypass
    def test_before_other_fixtures(warmed):
        assert loaded(1) == warmed + 1

    @pytest.mark.ferrogate_bypass
    class TestClass:
        def test_method(self, ferrogate_bypass):
            check()

    def test_everything_works_again():
        assert (loaded(1), loaded(1)) == (1, 1)
        kept["a"] = 1
        assert kept["a"] == 1
        assert [limited(), limited()] == [True, True]
        assert not limiter.try_acquire()
        assert RateLimiter("1/minute").enabled
        for cls in (Cache, RateLimiter):
            assert "set" not in vars(cls) and "acquire" not in vars(cls)
    """,
    ).assert_outcomes(passed=5)


PROVIDED = """
    import httpx2

    def test_time_stands_still(ferrogate_clock):
        cache = Cache(10, ttl=60, clock=ferrogate_clock)
        cache["a"] = 1
        ferrogate_clock.advance(61)
        assert "a" not in cache

    async def ask(provider):
        asked = {"messages": [{"role": "user", "content": "hi"}]}
        async with httpx2.AsyncClient(trust_env=False, base_url=provider.openai_url) as http:
            assert (await http.post("/chat/completions", json=asked)).status_code == 500
            answer = (await http.post("/chat/completions", json=asked)).json()
        assert answer["choices"][0]["message"]["content"] == "hello"
        assert provider.count(500) == 1
        assert [request.prompt for request in provider.requests] == ["hi", "hi"]

    def test_plain(ferrogate_provider):
        ferrogate_provider.script([500, "hello"])
        asyncio.run(ask(ferrogate_provider))

    @pytest.mark.anyio
    async def test_anyio(ferrogate_provider, ferrogate_clock):
        ferrogate_provider.script([500, "hello"])
        await ask(ferrogate_provider)

    @pytest.mark.anyio
    @pytest.mark.ferrogate_bypass
    async def test_anyio_bypassed():
        assert (await awaited(1), await awaited(1)) == (1, 2)

    @pytest.fixture
    def anyio_backend():
        return "asyncio"
"""


def test_clock_and_provider_in_plain_and_anyio_tests(pytester: pytest.Pytester) -> None:
    run(pytester, PROVIDED).assert_outcomes(passed=4)


def test_with_pytest_asyncio(pytester: pytest.Pytester) -> None:
    tests = PROVIDED.replace("@pytest.mark.anyio", "")
    options = ("-o", "asyncio_mode=auto", "-o", "asyncio_default_fixture_loop_scope=function")
    run(pytester, tests, *options).assert_outcomes(passed=4)


def test_the_options_are_told(pytester: pytest.Pytester) -> None:
    told = run(pytester, "", "--markers").stdout.str()
    assert "@pytest.mark.ferrogate_bypass" in told
    assert "@pytest.mark.ferrogate_keep" in told
    result = run(pytester, "", "--fixtures")
    for name in ("ferrogate_clock", "ferrogate_bypass", "ferrogate_provider"):
        assert name in result.stdout.str()


def test_nobody_else_imports_pytest_or_the_server() -> None:
    code = (
        "import sys, ferrogate, ferrogate.testing\n"
        "heavy = {'pytest', 'http.server', 'ferrogate.cli', 'ferrogate.pytest_plugin'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "from ferrogate.testing import ScriptedProvider\n"
        "assert 'aiohttp' not in sys.modules and 'openai' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_pytest_finds_it_where_ferrogate_is_installed(pytester: pytest.Pytester) -> None:
    found = importlib.metadata.entry_points(group="pytest11", name="ferrogate")
    if not found:
        assert os.environ.get("FERROGATE_INSTALLED") != "1"
        pytest.skip("needs the built wheel: `make test-python`")
    assert {point.value for point in found} == {"ferrogate.pytest_plugin"}
    pytester.makepyfile("def test(ferrogate_clock): assert ferrogate_clock.now() == 0")
    pytester.runpytest_subprocess("-W", "error", "-p", "no:asyncio").assert_outcomes(passed=1)
