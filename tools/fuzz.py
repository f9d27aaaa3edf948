"""`make fuzz`: builds the targets of fuzz/ and runs each for FUZZ_SECONDS (60).

`fuzz.py [TARGET…]` runs some of them; `fuzz.py TARGET FILE…` looks at these inputs again.

cargo-fuzz would want a nightly toolchain for its sanitizers. What libFuzzer needs to be guided,
counters at every branch, a stable rustc puts in too; libFuzzer itself comes as source in a crate.
Every run starts from fuzz/seeds and what earlier runs left in fuzz/grown.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from envs import environment
from pythons import Python, preferred, select
from stages import ROOT, Stages

FUZZ = ROOT / "fuzz"
SECONDS = 60
TARGETS = ("changes", "frame", "headers", "json", "key", "msgpack")

#: As cargo-fuzz sets them, without what only nightly takes.
FLAGS = (
    "--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4"
    " -Cllvm-args=-sanitizer-coverage-inline-8bit-counters"
    " -Cllvm-args=-sanitizer-coverage-pc-table"
    " -Cllvm-args=-sanitizer-coverage-trace-compares"
)
LIMITS = (
    "-timeout=20",  # seconds for one input: longer is a hang
    "-rss_limit_mb=1024",
    "-max_len=4096",
    "-print_final_stats=1",
    "-verbosity=0",
)


def main(arguments: list[str]) -> int:
    """Runs the named targets, or all; the exit code."""
    if files := [a for a in arguments if a not in TARGETS]:
        if len(arguments) == len(files) or not all(Path(f).is_file() for f in files):
            sys.exit(f"fuzz.py: expected targets ({', '.join(TARGETS)}), or one and its inputs")
        module = build(Stages("fuzz"), python := preferred(select()))
        again = [*command(python, module, arguments[0]), *files] if module else ["false"]
        return subprocess.run(again, cwd=ROOT, env=environment(), check=False).returncode
    stages = Stages("fuzz")
    wanted = os.environ.get("FERROGATE_PYTHONS", "").split()
    run(stages, preferred(select(wanted)), seconds(SECONDS), arguments or list(TARGETS))
    return stages.close()


def seconds(usual: int) -> int:
    """How long each target runs."""
    return int(os.environ.get("FUZZ_SECONDS", usual))


def run(stages: Stages, python: Python, each: int, targets: list[str]) -> None:
    """Every target for `each` seconds; with 0 only what it has seen before."""
    module = build(stages, python)
    if module is None:
        return
    (FUZZ / "found").mkdir(exist_ok=True)
    # 0 would be a seed of libFuzzer's own choice.
    chance = [f"-seed={int(s) + 1}"] if (s := os.environ.get("FERROGATE_SEED")) else []
    for target in targets:
        grown = FUZZ / "grown" / target
        grown.mkdir(parents=True, exist_ok=True)
        length = [f"-max_total_time={each}"] if each else ["-runs=0"]
        stages.run(
            f"{target}, {each} s",
            [
                *command(python, module, target),
                *LIMITS,
                *length,
                *chance,
                f"-artifact_prefix={FUZZ}/found/{target}-",
                grown,
                FUZZ / "seeds" / target,
            ],
            env=environment(),
        )
    found = sorted(f.relative_to(ROOT) for f in (FUZZ / "found").iterdir())
    for file in found:
        target = file.name.partition("-")[0]
        print(f"found; look again with python3 tools/fuzz.py {target} {file}", flush=True)


def command(python: Python, module: Path, target: str) -> list[str | Path]:
    """How a target is started."""
    return [python.path, "-B", FUZZ / "run.py", module, target]


def build(stages: Stages, python: Python) -> Path | None:
    """The module with all targets; None if it could not be built."""
    if not any(shutil.which(c) for c in (os.environ.get("CXX"), "c++", "g++", "clang++") if c):
        stages.absent("build", "libFuzzer needs a C++ compiler. On Debian: apt install g++")
        return None
    told = subprocess.run(["rustc", "-vV"], capture_output=True, text=True, check=True).stdout
    host = re.search(r"^host: (.+)$", told, re.MULTILINE)
    assert host is not None
    target = ROOT / "target-fuzz"
    built = stages.run(
        "build",
        # With --target the flags are not for build scripts and macros, which run elsewhere.
        ["cargo", "build", "--locked", "--profile=fuzz", "--target", host[1]],
        cwd=FUZZ,
        env=environment(
            CARGO_TARGET_DIR=str(target),
            PYO3_BUILD_EXTENSION_MODULE="1",
            PYO3_PYTHON=str(python.path),
            RUSTFLAGS=FLAGS,
        ),
    )
    made = target / host[1] / "fuzz"
    return next(made.glob("libferrogate_fuzz.*[os]"), None) if built else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
