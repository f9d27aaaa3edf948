"""The ``ferrogate`` command."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress

from ferrogate import __version__
from ferrogate.cli import doctor, replay
from ferrogate.cli._errors import BAD_INPUT, FAILED, INTERRUPTED, CliError
from ferrogate.cli.arguments import Parser
from ferrogate.cli.output import complain, discard, write

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code.

    0 is success, 1 a failure on the way, 2 bad input (one line on stderr says
    what and where), 130 Ctrl-C.
    """
    if sys.stdout is None:  # `>&-`; the next file to be opened would take its place
        complain("ferrogate: stdout is closed")
        return FAILED
    try:
        code = _run(argv)
    except CliError as error:
        complain("ferrogate: " + " ".join(str(error).splitlines()))
        discard()
        return error.code
    except KeyboardInterrupt:
        complain("ferrogate: interrupted")
        code = INTERRUPTED
    except BrokenPipeError:
        # `ferrogate replay … | head`: nobody reads on, which is no error of ours.
        discard()
        return 0
    if code == INTERRUPTED:
        # A second Ctrl-C would only make the interpreter's own end look like a crash.
        with suppress(ValueError):  # not in the main thread
            signal.signal(signal.SIGINT, signal.SIG_IGN)
    return code


def _run(argv: Sequence[str] | None) -> int:
    parser = Parser(
        prog="ferrogate", description="Every call your agent makes goes through the gate."
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    replay.add_parsers(commands)
    doctor.add_parsers(commands)
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments:
        complain(parser.format_help().rstrip())
        return BAD_INPUT
    if arguments[0] == "help":
        arguments = [*arguments[1:2], "--help"]
    try:
        options = parser.parse_args(arguments)
    except SystemExit:
        write("")  # the help that was asked for
        raise
    run: Callable[[argparse.Namespace], int] = options.run
    return run(options)
