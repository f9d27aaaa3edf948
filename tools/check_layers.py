"""Checks that imports point one way only (ARCHITECTURE: core → runtime → py → package).

`check_layers.py [ROOT]` prints every breach as `file:line: what` and exits with 1.
Comments and string literals do not count.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

# What every part of the core may use; the rest are components that do not know each other.
SHARED = {"clock", "error", "flight", "key", "metrics", "snapshot", "sync"}
# Composition happens here.
COMPOSERS = {"guard"}

LITERALS = re.compile(
    r"""
    //[^\n]* | /\*.*?\*/                  # comments
    | b?r(?P<hash>\#*)".*?"(?P=hash)      # raw strings
    | b?"(?:\\.|[^"\\])*"                 # strings
    | '(?:\\.[^']*|[^'\\])'               # characters, not lifetimes
    """,
    re.DOTALL | re.VERBOSE,
)

LOCKS = re.compile(r"parking_lot|std::sync::(?:\{[^}]*)?\b(?:Mutex|RwLock|Condvar)\b", re.DOTALL)
CLOCKS = re.compile(r"\b(?:Instant|SystemTime)::now\b|\bclock_gettime\b")


def code(text: str) -> str:
    """Rust without comments and literals, every line where it was."""
    return LITERALS.sub(lambda m: "\n" * m[0].count("\n") or " ", text)


def breaches(root: Path) -> Iterator[str]:
    """Every place in src/ that breaks a rule."""
    src = root / "src"
    if not (src / "core" / "mod.rs").exists():
        yield f"{src / 'core' / 'mod.rs'}: expected a core"
        return
    if "#![forbid(unsafe_code)]" not in (src / "core" / "mod.rs").read_text(encoding="utf-8"):
        yield "src/core/mod.rs:1: expected #![forbid(unsafe_code)]"
    for path in sorted(src.rglob("*.rs")):
        inside = path.relative_to(src)
        text = code(path.read_text(encoding="utf-8"))
        for rule, what in rules(inside.parts):
            for match in rule.finditer(text):
                line = text.count("\n", 0, match.start()) + 1
                yield f"src/{inside.as_posix()}:{line}: {what}"
        if inside.parts[0] == "core":
            yield from neighbours(inside, text)


def rules(parts: tuple[str, ...]) -> Iterator[tuple[re.Pattern[str], str]]:
    """The patterns that may not occur in this file."""
    floor = parts[0]
    if floor == "core":
        yield re.compile(r"\bunsafe\b(?!_code)"), "unsafe in the core"
        yield re.compile(r"\bcrate::(?:py|runtime)\b"), "the core uses a floor above it"
    if floor in ("core", "runtime"):
        yield re.compile(r"\bpyo3\b"), "pyo3 below the bindings"
    if floor == "runtime":
        yield re.compile(r"\bcrate::py\b"), "the runtime uses a floor above it"
        yield re.compile(r"\bunsafe\b"), "unsafe outside src/py"
    if parts != ("core", "clock.rs"):
        yield CLOCKS, "the clock is read in core/clock.rs only"
    if parts != ("core", "sync.rs"):
        yield LOCKS, "locks come from core/sync.rs only"


def neighbours(inside: Path, text: str) -> Iterator[str]:
    """A component that uses another component."""
    own = inside.parts[1].removesuffix(".rs")
    if own in COMPOSERS:
        return
    for match in re.finditer(r"\bcrate::core::(?:(\w+)|\{([^;]*)\})", text):
        names = {match[1]} if match[1] else set(re.findall(r"(?:^|,)\s*(\w+)", match[2]))
        for name in sorted(names - SHARED - {own, "self"}):
            line = text.count("\n", 0, match.start()) + 1
            yield f"src/{inside.as_posix()}:{line}: {own} uses the component {name}"


def python_free(tree: str) -> bool:
    """Whether `cargo tree` lists nothing that binds Python."""
    return re.search(r"\b(?:pyo3|python3)\b", tree) is None


def main(root: Path) -> int:
    """Prints all breaches; the exit code."""
    found = list(breaches(root))
    tree = subprocess.run(
        ["cargo", "tree", "--locked", "-e", "normal"],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    if tree.returncode:
        found.append(f"cargo tree failed: {tree.stderr.strip()}")
    elif not python_free(tree.stdout):
        found.append("cargo tree: pyo3 without the feature python")
    print("\n".join(found) or "layers: imports point one way")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]) if sys.argv[1:] else Path(__file__).resolve().parent.parent))
