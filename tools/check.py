"""`make check`: form, lints, types, layers. Every check runs, whatever the others said."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from envs import environment, main_env
from stages import ROOT, Stages

TYPED = ("python", "tests/typing", "tools", "benches/peers", "fuzz")


def main() -> int:
    """Runs all checks; the exit code."""
    stages = Stages("check")
    python, inside = main_env()
    tools = inside.parent
    rust = environment(PYO3_PYTHON=str(python.path))
    clippy = ["cargo", "clippy", "--locked", "--all-targets"]
    deny = ["--", "-D", "warnings"]
    stages.run("cargo fmt", ["cargo", "fmt", "--check"])
    # Built by `make fuzz` only, which a lock file that is behind would stop.
    fuzz = "--manifest-path=fuzz/Cargo.toml"
    stages.run("cargo fmt, fuzz", ["cargo", "fmt", "--check", fuzz])
    stages.run("fuzz/Cargo.lock", ["cargo", "fetch", "--locked", "--quiet", fuzz])
    stages.run("clippy, the core alone", [*clippy, *deny], env=rust)
    features = ["--features", "python,failpoints"]
    stages.run("clippy, with python", [*clippy, "--features", "python", *deny], env=rust)
    stages.run("clippy, with failpoints", [*clippy, *features, *deny], env=rust)
    stages.run(
        "rustdoc",
        ["cargo", "doc", "--locked", "--no-deps", "--quiet"],
        env=rust | {"RUSTDOCFLAGS": "-D warnings"},
    )
    stages.run("layers", [inside, "tools/check_layers.py"])
    stages.run("file lengths", [inside, "tools/check_lengths.py"])
    stages.run("ruff", [tools / "ruff", "check"])
    stages.run("ruff format", [tools / "ruff", "format", "--check"])
    for folder in TYPED:
        if any((ROOT / folder).rglob("*.py")):
            stages.run(f"mypy {folder}", [inside, "-m", "mypy", folder])
    if stages.run("wheel", [sys.executable, "tools/wheels.py", "dev"]):
        stubtest(stages, inside)
    return stages.close()


def stubtest(stages: Stages, inside: Path) -> None:
    """The hand-written stub against the module as built."""
    allowed = ROOT / "tools" / "stubtest-allowlist.txt"
    options = [f"--allowlist={allowed}"] if allowed.exists() else []
    with tempfile.TemporaryDirectory() as elsewhere:
        # Elsewhere, so that the installed package is found and not the sources.
        stages.run(
            "stubtest",
            [inside, "-m", "mypy.stubtest", "ferrogate._core", *options],
            env=environment(),
            cwd=Path(elsewhere),
        )


if __name__ == "__main__":
    sys.exit(main())
