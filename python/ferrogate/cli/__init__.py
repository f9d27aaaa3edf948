"""The ``ferrogate`` command."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence

from ferrogate.cli import doctor, replay
from ferrogate.cli._errors import INTERRUPTED, CliError

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code.

    0 is success, 1 a failure on the way, 2 bad input (one line on stderr says
    what and where), 130 Ctrl-C.
    """
    parser = argparse.ArgumentParser(
        prog="ferrogate", description="Every call your agent makes goes through the gate."
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    replay.add_parsers(commands)
    doctor.add_parsers(commands)
    options = parser.parse_args(argv)
    run: Callable[[argparse.Namespace], int] = options.run
    try:
        code = run(options)
        sys.stdout.flush()
    except CliError as error:
        print("ferrogate:", " ".join(str(error).splitlines()), file=sys.stderr)
        return error.code
    except KeyboardInterrupt:
        print("ferrogate: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # `ferrogate replay … | head`: nobody reads on, which is no error of ours.
        # Python would complain again when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return code
