"""How long a loaded value is served: what ``@cached`` and ``get_or_set`` have in common."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, TypedDict

from ferrogate._core import Freshness

_Seconds = float | timedelta


class Terms(TypedDict, total=False):
    """What becomes of a value beside its time to live. Each may be left out.

    Attributes:
        stale_while_revalidate: seconds after its time to live in which a value
            is still served, while one refresh runs in the background.
        stale_if_error: seconds after its time to live in which a value is served
            to those whose load raised an ``Exception``.
        negative_ttl: exception classes and the seconds for which such a failure
            is raised again without a call; the class nearest in the MRO counts.
            Where there is a value that is stale, that is kept instead.
        skip_if: called with the result; true delivers it without storing it.
        ttl_jitter: ratio 0..1 of the time to live that may be cut off at random,
            so that what was written together does not expire together.
        early_refresh: the factor beta of XFetch (Vattani et al., VLDB 2015): the
            longer a load takes and the nearer the end is, the likelier a hit
            begins a refresh in the background; 1.0 is the usual one.
    """

    stale_while_revalidate: _Seconds | None
    stale_if_error: _Seconds | None
    negative_ttl: Mapping[type[Exception], _Seconds] | None
    skip_if: Callable[[Any], object] | None
    ttl_jitter: float | None
    early_refresh: float | None


def freshness_of(usual_ttl: float | None, ttl: _Seconds | None, terms: Terms) -> Freshness | None:
    """The terms, checked; ``None`` where there are none.

    Raises:
        TypeError, ValueError: one of them is wrong, or needs a time to live and there is none.
    """
    if ttl is None and not terms:
        return None
    if inspect.iscoroutinefunction(terms.get("skip_if")):
        raise TypeError("skip_if: expected a plain function; it is not awaited")
    freshness = Freshness(ttl=ttl, **terms)
    if freshness.needs_ttl and usual_ttl is None:
        for name in ("stale_while_revalidate", "stale_if_error", "ttl_jitter", "early_refresh"):
            if terms.get(name):
                raise ValueError(f"{name}: needs ttl=, without which nothing ever gets stale")
    return freshness
