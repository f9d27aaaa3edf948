"""`RetryPolicy` and `RetryBudget`: arguments, rules and figures."""

from __future__ import annotations

import asyncio
import gc
import math
import subprocess
import sys
import weakref
from datetime import timedelta
from typing import Any

import pytest

from ferrogate import RetryBudget, RetryPolicy
from ferrogate.testing import ManualClock, VirtualTimeLoop


class RateLimitError(ConnectionError):
    """As an SDK has it."""


class Final(RateLimitError): ...


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"attempts": 0}, ValueError, "attempts: expected an int from 1"),
        ({"attempts": True}, TypeError, "attempts: expected an int from 1"),
        ({"attempts": 2.5}, TypeError, "attempts: expected an int from 1"),
        ({"attempts": 10**5000}, ValueError, "attempts: expected an int from 1"),
        ({"base": -1}, ValueError, "base: expected a duration"),
        ({"base": "1"}, TypeError, "base: expected seconds"),
        ({"base": 31, "max_delay": 30}, ValueError, "base: expected at most max_delay"),
        ({"base": math.inf}, ValueError, "base: expected at most max_delay"),
        ({"factor": 0.5}, ValueError, "factor: expected a number from 1"),
        ({"factor": math.nan}, ValueError, "factor: expected a number from 1"),
        ({"factor": math.inf}, ValueError, "factor: expected a number from 1"),
        ({"factor": "2"}, TypeError, "factor: expected a number"),
        ({"max_delay": math.nan}, ValueError, "max_delay: expected a duration"),
        ({"jitter": "decorrelated"}, ValueError, 'jitter: expected "full", "equal" or "none"'),
        ({"jitter": None}, TypeError, "jitter: expected a str"),
        ({"budget": 0.2}, TypeError, "budget: expected a RetryBudget"),
        ({"total_timeout": 0}, ValueError, "total_timeout: expected a duration above 0"),
        ({"max_retry_after": -1}, ValueError, "max_retry_after: expected a duration"),
        ({"name": 1}, TypeError, "name: expected a str"),
        ({"clock": 1}, TypeError, "clock: expected a ferrogate.testing.ManualClock"),
        ({"enabled": 1}, TypeError, "enabled: expected True or False"),
        ({"on": ()}, ValueError, "on: expected at least one class"),
        ({"on": {}}, ValueError, "on: expected at least one class"),
        ({"on": [OSError]}, TypeError, "on: expected an exception class"),
        ({"on": 3}, TypeError, "on: expected an exception class"),
        ({"on": int}, TypeError, "on: expected subclasses of Exception"),
        ({"on": asyncio.CancelledError}, TypeError, "on: expected subclasses of Exception"),
        ({"on": (OSError, BaseException)}, TypeError, "on: expected subclasses of Exception"),
        ({"on": {KeyboardInterrupt: 3}}, TypeError, "on: expected subclasses of Exception"),
        ({"on": {OSError: 0}}, ValueError, "on: expected an int from 1"),
        ({"on": {OSError: "3"}}, TypeError, "on: expected an int from 1"),
        ({"on": {OSError: RetryPolicy(total_timeout=1)}}, ValueError, "without total_timeout"),
    ],
)
def test_a_wrong_argument_is_named(
    arguments: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error) as caught:
        RetryPolicy(**arguments)
    assert says in str(caught.value)


def test_a_first_wait_above_the_usual_longest_is_the_longest() -> None:
    clock = ManualClock()
    policy = RetryPolicy(attempts=3, base=timedelta(minutes=2), jitter="none", clock=clock)
    waits = iter([ConnectionError(), ConnectionError(), None])

    async def ask() -> None:
        if error := next(waits):
            raise error

    with asyncio.Runner(loop_factory=lambda: VirtualTimeLoop(clock)) as runner:
        runner.run(policy.call(ask))
    assert clock.now() == 240


def test_a_coroutine_function_cannot_say_what_is_retried() -> None:
    async def on(error: Exception) -> bool:
        return True

    with pytest.raises(TypeError, match="on: expected a plain function"):
        RetryPolicy(on=on)  # type: ignore[arg-type]


def test_what_is_merely_true_is_no_answer() -> None:
    policy = RetryPolicy(on=lambda error: len(error.args))  # type: ignore[arg-type,return-value]
    with pytest.raises(TypeError, match="answers True or False, got int"):
        policy.attempts_for(OSError(1))


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"ratio": 1.5}, ValueError, "ratio: expected a number from 0 to 1"),
        ({"ratio": math.nan}, ValueError, "ratio: expected a number from 0 to 1"),
        ({"ratio": "a fifth"}, TypeError, "ratio: expected a number"),
        ({"min_per_second": -1}, ValueError, "min_per_second: expected a number from 0"),
        ({"min_per_second": 10**400}, ValueError, "min_per_second: expected a number from 0"),
        ({"ratio": 0, "min_per_second": 0}, ValueError, "min_per_second: expected more than 0"),
        ({"max_saved": 0.5, "min_per_second": 0}, ValueError, "min_per_second: expected more"),
        ({"window": 0}, ValueError, "window: expected a duration above 0"),
        ({"usd_per_minute": 0}, ValueError, "usd_per_minute: expected at least a millionth"),
        ({"usd_per_minute": True}, TypeError, "usd_per_minute: expected a number"),
        ({"clock": 1}, TypeError, "clock: expected a ferrogate.testing.ManualClock"),
        ({"enabled": None}, TypeError, "enabled: expected True or False"),
    ],
)
def test_a_wrong_argument_of_a_budget_is_named(
    arguments: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error) as caught:
        RetryBudget(**arguments)
    assert says in str(caught.value)


MISTAKES = [TypeError, UnboundLocalError, ModuleNotFoundError, IndentationError, RecursionError]
MISTAKES += [AttributeError, NotImplementedError, AssertionError, MemoryError]


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_the_program_is_not_retried_unless_it_is_named(
    mistake: type[Exception],
) -> None:
    assert RetryPolicy().attempts_for(mistake()) == 1
    assert RetryPolicy(on=mistake).attempts_for(mistake()) == 3
    assert RetryPolicy(on={mistake: 5}).attempts_for(mistake()) == 5


ENDS = [asyncio.CancelledError, KeyboardInterrupt, SystemExit, GeneratorExit]


@pytest.mark.parametrize("end", ENDS)
def test_what_ends_a_task_or_the_program_is_never_retried(end: type[BaseException]) -> None:
    asked: list[BaseException] = []

    def on(error: Exception) -> bool:
        asked.append(error)
        return True

    for policy in (RetryPolicy(), RetryPolicy(on=on), RetryPolicy(on={Exception: 5})):
        assert policy.attempts_for(end()) == 1
    assert asked == []


def test_classes_are_these_and_no_others() -> None:
    one = RetryPolicy(4, on=ConnectionError)
    assert one.attempts_for(RateLimitError()) == 4
    assert one.attempts_for(ValueError()) == 1
    two = RetryPolicy(4, on=(TimeoutError, RateLimitError))
    assert [two.attempts_for(e) for e in (TimeoutError(), Final(), OSError())] == [4, 4, 1]


def test_in_a_dict_the_class_nearest_to_the_error_decides() -> None:
    slow = RetryPolicy(9, base=5, on=lambda error: "try" in str(error))
    policy = RetryPolicy(
        2, on={OSError: 4, RateLimitError: slow, Final: False, KeyError: True, LookupError: 7}
    )
    assert policy.attempts_for(OSError()) == 4
    assert policy.attempts_for(ConnectionError()) == 4
    assert policy.attempts_for(RateLimitError("try again")) == 9
    assert policy.attempts_for(RateLimitError("banned")) == 1
    assert policy.attempts_for(Final("try again")) == 1
    assert policy.attempts_for(KeyError()) == 2
    assert policy.attempts_for(IndexError()) == 7
    # What is not in it is as without `on`.
    assert policy.attempts_for(ValueError()) == 2
    assert policy.attempts_for(TypeError()) == 1
    # One in the other, with all that it says.
    around = RetryPolicy(on={OSError: policy})
    assert around.attempts_for(RateLimitError("try again")) == 9
    assert around.attempts_for(Final()) == 1


def test_a_dict_is_copied() -> None:
    rules: dict[type[Exception], int | bool | RetryPolicy] = {OSError: 4}
    policy = RetryPolicy(on=rules)
    rules.clear()
    assert policy.attempts_for(OSError()) == 4


def test_what_a_predicate_raises_is_raised_with_what_it_was_asked_about() -> None:
    def on(error: Exception) -> bool:
        raise LookupError("in the predicate")

    asked = OSError("upstream")
    with pytest.raises(LookupError, match="in the predicate") as caught:
        RetryPolicy(on=on).attempts_for(asked)
    assert caught.value.__context__ is asked


def test_a_predicate_may_call_back() -> None:
    policies: list[RetryPolicy] = []

    def on(error: Exception) -> bool:
        gc.collect()
        policies[0].get_stats()
        return repr(policies[0]) != ""

    policies.append(RetryPolicy(5, on=on))
    assert policies[0].attempts_for(OSError()) == 5


def test_a_policy_that_is_off_retries_nothing() -> None:
    assert RetryPolicy(on=OSError, enabled=False).attempts_for(OSError()) == 1
    off = RetryPolicy(enabled=False)
    assert RetryPolicy(on={OSError: off}).attempts_for(OSError()) == 1
    code = """
from ferrogate import RetryBudget, RetryPolicy
policy, budget = RetryPolicy(), RetryBudget()
print(policy.enabled, budget.enabled, policy.attempts_for(OSError()))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"FERROGATE_DISABLED": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("False False 1\n", "")


def test_figures_and_names() -> None:
    budget = RetryBudget(0.1, usd_per_minute=0.5, window=timedelta(seconds=3), name="openai")
    policy = RetryPolicy(1, budget=budget, name="ask", clock=ManualClock())
    assert policy.budget is budget
    assert (policy.name, budget.name, policy.attempts, budget.ratio) == ("ask", "openai", 1, 0.1)
    assert budget.get_stats() == {
        "name": "openai",
        "enabled": True,
        "calls": 0,
        "retries": 0,
        "refused": 0,
        "refused_usd": 0,
        "saved": 0.0,
        "reserve": 3.0,
        "usd_last_minute": 0.0,
    }
    assert policy.get_stats() == {
        "name": "ask",
        "enabled": True,
        "calls": 0,
        "retries": 0,
        "delayed_seconds": 0.0,
        "given_up": {
            "attempts": 0,
            "budget": 0,
            "deadline": 0,
            "retry_after_too_long": 0,
            "not_retried": 0,
        },
    }
    assert repr(policy) == "<RetryPolicy 'ask' 1 attempt: 0 calls, 0 retries, 0 given up>"
    assert repr(budget) == (
        "<RetryBudget 'openai' 0.1 a call, 3.0 left, 0 paid, 0 refused, 0 of 0.5 USD/minute>"
    )
    assert repr(RetryBudget(enabled=False)).endswith("disabled>")
    assert repr(RetryPolicy(enabled=False)).endswith("disabled>")


def test_what_a_policy_holds_is_seen_by_the_collector() -> None:
    class Rules:
        policy: RetryPolicy | None = None

        def on(self, error: Exception) -> bool:
            return True

    rules = Rules()
    rules.policy = RetryPolicy(on={OSError: RetryPolicy(on=rules.on)}, budget=RetryBudget())
    alive = weakref.ref(rules)
    del rules
    gc.collect()
    assert alive() is None
