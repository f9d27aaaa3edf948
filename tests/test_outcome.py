"""The names of outcomes are their values, so that a classifier may return either."""

from __future__ import annotations

from ferrogate import Outcome


def test_an_outcome_is_its_name() -> None:
    names = {"success", "failure", "throttled", "neutral"}
    assert set(Outcome) == names
    assert all(Outcome(name) == name for name in names)
