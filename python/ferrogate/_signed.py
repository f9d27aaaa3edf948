"""Pickles behind an HMAC: only what this key has signed is ever unpickled."""

from __future__ import annotations

import hmac
import pickle
from collections.abc import Callable
from typing import Any

_DIGEST = "sha256"
_LENGTH = 32

Pair = tuple[Callable[[Any, bytes], bytes], Callable[[bytes, bytes], tuple[Any] | None]]


def pickler(key: bytes) -> Pair:
    """``dumps`` and ``loads``; ``loads`` gives ``(value,)``, or ``None`` for a wrong signature.

    Both take the place where the value stands, 32 bytes, which are signed with it: who can write
    to the store cannot put one place's value into another's.
    """

    def dumps(value: Any, place: bytes) -> bytes:
        try:
            body = pickle.dumps(value, protocol=5)
        except Exception as error:
            raise TypeError(f'value: {error}, so codec="pickle" cannot carry it') from error
        return hmac.digest(key, place + body, _DIGEST) + body

    def loads(signed: bytes, place: bytes) -> tuple[Any] | None:
        signature, body = signed[:_LENGTH], signed[_LENGTH:]
        if not hmac.compare_digest(signature, hmac.digest(key, place + body, _DIGEST)):
            return None
        return (pickle.loads(body),)

    return dumps, loads


def check_key(codec: str, key: bytes | str | None) -> Pair | None:
    """The functions for ``codec``, or ``None`` where it needs none."""
    if codec != "pickle":
        if key is not None:
            raise ValueError('hmac_key: only codec="pickle" is signed')
        return None
    if key is None:
        raise ValueError('hmac_key: codec="pickle" needs a secret of at least 16 bytes')
    if isinstance(key, str):
        key = key.encode()
    if not isinstance(key, bytes):
        raise TypeError(f"hmac_key: expected bytes or str, got {type(key).__name__}")
    if len(key) < 16:
        raise ValueError(f"hmac_key: expected at least 16 bytes, got {len(key)}")
    return pickler(key)
