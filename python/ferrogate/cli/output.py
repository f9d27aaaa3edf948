"""The command's two streams: whatever is behind them, no traceback and no lost report."""

from __future__ import annotations

import io
import os
import sys
from contextlib import suppress

from ferrogate.cli._errors import FAILED, CliError

__all__ = ["Page", "complain", "discard", "write"]


class Page(io.StringIO):
    """Collects what is meant for stdout, and says of itself what stdout is."""

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """Stdout's."""
        return sys.stdout.encoding or "utf-8"

    def isatty(self) -> bool:
        """Whether stdout is a terminal."""
        return sys.stdout.isatty()


def write(text: str) -> None:
    """Prints ``text`` on stdout, with ``?`` for what its encoding cannot say.

    Raises:
        BrokenPipeError: nobody reads on.
        CliError: it cannot be written.
    """
    out = sys.stdout
    try:
        encoding = out.encoding or "utf-8"
        out.write(text.encode(encoding, "replace").decode(encoding))
        out.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise CliError(f"cannot write to stdout: {error.strerror or error}", FAILED) from error


def complain(text: str) -> None:
    """Prints a line on stderr, if there is one."""
    if sys.stderr is not None:  # Python has none where the shell said `2>&-`
        with suppress(OSError):
            print(text, file=sys.stderr, flush=True)


def discard() -> None:
    """Lets Python flush at exit what stdout would not take, without another complaint."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
