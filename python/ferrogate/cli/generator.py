"""Traffic like the Azure conversation trace's, for a demo without a download.

Fitted to AzureLLMInferenceTrace_conv.csv (Azure Public Dataset, CC-BY; 19,366
requests in 3,502 s):

* arrivals: a Poisson process whose rate is constant within each of the trace's
  58 whole minutes. The trace's gaps in units of their minute's mean gap are
  close to exponential: KS distance 0.015, coefficient of variation 1.03 (1 in a
  Poisson process).
* context tokens: the trace's quantiles at 103 points, linear in between.
* generated tokens: the trace's quantiles at 15 points, separately for each
  twentieth of the contexts. One table would not do: the lengths depend on each
  other, but not in one direction (median answer 159 tokens for the shortest
  contexts, 99 around 500, 405 around 1,100, 60 above 3,000).

58 minutes of it (seed 0: 19,282 requests) against the trace, as KS distances and
p50/p95/p99, the trace's in brackets: context 0.008 and 1,019/4,083/4,139
(1,020/4,083/4,142), answer 0.014 and 130/464/615 (129/451/601), gaps 0.017;
requests a second: most 20 (16), variance 7.1 (7.6).

Not modelled: the correlation of one answer's length with the next one's (0.11
in the trace), and identity: like the trace's, all its prompts are distinct.
`tests/cli/test_generator.py` measures these distances again and makes the tables
again from the trace.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Sequence

from ferrogate.cli.traces import Row, Trace

__all__ = ["generate"]

_MINUTE = 60.0

#: In short, for the report.
FIT = (
    "fitted to the Azure LLM conversation trace; KS distances: "
    "context 0.008, answer 0.014, gaps 0.017"
)

ARRIVALS_PER_MINUTE = (
    191,
    265,
    329,
    353,
    307,
    273,
    268,
    261,
    322,
    298,
    301,
    302,
    345,
    326,
    283,
    279,
    280,
    308,
    343,
    351,
    351,
    343,
    408,
    396,
    386,
    398,
    432,
    480,
    476,
    453,
    448,
    507,
    438,
    413,
    423,
    418,
    465,
    311,
    329,
    316,
    333,
    355,
    319,
    360,
    334,
    375,
    330,
    249,
    221,
    249,
    265,
    280,
    256,
    254,
    242,
    260,
    246,
    225,
)

CONTEXT_SHARES = (*(i / 100 for i in range(100)), 0.995, 0.999, 1.0)
CONTEXT_TOKENS = (
    2,
    29,
    91,
    161,
    181,
    181,
    191,
    197,
    201,
    203,
    207,
    212,
    222,
    242,
    317,
    372,
    375,
    378,
    381,
    384,
    387,
    390,
    392,
    394,
    395,
    396,
    398,
    399,
    400,
    402,
    403,
    405,
    406,
    408,
    411,
    414,
    419,
    424,
    433,
    456,
    703,
    863,
    903,
    946,
    972,
    984,
    994,
    1002,
    1009,
    1014,
    1020,
    1025,
    1031,
    1036,
    1041,
    1045,
    1050,
    1055,
    1060,
    1065,
    1071,
    1076,
    1081,
    1086,
    1092,
    1097,
    1102,
    1109,
    1116,
    1122,
    1130,
    1139,
    1147,
    1160,
    1171,
    1189,
    1215,
    1249,
    1311,
    1314,
    1315,
    1321,
    1369,
    1508,
    1690,
    1877,
    2032,
    2221,
    2402,
    2584,
    2735,
    3292,
    4073,
    4076,
    4079,
    4083,
    4086,
    4090,
    4098,
    4142,
    4831,
    6212,
    14050,
)

OUTPUT_SHARES = (0.0, 0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
OUTPUT_TOKENS = (
    (11, 12, 12, 16, 83, 108, 122, 137, 154, 168, 187, 209, 223, 326, 1000),
    (47, 53, 73, 89, 122, 157, 162, 170, 181, 191, 217, 217, 217, 268, 1000),
    (14, 14, 14, 18, 18, 54, 68, 79, 95, 124, 162, 183, 217, 223, 436),
    (7, 32, 48, 53, 60, 66, 69, 74, 79, 84, 90, 100, 111, 144, 189),
    (24, 49, 64, 75, 83, 87, 90, 93, 97, 101, 109, 124, 136, 164, 199),
    (43, 62, 80, 83, 88, 91, 95, 99, 103, 109, 119, 135, 147, 177, 200),
    (25, 68, 81, 85, 89, 93, 97, 101, 105, 112, 125, 141, 151, 183, 200),
    (31, 46, 64, 78, 85, 89, 93, 97, 101, 107, 115, 137, 158, 331, 739),
    (10, 31, 45, 64, 85, 95, 113, 155, 392, 399, 413, 431, 465, 599, 921),
    (29, 50, 117, 375, 388, 394, 397, 403, 411, 418, 429, 466, 536, 620, 722),
    (33, 55, 364, 378, 390, 395, 398, 404, 411, 418, 429, 478, 553, 650, 992),
    (44, 74, 373, 379, 393, 396, 400, 408, 414, 424, 435, 480, 535, 937, 1000),
    (31, 56, 371, 378, 390, 396, 399, 410, 415, 426, 440, 501, 564, 649, 1000),
    (28, 49, 136, 375, 388, 395, 397, 405, 414, 423, 435, 498, 572, 673, 1000),
    (29, 40, 75, 145, 386, 395, 397, 404, 413, 421, 432, 501, 562, 659, 992),
    (26, 42, 56, 79, 136, 157, 181, 209, 376, 396, 410, 429, 466, 624, 954),
    (24, 36, 47, 52, 68, 82, 93, 107, 129, 152, 183, 231, 375, 489, 918),
    (15, 28, 41, 48, 56, 71, 79, 89, 97, 109, 125, 147, 164, 202, 458),
    (17, 26, 29, 34, 40, 46, 50, 58, 69, 84, 107, 137, 165, 300, 535),
    (17, 26, 31, 36, 41, 47, 52, 59, 66, 75, 92, 122, 144, 230, 757),
)


def generate(seconds: float, *, seed: int = 0, start: float = 0.0) -> Trace:
    """Requests of ``seconds`` of traffic, beginning ``start`` seconds into the fitted hour."""
    rng = random.Random(f"conversation:{seed}")
    rows: list[Row] = []
    at = 0.0
    minute = int(start // _MINUTE)
    # Exponential steps in units of the mean gap, spent at each minute's own rate.
    left = rng.expovariate(1.0)
    while at < seconds:
        rate = ARRIVALS_PER_MINUTE[minute % len(ARRIVALS_PER_MINUTE)] / _MINUTE
        end = (minute + 1) * _MINUTE - start
        if at + left / rate >= end:
            left -= (end - at) * rate
            at = end
            minute += 1
            continue
        at += left / rate
        if at >= seconds:
            break
        left = rng.expovariate(1.0)
        share = rng.random()
        context = _quantile(share, CONTEXT_SHARES, CONTEXT_TOKENS)
        band = OUTPUT_TOKENS[int(share * len(OUTPUT_TOKENS))]
        output = _quantile(rng.random(), OUTPUT_SHARES, band)
        rows.append(Row(round(at, 7), context, output, f"generated {seed}:{len(rows)}", 0))
    return Trace("built-in generator", "generated", tuple(rows), FIT)


def _quantile(share: float, shares: Sequence[float], values: Sequence[int]) -> int:
    above = min(bisect_right(shares, share), len(shares) - 1)
    below = above - 1
    part = (share - shares[below]) / (shares[above] - shares[below])
    return round(values[below] + part * (values[above] - values[below]))
