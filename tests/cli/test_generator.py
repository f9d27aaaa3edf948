"""The built-in traffic against the trace that it was fitted to."""

from __future__ import annotations

import bisect
import math
import statistics
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import pytest

from ferrogate.cli import generator
from ferrogate.cli.generator import generate
from ferrogate.cli.traces import Row, read_trace

HOUR = 58 * 60.0


def quantiles(values: Sequence[float], shares: Sequence[float]) -> tuple[int, ...]:
    ordered = sorted(values)
    last = len(ordered) - 1
    return tuple(round(ordered[min(last, int(len(ordered) * share))]) for share in shares)


def fit(
    rows: Sequence[Row],
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[tuple[int, ...], ...]]:
    """Arrivals a whole minute, context quantiles, answer quantiles for each band of contexts.

    The tables of `ferrogate/cli/generator.py` are this function's result.
    """
    minutes = [0] * int(rows[-1].at // 60)
    for row in rows:
        if row.at < 60 * len(minutes):
            minutes[int(row.at // 60)] += 1
    contexts = quantiles([row.input_tokens for row in rows], generator.CONTEXT_SHARES)
    ordered = sorted(rows, key=lambda row: row.input_tokens)
    bands = len(generator.OUTPUT_TOKENS)
    edges = [len(ordered) * i // bands for i in range(bands + 1)]
    outputs = tuple(
        quantiles([row.output_tokens for row in ordered[a:b]], generator.OUTPUT_SHARES)
        for a, b in pairwise(edges)
    )
    return tuple(minutes), contexts, outputs


def ks_two_samples(left: Sequence[float], right: Sequence[float]) -> float:
    """The Kolmogorov-Smirnov distance of two samples."""
    a, b = sorted(left), sorted(right)
    return max(
        abs(bisect.bisect_right(a, value) / len(a) - bisect.bisect_right(b, value) / len(b))
        for value in {*a, *b}
    )


def ks_one_sample(sample: Sequence[float], cdf: Callable[[float], float]) -> float:
    """The Kolmogorov-Smirnov distance of a sample from a distribution."""
    ordered = sorted(sample)
    n = len(ordered)
    return max(max((i + 1) / n - cdf(x), cdf(x) - i / n) for i, x in enumerate(ordered))


@pytest.fixture(scope="module")
def real(conversation: Path) -> tuple[Row, ...]:
    return read_trace(conversation).rows


def test_the_tables_are_the_trace_s(real: tuple[Row, ...]) -> None:
    assert fit(real) == (
        generator.ARRIVALS_PER_MINUTE,
        generator.CONTEXT_TOKENS,
        generator.OUTPUT_TOKENS,
    )


def test_gaps_are_exponential_within_a_minute(real: tuple[Row, ...]) -> None:
    minutes = generator.ARRIVALS_PER_MINUTE
    whole = [row.at for row in real if row.at < 60 * len(minutes)]
    gaps = [(b - a) * minutes[int(a // 60)] / 60 for a, b in pairwise(whole)]
    mean = statistics.fmean(gaps)
    assert ks_one_sample(gaps, lambda gap: 1 - math.exp(-gap / mean)) < 0.016
    assert statistics.pstdev(gaps) / mean == pytest.approx(1.027, abs=0.001)


@pytest.mark.parametrize("seed", range(3))
def test_distances_from_the_trace(real: tuple[Row, ...], seed: int) -> None:
    made = generate(HOUR, seed=seed).rows
    assert len(made) == pytest.approx(len(real), rel=0.02)

    def distance(of: Callable[[Row], float]) -> float:
        return ks_two_samples([of(row) for row in real], [of(row) for row in made])

    assert distance(lambda row: row.input_tokens) < 0.012
    assert distance(lambda row: row.output_tokens) < 0.02
    assert distance(lambda row: row.input_tokens + row.output_tokens) < 0.03
    gaps = [[b.at - a.at for a, b in pairwise(rows)] for rows in (real, made)]
    assert ks_two_samples(*gaps) < 0.025


def test_the_same_seed_gives_the_same_traffic() -> None:
    assert generate(120, seed=7) == generate(120, seed=7)
    assert generate(120, seed=7) != generate(120, seed=8)


def test_the_part_asked_for_and_nothing_outside() -> None:
    rows = generate(90.3, seed=1, start=1210.7).rows
    assert all(0 <= row.at < 90.3 for row in rows)
    assert [row.at for row in rows] == sorted(row.at for row in rows)
    assert len({row.prompt for row in rows}) == len(rows)
    # 350 to 408 a minute there: far from the hour's mean of 333.
    assert len(rows) == pytest.approx(1.5 * 355, rel=0.1)


def test_it_goes_on_after_the_fitted_hour() -> None:
    assert len(generate(120, seed=1, start=HOUR).rows) == pytest.approx(191 + 265, rel=0.15)
