"""The one kind of error that the command line shows to its user."""

from __future__ import annotations

__all__ = ["BAD_INPUT", "FAILED", "INTERRUPTED", "CliError"]

FAILED = 1
BAD_INPUT = 2
INTERRUPTED = 130


class CliError(Exception):
    """Printed as one line on stderr, without a traceback; the exit code is ``code``."""

    def __init__(self, message: str, code: int = BAD_INPUT) -> None:
        super().__init__(message)
        self.code = code
