"""What the adapters share: checked arguments, bytes for any codec, and trouble that is logged."""

from __future__ import annotations

import binascii
import logging
import re
from base64 import b64decode, b64encode
from types import TracebackType

from ferrogate._arguments import seconds_or_never
from ferrogate.service import CacheService, Seconds

_log = logging.getLogger("ferrogate")

#: So many reasons are told apart; then all of them are forgotten, and logged again.
_REASONS = 256


def check_service(service: object) -> CacheService:
    """The service, or a ``TypeError`` that says what was expected."""
    if not isinstance(service, CacheService):
        raise TypeError(f"service: expected a ferrogate.CacheService, got {type(service).__name__}")
    return service


def check_ttl(ttl: Seconds | None) -> float | None:
    """Seconds above zero, or ``None``."""
    return None if ttl is None else seconds_or_never("ttl", ttl)


class Guard:
    """``with guard:`` logs what goes wrong in it; it is none of the framework's business.

    A reason is logged as a warning once, and from then on for debugging only: what
    happens to one answer happens to the next thousand, too.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._known: set[str] = set()

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        # Cancellation, KeyboardInterrupt and the like are no failures of a cache.
        if not isinstance(error, Exception):
            return False
        self.log(error)
        return True

    def log(self, error: Exception) -> None:
        """Logs what was to be raised."""
        text = f"{type(error).__name__}: {error}".partition("\n")[0][:300]
        # Sizes and addresses make no new reason.
        reason = re.sub(r"\d[\da-fx]*", "#", text)
        known = reason in self._known
        if len(self._known) >= _REASONS:
            self._known.clear()
        self._known.add(reason)
        _log.log(logging.DEBUG if known else logging.WARNING, "%s: %s", self._what, text)


def packed(service: CacheService, payload: bytes) -> bytes | str:
    """What to set: JSON has no bytes."""
    return b64encode(payload).decode("ascii") if service.codec == "json" else payload


def unpacked(stored: object) -> bytes:
    """What was packed.

    Raises:
        ValueError: it is nothing that was.
    """
    if isinstance(stored, bytes):
        return stored
    if isinstance(stored, str):
        try:
            return b64decode(stored, validate=True)
        except (binascii.Error, ValueError):
            pass
    raise ValueError(f"{type(stored).__name__}: nothing that was kept here")
