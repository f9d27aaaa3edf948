"""Arguments checked at construction, with errors that name them."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterable
from datetime import timedelta


def seconds_or_never(argument: str, value: float | timedelta, *, least: float = 0) -> float:
    """A duration above zero (or of at least ``least``), in seconds; infinity is never."""
    given = value
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(
            f"{argument}: expected seconds as a number or a timedelta, got {type(value).__name__}"
        )
    if not value > 0:
        raise ValueError(f"{argument}: expected a duration above 0 seconds, got {_shown(value)}")
    if value < least:
        raise ValueError(f"{argument}: expected at least {least:g} seconds, got {_shown(given)}")
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _shown(value: object) -> str:
    """A value within an error: of an int Python writes thousands of digits, and then refuses."""
    if isinstance(value, int) and value.bit_length() > 128:
        return f"{'a negative' if value < 0 else 'an'} int of {value.bit_length()} bits"
    return repr(value)


def seconds(argument: str, value: float | timedelta, *, most: float = math.inf) -> float:
    """A finite duration above zero and up to ``most``, in seconds."""
    duration = seconds_or_never(argument, value)
    shown = _shown(value)
    if duration == math.inf:
        raise ValueError(f"{argument}: expected a finite duration above 0 seconds, got {shown}")
    if duration > most:
        raise ValueError(f"{argument}: expected at most {most:g} seconds, got {shown}")
    return duration


def whole(argument: str, value: int, *, least: int, most: int = sys.maxsize) -> int:
    """A whole number of at least ``least`` and at most ``most``."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{argument}: expected an int, got {type(value).__name__}")
    if value < least:
        raise ValueError(f"{argument}: expected at least {least}, got {_shown(value)}")
    if value > most:
        raise ValueError(f"{argument}: expected at most {most}")
    return value


def flag(argument: str, value: bool) -> bool:
    """True or False, and nothing that is merely like it."""
    if not isinstance(value, bool):
        raise TypeError(f"{argument}: expected True or False, got {type(value).__name__}")
    return value


def text_or_none(argument: str, value: str | None) -> str | None:
    """A str, or None where none was given."""
    if value is not None and not isinstance(value, str):
        raise TypeError(f"{argument}: expected a str or None, got {type(value).__name__}")
    return value


def path(argument: str, value: str | os.PathLike[str]) -> str:
    """A path on the file system, as text."""
    try:
        text: object = os.fspath(value)
    except TypeError:
        text = None
    if not isinstance(text, str):
        raise TypeError(
            f"{argument}: expected a path as str or os.PathLike, got {type(value).__name__}"
        )
    return text


#: Bytes of a namespace or a tag at most, as the native layer has it.
_LONGEST_NAME = 1024


def store_name(argument: str, name: str) -> str:
    """A namespace or a tag that every kind of store can keep."""
    if not isinstance(name, str):
        raise TypeError(f"{argument}: expected a str, got {type(name).__name__}")
    try:
        length = len(name.encode())
    except UnicodeEncodeError:
        raise ValueError(f"{argument}: expected text that UTF-8 can carry, got {name!r}") from None
    if length > _LONGEST_NAME:
        raise ValueError(f"{argument}: expected at most {_LONGEST_NAME} bytes, got {length}")
    if "\x1f" in name:
        # It stands between the tags of an entry.
        raise ValueError(f"{argument}: expected no control character \\x1f, got {name!r}")
    return name


def store_names(argument: str, names: Iterable[str]) -> list[str]:
    """Names, such as tags, without repetitions."""
    wrong = f'{argument}: expected an iterable of str such as ["user:1"], got '
    if isinstance(names, str) or not isinstance(names, Iterable):
        # Iterating a str would tag with its letters.
        raise TypeError(wrong + type(names).__name__)
    found = list(names)
    for name in found:
        if not isinstance(name, str):
            raise TypeError(wrong + type(name).__name__)
        store_name(argument, name)
    return list(dict.fromkeys(found))


def known_policy(policy: object, policies: tuple[str, ...] = ("lru", "adaptive")) -> None:
    """Refuses what is not the name of one of these eviction policies."""
    if not isinstance(policy, str) or policy not in policies:
        names = " or ".join(map(repr, policies))
        raise ValueError(f"policy: expected {names}, got {policy!r}")


def globally_disabled() -> bool:
    """Whether ``FERROGATE_DISABLED`` switches every component off (read at construction)."""
    value = os.environ.get("FERROGATE_DISABLED", "").strip().lower()
    return value not in {"", "0", "false", "no", "off"}
