"""Limits on input and output tokens apart, what is counted when, and the books by tenant."""

from __future__ import annotations

import random

import pytest

from ferrogate.cli.meter import Meter
from ferrogate.cli.provider_config import ProviderConfig
from ferrogate.cli.provider_core import Answer, LimitState, ProviderCore, Refusal
from ferrogate.cli.windows import ExactWindow
from ferrogate.cli.wire_anthropic import ANTHROPIC
from ferrogate.cli.wire_openai import OPENAI


class Clock:
    """Seconds that only a test moves."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def core(**settings: object) -> tuple[ProviderCore, Clock]:
    clock = Clock()
    return ProviderCore(ProviderConfig.from_dict(settings), clock), clock


def admitted(verdict: Answer | Refusal) -> Answer:
    assert isinstance(verdict, Answer), verdict
    return verdict


def refused(verdict: Answer | Refusal) -> Refusal:
    assert isinstance(verdict, Refusal), verdict
    return verdict


def test_input_and_output_are_limited_apart() -> None:
    provider, clock = core(input_tokens_per_minute=100, output_tokens_per_minute=50)
    admitted(provider.admit("p", 60, 10))
    assert refused(provider.admit("p", 41, 1)).message.endswith("input tokens per minute")
    assert refused(provider.admit("p", 1, 41)).message.endswith("output tokens per minute")
    clock.now = 1.0
    admitted(provider.admit("p", 40, 40))
    clock.now = 60.0
    admitted(provider.admit("p", 60, 10))
    for sizes in ((101, 1), (1, 51)):
        verdict = refused(provider.admit("p", *sizes))
        assert (verdict.code, verdict.retry_after) == ("request_too_large", None)
    stats = provider.stats()
    assert stats["rate_limited_by"] == {
        "input tokens per minute": 1,
        "output tokens per minute": 1,
    }
    assert (stats["too_large"], stats["rate_limited"]) == (2, 2)
    assert stats["peaks"]["output tokens per minute"] == {"limit": 50, "most_in_any_window": 50}


def test_on_admission_max_tokens_count_until_the_end_says_what_was_produced() -> None:
    provider, clock = core(output_tokens_per_minute=100, tokens_per_minute=1_000)
    answer = admitted(provider.admit("p", 1, 30, max_tokens=100))
    assert refused(provider.admit("p", 1, 1, max_tokens=1)).retry_after == 60.0
    clock.now = 5.0
    provider.finish(answer, delivered=True)
    assert provider.limits()["output-tokens"] == LimitState(100, 70, 55.0)
    # OpenAI documents no correction.
    assert provider.limits()["tokens"].remaining == 1_000 - 101
    admitted(provider.admit("p", 1, 70, max_tokens=70))
    refused(provider.admit("p", 1, 1, max_tokens=1))
    clock.now = 60.0
    assert provider.limits()["output-tokens"].remaining == 30
    assert provider.stats()["output_tokens"] == 30


def test_who_hangs_up_is_charged_what_was_produced_by_then() -> None:
    provider, clock = core(output_tokens_per_minute=100)
    answer = admitted(provider.admit("p", 1, 80, max_tokens=100))
    clock.now = (answer.ttft + answer.total) / 2
    provider.finish(answer, delivered=False)
    assert provider.limits()["output-tokens"].remaining == 60
    early = admitted(provider.admit("p", 1, 50))
    provider.finish(early, delivered=False)
    assert provider.limits()["output-tokens"].remaining == 60


def test_counted_when_produced_max_tokens_do_not_matter() -> None:
    provider, clock = core(output_tokens_per_minute=100, output_counted="produced")
    first = admitted(provider.admit("p", 1, 90, max_tokens=100_000))
    second = admitted(provider.admit("p", 1, 90, max_tokens=100_000))
    clock.now = min(first.ttft, second.ttft) - 1e-6
    assert provider.limits()["output-tokens"].remaining == 100
    clock.now = max(first.total, second.total)
    for answer in (first, second):
        provider.finish(answer, delivered=True)
    # Those under way went on, above the limit; new ones are refused until there is room.
    verdict = refused(provider.admit("p", 1, 1, max_tokens=1))
    assert verdict.retry_after is not None
    stats = provider.stats()
    assert stats["peaks"]["output tokens per minute"]["most_in_any_window"] == 180
    assert (stats["too_large"], stats["rate_limited"]) == (0, 1)
    clock.now += verdict.retry_after
    admitted(provider.admit("p", 1, 1))
    clock.now += 120.0
    assert provider.limits()["output-tokens"].remaining == 100


def test_what_nobody_waits_for_is_not_produced() -> None:
    provider, clock = core(output_tokens_per_minute=100, output_counted="produced")
    answer = admitted(provider.admit("p", 1, 96))
    clock.now = (answer.ttft + answer.total) / 2
    provider.finish(answer, delivered=False)
    clock.now += 10.0
    assert provider.limits()["output-tokens"].remaining == pytest.approx(52, abs=6)


@pytest.mark.parametrize("counted", ["admission", "produced"])
def test_used_shares_are_those_of_a_plain_sum(counted: str) -> None:
    """Against the definition: at each of many moments, what the last minute has spent."""
    rng = random.Random(7)
    provider, clock = core(
        requests_per_minute=40,
        output_tokens_per_minute=3_000,
        output_counted=counted,
        speed=4.0,
        seed=2,
    )
    ends: list[tuple[float, Answer]] = []
    levels: dict[str, list[float]] = {"requests": [], "output-tokens": []}
    step = 0.01
    for tick in range(12_000):
        clock.now = 3.0 + tick * step  # the clock does not begin at 0
        if tick % 25 == 0:
            verdict = provider.admit(str(tick), 10, rng.randrange(1, 200), max_tokens=200)
            if isinstance(verdict, Answer):
                ends.append((clock.now + verdict.total, verdict))
        for end in [end for end in ends if end[0] <= clock.now]:
            ends.remove(end)
            provider.finish(end[1], delivered=True)
        for kind, state in provider.limits().items():
            levels[kind].append(state.limit - state.remaining)
    usage = provider.stats()["usage"]
    for kind, name in (
        ("requests", "requests per minute"),
        ("output-tokens", "output tokens per minute"),
    ):
        limit = 40 if kind == "requests" else 3_000
        per_second = round(0.25 / step)  # a second of trace time
        assert len(usage[name]) == pytest.approx(480, abs=1)
        for second in range(470):
            ticks = levels[kind][second * per_second : (second + 1) * per_second]
            plain = 100 * sum(min(level, limit) for level in ticks) / len(ticks) / limit
            if usage[name][second] <= 100:  # `remaining` does not tell by how much it is over
                assert usage[name][second] == pytest.approx(plain, abs=1)
        assert max(usage[name]) > 80


def test_a_meter_s_means_are_exact() -> None:
    meter = Meter(speed=2.0)
    meter.move(10.0, 4)
    meter.move(10.25, 4)
    meter.move(10.5, -8)
    meter.move(12.0, 2)
    assert meter.means(12.25, 8) == [75.0, 0.0, 0.0, 0.0, 25.0]


def test_a_correction_of_what_has_left_the_window_changes_nothing() -> None:
    window = ExactWindow("w", 10, 5.0)
    spent = window.spend(0.0, 10)
    window.correct(5.0, spent, 3)
    assert window.remaining(5.0) == 10
    late = window.spend(6.0, 10)
    window.correct(7.0, late, 4)
    assert window.remaining(7.0) == 6
    assert window.wait(7.0, 7) == 4.0


def test_the_books_by_tenant_add_up_and_are_bounded() -> None:
    provider, _ = core(requests_per_minute=1_500)
    for index in range(3_000):
        provider.admit("p", 3, 2, tenant=f"tenant {index % 1_200}")
    tenants = provider.stats()["tenants"]
    assert len(tenants) == 1_001
    assert tenants["(others)"]["received"] == 400
    assert sum(each["admitted"] for each in tenants.values()) == 1_500
    assert sum(each["rate_limited"] for each in tenants.values()) == 1_500
    assert sum(each["admitted_input_tokens"] for each in tenants.values()) == 4_500
    assert sum(each["admitted_output_tokens"] for each in tenants.values()) == 3_000


def test_each_api_s_headers() -> None:
    limits = {
        "requests": LimitState(50, 49, 1.2),
        "input-tokens": LimitState(80_000, 79_499, 0.25),
        "output-tokens": LimitState(16_000, 600, 59.0),
    }
    assert ANTHROPIC.headers(limits, 1_755_780_059.4) == {
        "anthropic-ratelimit-requests-limit": "50",
        "anthropic-ratelimit-requests-remaining": "49",
        "anthropic-ratelimit-requests-reset": "2025-08-21T12:41:01Z",
        "anthropic-ratelimit-input-tokens-limit": "80000",
        "anthropic-ratelimit-input-tokens-remaining": "79000",
        "anthropic-ratelimit-input-tokens-reset": "2025-08-21T12:41:00Z",
        "anthropic-ratelimit-output-tokens-limit": "16000",
        "anthropic-ratelimit-output-tokens-remaining": "1000",
        "anthropic-ratelimit-output-tokens-reset": "2025-08-21T12:41:59Z",
        "anthropic-ratelimit-tokens-limit": "96000",
        "anthropic-ratelimit-tokens-remaining": "80000",
        "anthropic-ratelimit-tokens-reset": "2025-08-21T12:41:59Z",
    }
    assert OPENAI.headers(limits, 0.0) == {
        "x-ratelimit-limit-requests": "50",
        "x-ratelimit-remaining-requests": "49",
        "x-ratelimit-reset-requests": "1.2s",
        "x-ratelimit-limit-tokens": "16000",
        "x-ratelimit-remaining-tokens": "600",
        "x-ratelimit-reset-tokens": "59s",
    }


def test_bad_settings_of_the_tokens_are_named() -> None:
    for name, value in (
        ("input_tokens_per_minute", -1),
        ("output_tokens_per_minute", -1),
        ("output_counted", "later"),
    ):
        with pytest.raises(ValueError, match=name):
            ProviderConfig.from_dict({name: value})
