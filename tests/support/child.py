"""Python in a child process with a hard time limit: everything that may hang goes through here.
With it, how often to repeat what is repeated.

The child leads a process group of its own. When its time is up, the whole
group is made to dump its stacks (``-X faulthandler`` answers SIGABRT with the
Python stack of every thread) and then killed, so a failing test says where it
hung and leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

#: Under valgrind an interpreter is some thirty times slower.
MEMCHECK = os.environ.get("FERROGATE_MEMCHECK") == "1"
#: How many times the usual sample; 1 in `make test`, 100 in `make soak`.
SOAK = max(1, int(os.environ.get("FERROGATE_SOAK", "1")))
#: What every random choice starts from: the same in each `make test`, another in each soak.
SEED = int(os.environ.get("FERROGATE_SEED", "0"))

#: First line of a child that forks on purpose while it has threads.
FORKS = 'import warnings; warnings.filterwarnings("ignore", ".*fork.*", DeprecationWarning)\n'


def times(sample: int, full: int) -> int:
    """How many runs: ``sample`` usually, under FERROGATE_SOAK up to ``full``.

    Under valgrind a twentieth, but at least ten.
    """
    return min(sample, max(10, sample // 20)) if MEMCHECK else min(full, sample * SOAK)


def promised(bound: float, busy: float) -> float:
    """What is promised, in a soak, which has a machine for itself; else what a busy one gets."""
    return bound if SOAK > 1 else busy


def patience(seconds: float, runs: int = 1) -> float:
    """A limit for pytest.mark.timeout around ``runs`` that take up to ``seconds`` each."""
    return 60 + seconds * runs * (40 if MEMCHECK else 1)


@dataclass(frozen=True)
class Done:
    """How a child ended: ``code`` is negative for the signal that killed it."""

    code: int
    stdout: str
    stderr: str
    seconds: float

    def __str__(self) -> str:
        name = f"exit code {self.code}"
        if self.code < 0:
            name = f"killed by {signal.Signals(-self.code).name}"
        return (
            f"{name} after {self.seconds:.2f} s\n"
            f"── stdout\n{self.stdout or '(empty)'}\n── stderr\n{self.stderr or '(empty)'}"
        )


class Hung(AssertionError):
    """The child did not end in time; the message has its stacks."""


def run(
    code: str | Path,
    *arguments: str,
    timeout: float = 30,
    warnings: str = "error",
    env: Mapping[str, str] | None = None,
    meanwhile: Callable[[subprocess.Popen[bytes]], object] | None = None,
) -> Done:
    """Runs a snippet (dedented) or a file in this interpreter's executable.

    ``meanwhile`` is called with the process once it runs, to talk to it or to
    signal it. Raises :class:`Hung` after ``timeout`` seconds.
    """
    limit = timeout * (40 if MEMCHECK else 1)
    program = ["-c", textwrap.dedent(code)] if isinstance(code, str) else [str(code)]
    command = [sys.executable, "-X", "faulthandler", "-W", warnings, *program, *arguments]
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        begin = time.monotonic()
        # Files, not pipes: a grandchild that inherited a pipe would keep the reader waiting.
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            env={**os.environ, **(env or {})},
            start_new_session=True,
        )
        hung = False
        try:
            if meanwhile is not None:
                meanwhile(process)
            process.wait(limit)
        except subprocess.TimeoutExpired:
            hung = True
            _signal_group(process.pid, signal.SIGABRT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(3)
        finally:
            _signal_group(process.pid, signal.SIGKILL)
            process.wait()
        done = Done(process.returncode, _text(out), _text(err), time.monotonic() - begin)
    if hung:
        raise Hung(f"hung: not done after {limit:g} s; {done}")
    return done


def run_well(
    code: str | Path,
    *arguments: str,
    timeout: float = 30,
    warnings: str = "error",
    env: Mapping[str, str] | None = None,
) -> str:
    """:func:`run`; it must exit with 0 and say nothing on stderr. Returns its stdout."""
    done = run(code, *arguments, timeout=timeout, warnings=warnings, env=env)
    assert (done.code, done.stderr) == (0, ""), str(done)
    return done.stdout


def is_collected(*references: Callable[[], object]) -> bool:
    """Whether the collector finds nothing that keeps these weak references' objects alive.

    A single `gc.collect()` does nothing while another thread is collecting.
    """
    for _ in range(20):
        gc.collect()
        if all(reference() is None for reference in references):
            return True
        time.sleep(0.01)
    return False


def _signal_group(leader: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, number)


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")
