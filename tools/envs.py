"""Virtual environments and wheels, made once and remade when what they came from changes."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pythons import Python, clean_environment, preferred, select
from stages import ROOT

if TYPE_CHECKING:
    from collections.abc import Sequence

LOCKS = ROOT / "requirements"
DIST = ROOT / "dist"
MAIN = ROOT / ".venv"


def environment(**more: str) -> dict[str, str]:
    """What children see: no redirections, plus `more`."""
    return clean_environment() | more


def make_env(folder: Path, python: Python, locks: Sequence[str]) -> Path:
    """A virtual environment with exactly the locked `locks`; the path of its interpreter.

    It is kept as long as the interpreter and the lock files stay what they are.
    """
    inside = folder / "bin" / "python"
    digest = hashlib.sha256(str(python).encode())
    for lock in locks:
        digest.update((LOCKS / f"{lock}.txt").read_bytes())
    stamp = folder / ".ferrogate-stamp"
    if inside.exists() and stamp.exists() and stamp.read_text() == digest.hexdigest():
        return inside
    print(f"making {folder.relative_to(ROOT)} with {python}: {', '.join(locks)}", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    call([python.path, "-m", "venv", folder])
    for lock in locks:
        call([*pip(inside), "--require-hashes", "-r", LOCKS / f"{lock}.txt"])
    stamp.write_text(digest.hexdigest())
    return inside


def main_python() -> Python:
    """The interpreter of every environment that is made once."""
    return preferred(select(os.environ.get("FERROGATE_PYTHONS", "").split()))


def main_env() -> tuple[Python, Path]:
    """`.venv`, with the tools and all that the typed sources import."""
    python = main_python()
    return python, make_env(MAIN, python, ["tools", "test"])


def side_env(name: str) -> tuple[Python, Path]:
    """`.venv-NAME`: the tools, as maturin is one, and one lock; nothing of the suite's."""
    python = main_python()
    return python, make_env(ROOT / f".venv-{name}", python, ["tools", name])


def install(inside: Path, wheel: Path) -> None:
    """Installs the built wheel, and nothing else."""
    call([*pip(inside), "--no-index", "--no-deps", "--force-reinstall", wheel])


def pip(inside: Path) -> list[str | Path]:
    """pip's command in an environment."""
    return [inside, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]


def build_wheel(maturin: Path, python: Python, *, failpoints: bool = False) -> Path:
    """Builds the wheel for `python`: release into dist/, or a debug one with failpoints.

    Every version has a target folder of its own, copied from one that exists:
    pyo3 is compiled against one interpreter, and in a shared folder each version
    would throw the others' away. Measured on 2 cores, empty package: first wheel
    21 s, a further one 8 s with a copied folder and 17 s without.
    """
    kind = "failpoints" if failpoints else python.tag
    target = ROOT / f"target-{kind}"
    if not target.exists() and not failpoints:
        seed = next((d for d in sorted(ROOT.glob("target-cp*")) if d.is_dir()), None)
        if seed is not None:
            shutil.copytree(seed, target, symlinks=True)
    out = target / "wheels" if failpoints else DIST
    for old in out.glob(f"*-{python.tag}-*.whl"):
        old.unlink()
    options = ["--features", "python,failpoints"] if failpoints else ["--release"]
    call(
        [maturin, "build", "--locked", *options, "--interpreter", python.path, "--out", out],
        env=environment(CARGO_TARGET_DIR=str(target)),
    )
    (wheel,) = out.glob(f"*-{python.tag}-*.whl")
    return wheel


def call(
    command: Sequence[str | Path], *, env: dict[str, str] | None = None, cwd: Path = ROOT
) -> None:
    """Runs a command that must succeed; its failure ends the program."""
    said = [str(c) for c in command]
    code = subprocess.run(said, cwd=cwd, env=env or environment(), check=False).returncode
    if code:
        sys.exit(f"failed with {code}: {' '.join(said)}")
