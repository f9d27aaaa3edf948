"""Which store a URL names, and with which options."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, unquote_to_bytes, urlsplit

from ferrogate._arguments import flag, seconds, text_or_none, whole


def _memory(url: str, options: dict[str, Any]) -> dict[str, Any] | None:
    if urlsplit(url).netloc or urlsplit(url).path.strip("/"):
        raise ValueError(f"url: expected 'memory://' and nothing behind it, got {shown(url)!r}")
    _refuse_options("memory", options)
    return None


def _sqlite(url: str, options: dict[str, Any]) -> dict[str, Any]:
    path = path_of(url)
    refuse_place(path)
    given = {
        "max_bytes": whole("max_bytes", options.pop("max_bytes", 1 << 30), least=1 << 16),
        "max_entries": whole("max_entries", options.pop("max_entries", 1_000_000), least=1),
        "readers": whole("readers", options.pop("readers", 2), least=1, most=64),
        "busy_seconds": seconds("busy_seconds", options.pop("busy_seconds", 0.25)),
    }
    _refuse_options("sqlite", options)
    return {"kind": "sqlite", "path": path, **given}


def _redis(url: str, options: dict[str, Any]) -> dict[str, Any]:
    parts = urlsplit(url)
    base, _, mode = parts.scheme.partition("+")
    if parts.query or parts.fragment or {"?", "#", " "} & set(url) or "@" in parts.path:
        # Not what was given: a part of a password may stand anywhere.
        raise ValueError(
            "url: expected no '?', '#' or blank, and no '/' before the host; in a password write "
            "%3F, %23, %20 and %2F, and options as arguments"
        )
    sentinel = text_or_none("sentinel", options.pop("sentinel", None))
    cluster = flag("cluster", options.pop("cluster", False))
    path = [unquote(part) for part in parts.path.split("/") if part]
    if mode == "sentinel" and sentinel is None:
        if not path:
            raise ValueError(f"url: expected the master's name in its path, got {shown(url)!r}")
        sentinel = path.pop(0)
    cluster = cluster or mode == "cluster"
    if sentinel is not None and cluster:
        raise ValueError("sentinel: a Cluster has no Sentinels")
    if len(path) > 1 or (path and not (path[0].isascii() and path[0].isdecimal())):
        raise ValueError(f"url: expected the number of a database, got {parts.path!r}")
    db = int(path[0]) if path else 0
    if cluster and db:
        raise ValueError("url: a Cluster has only database 0")
    userinfo, _, hosts = parts.netloc.rpartition("@")
    username, _, password = userinfo.partition(":")
    named = hosts.split(",")
    if len(named) > 1 and not all(named):
        raise ValueError("url: expected a host before and behind each comma")
    if len(named) > 1 and sentinel is None and not cluster:
        raise ValueError(
            "url: expected one host; several are Sentinels, redis+sentinel://…/master, or nodes of "
            "a Cluster, redis+cluster://…"
        )
    default = _DEFAULT_SENTINEL_PORT if sentinel is not None else _DEFAULT_PORT
    timeout = seconds("timeout_seconds", options.pop("timeout_seconds", 0.25), most=3600)
    connections = options.pop("max_connections", None)
    if connections is None:
        connections = _from_environment("REDIS_MAX_CONNECTIONS", 10, least=2)
    prefix = text_or_none("prefix", options.pop("prefix", None))
    if prefix == "":
        raise ValueError("prefix: expected what all keys of this cache begin with, got ''")
    given: dict[str, Any] = {
        "kind": "redis",
        "mode": "sentinel" if sentinel is not None else "cluster" if cluster else "single",
        "master": sentinel or "",
        "nodes": [_host_and_port(host, default) for host in named],
        "db": db,
        "username": unquote(username) or None,
        "password": unquote(password) or None,
        "sentinel_username": None,
        "sentinel_password": None,
        "timeout_seconds": timeout,
        "max_connections": whole("max_connections", connections, least=2),
        "prefix": prefix or "ferrogate:",
        "tls": None,
    }
    if sentinel is not None:
        for name in ("sentinel_username", "sentinel_password"):
            given[name] = text_or_none(name, options.pop(name, None)) or None
    if base == "rediss":
        given["tls"] = tuple(
            _pem(name, options.pop(name, None))
            for name in ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
        )
        if (given["tls"][1] is None) != (given["tls"][2] is None):
            raise ValueError("ssl_certfile: expected with ssl_keyfile, or neither")
    _refuse_options(base, options)
    return given


def _pem(name: str, path: str | os.PathLike[str] | None) -> bytes | None:
    if path is None:
        return None
    try:
        pem = Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"{name}: {error}") from error
    if b"-----BEGIN" not in pem:
        raise ValueError(f"{name}: expected a file in PEM format, got {path}")
    return pem


def _host_and_port(netloc: str, default: int) -> tuple[str, int]:
    try:
        parts = urlsplit(f"//{netloc}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, 0
    if port == 0 or (not host and netloc and not netloc.startswith(":")):
        raise ValueError(f"url: expected host:port, got {netloc!r}")
    return host or "localhost", port or default


def _from_environment(name: str, default: int, *, least: int) -> int:
    text = os.environ.get(name)
    if text is None:
        return default
    if not text.isdecimal() or int(text) < least:
        raise ValueError(
            f"{name}: expected a whole number from {least} on in the environment, got {text!r}"
        )
    return int(text)


_DEFAULT_PORT = 6379
_DEFAULT_SENTINEL_PORT = 26379

#: What the native layer is to open for a scheme; ``None`` for no store at all.
_SCHEMES: dict[str, Callable[[str, dict[str, Any]], dict[str, Any] | None]] = {
    "memory": _memory,
    "sqlite": _sqlite,
    "redis": _redis,
    "rediss": _redis,
    "redis+sentinel": _redis,
    "rediss+sentinel": _redis,
    "redis+cluster": _redis,
    "rediss+cluster": _redis,
}


def url_of(url: str | os.PathLike[str]) -> str:
    """The URL of a store; a path is that of a SQLite file.

    Raises:
        TypeError, ValueError: it is neither, or no URL.
    """
    if isinstance(url, os.PathLike):
        return f"sqlite://{quote(os.fsencode(os.path.abspath(os.fspath(url))))}"
    if not isinstance(url, str):
        raise TypeError(
            f"url: expected a str such as 'memory://' or a path, got {type(url).__name__}"
        )
    if any(letter < " " for letter in url):
        # The parser would drop some of them without a word.
        raise ValueError(f"url: expected no control characters, got {shown(url)!r}")
    try:
        scheme = urlsplit(url).scheme
    except ValueError as error:
        # Without a part of it: it may have a password.
        raise ValueError(f"url: {error}; in a password write '[' as %5B and ']' as %5D") from None
    if scheme in _SCHEMES and not url.lower().startswith(f"{scheme}://"):
        raise ValueError(f"url: expected '//' behind {scheme + ':'!r}, got {shown(url)!r}")
    return url


def tier_of(url: str, options: dict[str, Any]) -> dict[str, Any] | None:
    """The native description of the store at ``url``.

    Raises:
        ValueError: an unknown scheme, or an option that this kind of store does not have.
    """
    scheme = urlsplit(url).scheme
    make = _SCHEMES.get(scheme)
    if make is None:
        known = ", ".join(f"{name}://" for name in _SCHEMES)
        raise ValueError(f"url: expected one of {known} or a pathlib.Path, got {shown(url)!r}")
    return make(url, options)


def _refuse_options(kind: str, options: dict[str, Any]) -> None:
    for name in options:
        raise TypeError(f"{name}: a {kind}:// service has no such option")


def shown(url: str) -> str:
    """Without the password that it may carry."""
    if "@" in url and "://" not in url.partition("@")[0]:
        return f"***@{url.rpartition('@')[2]}"
    parts = urlsplit(url)
    if parts.password is None:
        return url
    return url.replace(f":{parts.password}@", ":***@")


def path_of(url: str, argument: str = "url") -> str:
    """The absolute path in ``scheme:///path``; ``scheme:///./relative`` is below the current
    directory."""
    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost") or not parts.path.strip("/"):
        raise ValueError(
            f"{argument}: expected three slashes and an absolute path such as "
            f"'sqlite:///var/cache/agent.db', or 'sqlite:///./agent.db', got {url!r}"
        )
    if parts.query or parts.fragment:
        raise ValueError(f"{argument}: write '?' as %3F and '#' as %23 in the path of {url!r}")
    path = os.fsdecode(unquote_to_bytes(parts.path))
    if path.startswith(("/./", "/../")):
        path = path[1:]
    if os.path.basename(path) == ":memory:":
        raise ValueError(f"{argument}: expected a file, got {url!r}; write 'memory://' for memory")
    if path.startswith("//"):
        # As others write an absolute path: with four slashes.
        path = "/" + path.lstrip("/")
    return os.path.abspath(path)


def refuse_place(path: str, argument: str = "url") -> None:
    """Raises what opening a file there would, with a way out."""
    folder, name = os.path.split(path)
    if os.path.isdir(path):
        raise IsADirectoryError(errno.EISDIR, f"{argument}: expected a file, got a directory", path)
    if not os.path.isdir(folder):
        raise FileNotFoundError(
            errno.ENOENT, f"{argument}: its directory does not exist, make it first", path
        )
    if folder == "/" and not os.path.exists(path) and not os.access(folder, os.W_OK):
        raise PermissionError(
            errno.EACCES,
            f"{argument}: three slashes are an absolute path, write sqlite:///./{name} for one "
            "below the current directory",
            path,
        )
