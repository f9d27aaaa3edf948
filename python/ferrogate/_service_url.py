"""Which store a URL names, and with which options."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote, urlsplit

from ferrogate._arguments import seconds, whole


def _memory(url: str, options: dict[str, Any]) -> dict[str, Any] | None:
    if urlsplit(url).netloc or urlsplit(url).path.strip("/"):
        raise ValueError(f"url: expected 'memory://' and nothing behind it, got {url!r}")
    _refuse_options("memory", options)
    return None


def _sqlite(url: str, options: dict[str, Any]) -> dict[str, Any]:
    path = path_of(url)
    given = {
        "max_bytes": whole("max_bytes", options.pop("max_bytes", 1 << 30), least=1 << 16),
        "max_entries": whole("max_entries", options.pop("max_entries", 1_000_000), least=1),
        "readers": whole("readers", options.pop("readers", 2), least=1),
        "busy_seconds": seconds("busy_seconds", options.pop("busy_seconds", 0.25)),
    }
    _refuse_options("sqlite", options)
    return {"kind": "sqlite", "path": path, **given}


#: What the native layer is to open for a scheme; ``None`` for no store at all.
_SCHEMES: dict[str, Callable[[str, dict[str, Any]], dict[str, Any] | None]] = {
    "memory": _memory,
    "sqlite": _sqlite,
}


def tier_of(url: str, options: dict[str, Any]) -> dict[str, Any] | None:
    """The native description of the store at ``url``.

    Raises:
        ValueError: an unknown scheme, or an option that this kind of store does not have.
    """
    if not isinstance(url, str):
        raise TypeError(f"url: expected a str such as 'memory://', got {type(url).__name__}")
    scheme = urlsplit(url).scheme
    make = _SCHEMES.get(scheme)
    if make is None:
        known = ", ".join(f"{name}://" for name in _SCHEMES)
        raise ValueError(f"url: expected one of {known}, got {shown(url)!r}")
    return make(url, options)


def _refuse_options(kind: str, options: dict[str, Any]) -> None:
    for name in options:
        raise TypeError(f"{name}: a {kind}:// service has no such option")


def shown(url: str) -> str:
    """Without the password that it may carry."""
    parts = urlsplit(url)
    if parts.password is None:
        return url
    return url.replace(f":{parts.password}@", ":***@")


def path_of(url: str) -> str:
    """The absolute path in ``scheme:///path``; ``scheme:///./relative`` is below this directory."""
    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost") or not parts.path.strip("/"):
        raise ValueError(
            f"url: expected three slashes and a path such as 'sqlite:///var/cache/agent.db', "
            f"got {url!r}"
        )
    if parts.query or parts.fragment:
        raise ValueError(f"url: write '?' as %3F and '#' as %23 in the path of {url!r}")
    path = unquote(parts.path)
    if path.startswith(("/./", "/../")):
        path = path[1:]
    return os.path.abspath(path)
