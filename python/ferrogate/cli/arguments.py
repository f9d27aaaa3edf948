"""The flags that `replay` and `demo` share, and how they become settings."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import NoReturn

from ferrogate.cli._errors import CliError
from ferrogate.cli.provider_config import ADMISSION, PRODUCED, ProviderConfig
from ferrogate.cli.settings import PRICES, Settings

__all__ = ["AUTO", "Parser", "add_flags", "settings_from"]


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line; the usage of thirty flags would push it off the screen."""

    def error(self, message: str) -> NoReturn:
        """Raises what `main` prints."""
        message = message.removeprefix("argument ")
        raise CliError(f"{message} (see `{self.prog} --help`)")


AUTO = -1
"""Requests per minute by the trace's own mean rate."""


# Far beyond anything of use, and within what timers, windows and tables can hold.
_MOST_COUNT = 10**9
_MOST_SECONDS = 1e9


def _number(least: float, most: float, *, above: bool = False) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"must be a number: {text}") from None
        if not least <= value <= most or (above and value == least):  # not a NaN either
            limit = f"above {least:g}" if above else f"at least {least:g}"
            raise argparse.ArgumentTypeError(f"must be {limit} and at most {most:,g}: {text}")
        return value

    return parse


def _whole(least: int | None = None, most: int = _MOST_COUNT) -> Callable[[str], int]:
    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"must be a whole number: {text[:40]}") from None
        if least is not None and not least <= value <= most:
            raise argparse.ArgumentTypeError(
                f"must be at least {least} and at most {most:,}: {text[:40]}"
            )
        return value

    return parse


def _limit(text: str) -> int:
    return AUTO if text == "auto" else _whole(0)(text)


def _price(text: str) -> tuple[float, float]:
    parts = text.split(",")
    if len(parts) != 2:
        raise argparse.ArgumentTypeError(f"must be INPUT,OUTPUT in USD per million tokens: {text}")
    return _number(0, 1e6)(parts[0]), _number(0, 1e6)(parts[1])


def add_flags(parser: argparse.ArgumentParser, *, speed: float) -> None:
    """Adds every flag."""
    share = _number(0, 1)
    part = parser.add_argument_group("which part of the trace")
    part.add_argument(
        "--limit", type=_whole(1), metavar="N", help="at most N requests (default: all)"
    )
    part.add_argument(
        "--start",
        type=_number(0, _MOST_SECONDS),
        default=None,
        metavar="S",
        help="begin S seconds into it",
    )
    part.add_argument(
        "--seconds",
        type=_number(0, _MOST_SECONDS, above=True),
        default=None,
        metavar="S",
        help="only S seconds of it",
    )
    part.add_argument(
        "--repeat-rate",
        type=share,
        default=0.0,
        metavar="SHARE",
        help="turn this share of the requests into SYNTHETIC repeats of earlier ones (default: 0)",
    )

    part.add_argument(
        "--tenants",
        type=_whole(1, 1000),
        default=1,
        metavar="N",
        help="deal the requests out to N tenants (default: 1)",
    )
    part.add_argument(
        "--flood",
        type=_whole(1),
        default=1,
        metavar="X",
        help="the first tenant sends X times as many as another one (default: 1)",
    )

    how = parser.add_argument_group("how it runs")
    how.add_argument(
        "--speed",
        type=_number(0.001, 10_000),
        default=speed,
        metavar="X",
        help="arrivals, latencies and every limit's window X times as fast on both sides "
        f"(default: {speed:g})",
    )
    how.add_argument(
        "--virtual",
        action="store_true",
        help="on a manual clock, without waiting and without sockets; --speed has no effect",
    )
    how.add_argument("--seed", type=_whole(), default=0, help="for everything random (default: 0)")
    how.add_argument("--no-baseline", action="store_true", help="skip the run without ferrogate")
    how.add_argument("--stream", action="store_true", help="ask for streamed answers")
    how.add_argument("--json", action="store_true", help="print the report as JSON, no progress")

    limits = parser.add_argument_group("the provider's limits (0: none)")
    limits.add_argument(
        "--rpm",
        type=_limit,
        default=AUTO,
        metavar="N",
        help="requests per minute (default: auto, 1.05 times the mean rate)",
    )
    limits.add_argument("--rph", type=_whole(0), default=0, metavar="N", help="requests per hour")
    limits.add_argument(
        "--tpm", type=_whole(0), default=0, metavar="N", help="tokens per minute, both kinds"
    )
    limits.add_argument("--input-tokens-per-minute", type=_whole(0), default=0, metavar="N")
    limits.add_argument("--output-tokens-per-minute", type=_whole(0), default=0, metavar="N")
    limits.add_argument(
        "--output-counted",
        choices=(ADMISSION, PRODUCED),
        default=ADMISSION,
        help="output tokens count as max_tokens on admission, corrected at the end, or one by one "
        f"when they are produced (default: {ADMISSION})",
    )
    limits.add_argument(
        "--concurrency", type=_whole(0), default=0, metavar="N", help="requests at once"
    )

    faults = parser.add_argument_group("the provider's faults, as shares of the requests")
    faults.add_argument("--inject-429", type=share, default=0.0, metavar="SHARE")
    faults.add_argument("--inject-500", type=share, default=0.0, metavar="SHARE")
    faults.add_argument("--inject-timeout", type=share, default=0.0, metavar="SHARE")

    client = parser.add_argument_group("the agent")
    client.add_argument(
        "--margin",
        type=_number(0, 3600),
        default=0.5,
        metavar="S",
        help="real seconds by which the agent's windows are longer than the provider's, to cover "
        "the jitter between a permit and the request's arrival (default: 0.5)",
    )
    client.add_argument(
        "--max-wait",
        type=_number(0, _MOST_SECONDS),
        default=None,
        metavar="S",
        help="give up on a permit after S seconds of trace time (default: never)",
    )
    client.add_argument(
        "--retries",
        type=_whole(0, 1000),
        default=2,
        metavar="N",
        help="after a failure (default: 2)",
    )
    client.add_argument(
        "--timeout",
        type=_number(0, 1e6, above=True),
        default=120.0,
        metavar="S",
        help="for an answer, in trace time (default: 120)",
    )
    client.add_argument(
        "--cache-size", type=_whole(1), default=10_000, metavar="N", help="(default: 10000)"
    )
    client.add_argument(
        "--cache-ttl",
        type=_number(0, _MOST_SECONDS, above=True),
        default=3600.0,
        metavar="S",
        help="in trace time (default: 3600)",
    )
    client.add_argument(
        "--model",
        default="gpt-4o-mini",
        help=f"for the price: {', '.join(PRICES)} (default: gpt-4o-mini)",
    )
    client.add_argument(
        "--price",
        type=_price,
        default=None,
        metavar="IN,OUT",
        help="USD per million input and output tokens, instead of the model's list price",
    )


def settings_from(options: argparse.Namespace) -> Settings:
    """The settings that the flags ask for.

    Raises:
        CliError: a model without a known price; a flood without tenants.
    """
    if options.flood > 1 and options.tenants < 2:
        raise CliError("--flood: one tenant floods the others: give --tenants at least 2")
    price = options.price or PRICES.get(options.model)
    if price is None:
        raise CliError(f"no price known for {options.model!r}: give one with --price IN,OUT")
    provider = ProviderConfig(
        requests_per_minute=0 if options.rpm == AUTO else options.rpm,
        requests_per_hour=options.rph,
        tokens_per_minute=options.tpm,
        input_tokens_per_minute=options.input_tokens_per_minute,
        output_tokens_per_minute=options.output_tokens_per_minute,
        output_counted=options.output_counted,
        concurrency=options.concurrency,
        rate_429=options.inject_429,
        rate_500=options.inject_500,
        rate_timeout=options.inject_timeout,
        seed=options.seed,
        speed=1.0 if options.virtual else options.speed,
    )
    return Settings(
        provider=provider,
        virtual=options.virtual,
        baseline=not options.no_baseline,
        model=options.model,
        price_input=price[0],
        price_output=price[1],
        retries=options.retries,
        timeout=options.timeout,
        max_wait=options.max_wait,
        margin=options.margin,
        cache_size=options.cache_size,
        cache_ttl=options.cache_ttl,
        repeat_rate=options.repeat_rate,
        stream=options.stream,
        automatic_limit=options.rpm == AUTO,
        tenants=options.tenants,
        flood=options.flood,
    )
