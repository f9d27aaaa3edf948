"""Checks that imports point one way only (ARCHITECTURE: core → runtime → py → package).

`check_layers.py [ROOT]` prints every breach as `file:line: what` and exits with 1.
Comments and string literals do not count.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

# What every part of the core may use; the rest are components that do not know each other.
SHARED = {"cases", "clock", "error", "flight", "key", "metrics", "outcome", "random"}
SHARED |= {"quantile", "snapshot", "sync"}
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

CLOCKS = re.compile(r"\b(?:Instant|SystemTime)::now\b|\bclock_gettime\b")
# What may not even be named, since it could go by another name: `*` is all there is.
OUTSIDE = {
    "time": ({"*", "Instant", "SystemTime"}, "clock.rs", "the clock is read in core/clock.rs only"),
    "sync": ({"*", "Condvar", "Mutex", "RwLock"}, "sync.rs", "locks come from core/sync.rs only"),
}

USES = re.compile(r"\buse\s+([^;]*);")
MODULES = re.compile(r"\bmod\s+(\w+)\s*\{")
WRITTEN_OUT = re.compile(r"(?<![\w:])(?:crate|self|super|std)(?:\s*::\s*\w+)+")


class Named(NamedTuple):
    """A path that a file names, from `crate` or from a crate's name on; `*` for all within."""

    at: int
    path: tuple[str, ...]
    #: By a `use`, so that everything below it is within reach.
    imported: bool


def code(text: str) -> str:
    """Rust without comments and literals, every line where it was."""
    return LITERALS.sub(lambda m: "\n" * m[0].count("\n") or " ", text)


def named(inside: Path, text: str) -> Iterator[Named]:
    """Every path in a file's code, whether imported in a group or written out where it is used."""
    folder = inside.with_suffix("").parts
    module = ("crate", *folder[: -1 if folder[-1] in ("mod", "lib") else None])
    within = [(m.start(), end_of_block(text, m.end()), m[1]) for m in MODULES.finditer(text)]

    def resolved(at: int, path: tuple[str, ...]) -> tuple[str, ...]:
        here = [*module, *(name for start, end, name in within if start < at < end)]
        names = list(path)
        if names[0] in ("self", "super"):
            while names and names[0] in ("self", "super"):
                if names.pop(0) == "super":
                    del here[-1:]
            return (*here, *names)
        return path

    for use in USES.finditer(text):
        for path in expanded(use[1]):
            yield Named(use.start(), resolved(use.start(), path), imported=True)
    for match in WRITTEN_OUT.finditer(USES.sub(lambda m: " " * len(m[0]), text)):
        path = tuple(re.split(r"\s*::\s*", match[0]))
        yield Named(match.start(), resolved(match.start(), path), imported=False)


def end_of_block(text: str, begin: int) -> int:
    """Where the block ends whose brace opened just before `begin`."""
    depth = 1
    for brace in re.finditer(r"[{}]", text[begin:]):
        depth += 1 if brace[0] == "{" else -1
        if not depth:
            return begin + brace.end()
    return len(text)


def expanded(tree: str, before: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The paths of a tree of imports, without the names they are given."""
    head, group, rest = tree.partition("{")
    names = [name.strip() for name in re.sub(r"\bas\s+\w+", "", head).split("::")]
    path = (*before, *(name for name in names if name))
    if not group:
        if path != before:
            yield path[:-1] if path[-1] == "self" and len(path) > 1 else path
        return
    depth, start, inner = 0, 0, rest[: rest.rindex("}")]
    for at, letter in enumerate(inner + ","):
        depth += {"{": 1, "}": -1}.get(letter, 0)
        if letter == "," and not depth:
            yield from expanded(inner[start:at], path)
            start = at + 1


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
        found = [
            (m.start(), what) for rule, what in words(inside.parts) for m in rule.finditer(text)
        ]
        for name in named(inside, text):
            found += [(name.at, what) for what in paths(inside.parts, name)]
        lines = {(text.count("\n", 0, at) + 1, what) for at, what in found}
        yield from (f"src/{inside.as_posix()}:{line}: {what}" for line, what in sorted(lines))


def words(parts: tuple[str, ...]) -> Iterator[tuple[re.Pattern[str], str]]:
    """The words that may not occur in this file, under whatever path."""
    floor = parts[0]
    if floor == "core":
        yield re.compile(r"\bunsafe\b(?!_code)"), "unsafe in the core"
    if floor in ("core", "runtime"):
        yield re.compile(r"\bpyo3\b"), "pyo3 below the bindings"
    if floor == "runtime":
        yield re.compile(r"\bunsafe\b"), "unsafe outside src/py"
    if parts != ("py", "names.rs"):
        # There it is made before a fork; elsewhere that is easily forgotten.
        yield re.compile(r"\bintern!"), "names are interned in py/names.rs only"
    if parts != ("core", "clock.rs"):
        yield CLOCKS, "the clock is read in core/clock.rs only"
    if parts != ("core", "sync.rs"):
        yield re.compile(r"\bparking_lot\b"), "locks come from core/sync.rs only"


def paths(parts: tuple[str, ...], name: Named) -> Iterator[str]:
    """What is wrong with naming this path in this file."""
    floor, path = parts[0], name.path
    below = (*path, "*") if name.imported else path
    for module, (forbidden, home, what) in OUTSIDE.items():
        whole = below[:2] == ("std", "*")
        part = below[:2] == ("std", module) and len(below) > 2 and below[2] in forbidden
        if (whole or part) and parts != ("core", home):
            yield what
    if floor in ("core", "runtime"):
        above = {"core": ("py", "runtime", "*"), "runtime": ("py", "*")}[floor]
        if len(below) > 1 and below[0] == "crate" and below[1] in above:
            whose = "core" if floor == "core" else "runtime"
            yield f"the {whose} uses a floor above it"
    if floor == "core":
        own = parts[1].removesuffix(".rs")
        if own in COMPOSERS or below[:2] != ("crate", "core") or len(below) < 3:
            return
        if below[2] not in SHARED | {own}:
            what = "all of the core" if below[2] == "*" else f"the component {below[2]}"
            yield f"{own} uses {what}"


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
