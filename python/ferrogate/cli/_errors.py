"""The one kind of error that the command line shows to its user."""

from __future__ import annotations

__all__ = ["BAD_INPUT", "FAILED", "INTERRUPTED", "CliError", "require_demo_extra"]

FAILED = 1
BAD_INPUT = 2
INTERRUPTED = 130


class CliError(Exception):
    """Printed as one line on stderr, without a traceback; the exit code is ``code``."""

    def __init__(self, message: str, code: int = BAD_INPUT) -> None:
        super().__init__(message)
        self.code = code


def require_demo_extra(command: str) -> None:
    """Raises `CliError` with the way to install when a package of the extra is missing."""
    missing = []
    for package in ("aiohttp", "openai", "rich"):
        try:
            __import__(package)
        except ImportError:
            missing.append(package)
    if missing:
        raise CliError(
            f"`ferrogate {command}` needs {', '.join(missing)}: pip install 'ferrogate[demo]'"
        )
