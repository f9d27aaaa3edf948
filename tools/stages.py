"""Runs stages, mostly one after the other, counts what they tested, says what each took.

Every run ends with a table of seconds and a closing line as pytest writes it.
With `FERROGATE_RESULTS` set, totals are added up over several runs in that
file, and `python tools/stages.py FILE STATUS` prints the line for all of them.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

ROOT = Path(__file__).resolve().parent.parent

CARGO_RESULT = re.compile(r"^test result: \w+\. (\d+) passed; (\d+) failed; (\d+) ignored")


@dataclass
class Counts:
    """How many tests did what."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0

    def add(self, other: Counts) -> None:
        """Adds another stage's counts."""
        self.passed += other.passed
        self.failed += other.failed
        self.skipped += other.skipped

    def closing_line(self, seconds: float) -> str:
        """`===== 2 failed, 310 passed, 1 skipped in 12.34s =====`."""
        parts = [("failed", self.failed), ("passed", self.passed), ("skipped", self.skipped)]
        said = ", ".join(f"{n} {what}" for what, n in parts if n) or "no tests ran"
        return f" {said} in {seconds:.2f}s ".center(78, "=")


@dataclass
class Stage:
    """One finished stage."""

    name: str
    seconds: float
    counts: Counts
    note: str = ""


@dataclass
class Stages:
    """The run: `run` for each stage, `close` at the end for the exit code."""

    title: str
    done: list[Stage] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)

    def run(
        self,
        name: str,
        command: Sequence[str | Path],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path = ROOT,
        junit: Path | None = None,
        excused: re.Pattern[str] | None = None,
        out: TextIO | None = None,
    ) -> bool:
        """Runs `command`, streaming its output (to `out`); False if it failed.

        cargo's result lines, or the `junit` file that pytest was told to write,
        give the counts; any other command counts as one test. With `excused`,
        a skip for a reason that does not match is a failure.
        """
        print(f"\n── {self.title}: {name}", file=out, flush=True)
        begin = time.monotonic()
        if junit is not None:
            junit.unlink(missing_ok=True)
        counts = Counts()
        code = 127
        try:
            process = subprocess.Popen(
                [str(c) for c in command],
                cwd=cwd,
                env=None if env is None else dict(env),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
            )
        except OSError as error:
            print(error, file=out, flush=True)
        else:
            for line in process.stdout or ():
                print(line, end="", file=out, flush=True)
                if result := CARGO_RESULT.match(line):
                    counts.add(Counts(*(int(n) for n in result.groups())))
            code = process.wait()
        note = ""
        if junit is not None and junit.exists():
            counts, unexcused = read_junit(junit, excused)
            for reason in unexcused:
                print(f"nothing may skip here: {reason}", file=out, flush=True)
            if unexcused:
                note = f"{len(unexcused)} skipped without an excuse"
                counts.failed += len(unexcused)
                counts.skipped -= len(unexcused)
        if code and not counts.failed:
            counts.failed += 1
            note = note or f"exit code {code}"
        if not (counts.passed or counts.failed or counts.skipped):
            counts.passed = 1
        self.done.append(Stage(name, time.monotonic() - begin, counts, note))
        return not counts.failed

    @contextlib.contextmanager
    def beside(self, name: str, command: Sequence[str | Path], **how: Any) -> Iterator[None]:
        """:meth:`run` while the block runs. What it said is printed after that, in one piece."""
        out = io.StringIO()
        with ThreadPoolExecutor(1) as pool:
            other = pool.submit(self.run, name, command, out=out, **how)
            try:
                yield
                other.result()
            finally:
                # A run that is interrupted says how far this one came.
                pool.shutdown()
                print(out.getvalue(), end="", flush=True)

    def absent(self, name: str, reason: str) -> None:
        """Notes a stage that cannot run; under FERROGATE_NO_SKIP=1 (CI) that is a failure."""
        print(f"\n── {self.title}: {name}: {reason}", flush=True)
        strict = os.environ.get("FERROGATE_NO_SKIP") == "1"
        self.done.append(Stage(name, 0.0, Counts(failed=int(strict)), reason))

    def close(self) -> int:
        """Prints the table and the closing line; the exit code."""
        total = Counts()
        print(f"\n{self.title}, seconds by stage")
        for stage in self.done:
            total.add(stage.counts)
            mark = "FAILED" if stage.counts.failed else "ok" if stage.counts.passed else "-"
            note = f"  {stage.note}" if stage.note else ""
            print(f"  {stage.seconds:8.1f}  {mark:6}  {stage.name}{note}")
        seconds = time.monotonic() - self.started
        if results := os.environ.get("FERROGATE_RESULTS"):
            with Path(results).open("a", encoding="utf-8") as file:
                file.write(json.dumps({"seconds": seconds, **vars(total)}) + "\n")
        print(total.closing_line(seconds), flush=True)
        return 1 if total.failed else 0


def read_junit(path: Path, excused: re.Pattern[str] | None) -> tuple[Counts, list[str]]:
    """pytest's counts, and the skips whose reason nothing excuses."""
    counts = Counts()
    unexcused = []
    for case in ET.parse(path).getroot().iter("testcase"):
        outcome = next((o for o in case if o.tag in ("skipped", "failure", "error")), None)
        kind = "" if outcome is None else outcome.tag
        if outcome is not None and kind == "skipped":
            counts.skipped += 1
            reason = outcome.get("message", "")
            if reason == "collection skipped":
                # A whole module; its reason stands in the text: ('file', line, 'Skipped: …').
                reason = (outcome.text or "").partition("Skipped: ")[2]
            expected = outcome.get("type") == "pytest.xfail"
            if excused is not None and not expected and not excused.search(reason):
                unexcused.append(f"{case.get('classname')}.{case.get('name')}: {reason}")
        elif kind:
            counts.failed += 1
        else:
            counts.passed += 1
    return counts, unexcused


def closing(path: Path, status: int) -> str:
    """The line for all runs noted in `path`; a bad `status` alone is one failure."""
    total, seconds = Counts(), 0.0
    for run in read_results(path):
        seconds += run["seconds"]
        total.add(Counts(int(run["passed"]), int(run["failed"]), int(run["skipped"])))
    if status and not total.failed:
        total.failed = 1
    return total.closing_line(seconds)


def read_results(path: Path) -> Iterator[dict[str, float]]:
    """The runs noted in `path`."""
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            yield json.loads(line)


if __name__ == "__main__":
    print(closing(Path(sys.argv[1]), int(sys.argv[2])))
