"""Bytes in a service of whatever codec."""

from __future__ import annotations

import binascii
import logging
from base64 import b64decode, b64encode
from collections.abc import Iterator
from contextlib import contextmanager

from ferrogate.service import CacheService

_log = logging.getLogger("ferrogate")


def check_service(service: object) -> CacheService:
    """The service, or a ``TypeError`` that says what was expected."""
    if not isinstance(service, CacheService):
        raise TypeError(f"service: expected a ferrogate.CacheService, got {type(service).__name__}")
    return service


@contextmanager
def keeping(what: str) -> Iterator[None]:
    """Logs that a value was refused: its caller has it already, and may have paid for it."""
    try:
        yield
    except (TypeError, ValueError) as error:
        _log.warning("%s: a value was not kept: %s", what, error)


def packed(service: CacheService, payload: bytes) -> bytes | str:
    """What to set: JSON has no bytes."""
    return b64encode(payload).decode("ascii") if service.codec == "json" else payload


def unpacked(stored: object) -> bytes | None:
    """What was packed; ``None`` for anything that was not."""
    if isinstance(stored, bytes):
        return stored
    if isinstance(stored, str):
        try:
            return b64decode(stored, validate=True)
        except (binascii.Error, ValueError):
            return None
    return None
