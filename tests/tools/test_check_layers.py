"""The layering check can fail: every rule is broken once, and seen."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "check_layers.py"
SPEC = importlib.util.spec_from_file_location("check_layers", SCRIPT)
assert SPEC is not None
assert SPEC.loader is not None
check_layers = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(check_layers)

ROOT_MODULE = "#![forbid(unsafe_code)]\npub mod clock;\n"


def breaches(root: Path, name: str, text: str) -> list[str]:
    """What the check says of a small house with `text` in the file `name`."""
    for path, content in {"core/mod.rs": ROOT_MODULE, name: text}.items():
        (root / "src" / path).parent.mkdir(parents=True, exist_ok=True)
        (root / "src" / path).write_text(content, encoding="utf-8")
    return list(check_layers.breaches(root))


@pytest.mark.parametrize(
    ("name", "text", "what"),
    [
        ("core/mod.rs", "pub mod clock;\n", "forbid(unsafe_code)"),
        ("core/cache/mod.rs", "unsafe { go() }\n", "unsafe in the core"),
        ("core/cache/mod.rs", "use pyo3::Python;\n", "pyo3 below the bindings"),
        ("core/cache/mod.rs", "use crate::py::edge;\n", "a floor above"),
        ("core/cache/mod.rs", "use crate::runtime::start;\n", "a floor above"),
        ("core/cache/mod.rs", "use crate::core::limiter::Limiter;\n", "the component limiter"),
        ("core/cache/mod.rs", "use crate::core::{clock::Clock, limiter};\n", "component limiter"),
        ("core/cache/mod.rs", "let t = std::time::Instant::now();\n", "the clock is read in"),
        ("core/limiter/mod.rs", "let t = SystemTime::now();\n", "the clock is read in"),
        ("core/limiter/mod.rs", "use parking_lot::Mutex;\n", "locks come from"),
        ("core/limiter/mod.rs", "use std::sync::{Arc, Mutex};\n", "locks come from"),
        ("py/cache.rs", "use std::sync::Mutex;\n", "locks come from"),
        ("py/cache.rs", 'let name = pyo3::intern!(py, "wake");\n', "names are interned in"),
        ("core/cache/mod.rs", "use crate::{core::clock, py::cache::Store};\n", "a floor above"),
        ("core/cache/mod.rs", "use crate::{py::cache::Store, core::clock};\n", "a floor above"),
        ("core/cache/mod.rs", "use super::super::py;\n", "a floor above"),
        ("core/cache/mod.rs", "fn f() { crate::py::edge() }\n", "a floor above"),
        ("core/cache/mod.rs", "use crate as root;\n", "a floor above"),
        ("core/cache/mod.rs", "use super::limiter::Limiter;\n", "the component limiter"),
        ("core/cache/table.rs", "use super::super::limiter::Limiter;\n", "component limiter"),
        ("core/cache/table.rs", "fn f(l: super::super::limiter::L) {}\n", "component limiter"),
        ("core/cache/table.rs", "use super::super::{key, limiter as l};\n", "component limiter"),
        ("core/cache/mod.rs", "use crate::core as c;\n", "all of the core"),
        ("core/cache/mod.rs", "use crate::{core::{self, clock::Clock}};\n", "all of the core"),
        ("core/cache/mod.rs", "use super::*;\n", "all of the core"),
        ("core/cache/mod.rs", "mod a { use super::super::limiter::L; }\n", "component limiter"),
        ("core/cache/mod.rs", "use std::time::Instant as I;\n", "the clock is read in"),
        ("core/cache/mod.rs", "use std::time as t;\n", "the clock is read in"),
        ("core/cache/mod.rs", "use std::{time::{Duration, SystemTime}};\n", "the clock is read"),
        ("py/cache.rs", "use std::sync; type L = sync::Mutex<u8>;\n", "locks come from"),
        ("py/cache.rs", "use std::sync as s;\n", "locks come from"),
        ("py/cache.rs", "use std::sync::*;\n", "locks come from"),
        ("py/cache.rs", "use std::{fmt, sync::{Arc, RwLock}};\n", "locks come from"),
        ("py/cache.rs", "static L: std::sync::Mutex<u8>;\n", "locks come from"),
        ("runtime/mod.rs", "use crate::{py, core};\n", "a floor above"),
        ("runtime/mod.rs", "use crate::py::edge;\n", "a floor above"),
        ("runtime/mod.rs", "unsafe { go() }\n", "unsafe outside"),
    ],
)
def test_a_breach_is_named(tmp_path: Path, name: str, text: str, what: str) -> None:
    (found,) = breaches(tmp_path, name, text)
    assert what in found
    assert found.startswith(f"src/{name}:1: ")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("core/clock.rs", "let t = Instant::now();\n"),
        ("py/names.rs", 'intern!(py, "wake")\n'),
        ("core/sync.rs", "pub use parking_lot::Mutex;\n"),
        ("core/cache/mod.rs", "// unsafe, pyo3 and parking_lot in prose\n/* unsafe */\n"),
        ("core/cache/mod.rs", 'let s = "unsafe \\" pyo3"; let c = \'"\'; let r = r#"unsafe"#;\n'),
        ("core/cache/mod.rs", "use crate::core::{cache::Entry, clock::Clock, key::Key};\n"),
        ("core/cache/mod.rs", "mod tests { use super::*; use super::super::key::Key; }\n"),
        ("core/cache/table.rs", "use super::*; use super::{entry, lru::{self, List}};\n"),
        ("core/cache/table.rs", "pub(in crate::core::cache) fn f() -> impl Sized + use<> {}\n"),
        ("py/cache.rs", "use crate::core::sync::{self, Mutex}; use std::sync::atomic::*;\n"),
        ("py/cache.rs", "use crate::{core, runtime}; use std::time::Duration;\n"),
        ("core/guard/mod.rs", "use crate::core::{breaker, limiter};\n"),
        ("py/cache.rs", "use pyo3::Python;\nunsafe { go() }\nuse crate::core::cache::Cache;\n"),
        ("core/limiter/loom_tests.rs", "use loom::sync::Arc;\n"),
        (
            "core/cache/mod.rs",
            "use std::sync::{\n    Arc,\n    OnceLock,\n};\nfn f<'a>(s: &'a str) {}\n",
        ),
    ],
)
def test_what_is_allowed_passes(tmp_path: Path, name: str, text: str) -> None:
    assert breaches(tmp_path, name, text) == []


def test_the_line_is_the_line_of_the_source(tmp_path: Path) -> None:
    text = '/* a\nlong\ncomment */\nlet s = "two\nlines";\nunsafe { go() }\n'
    assert breaches(tmp_path, "core/cache/mod.rs", text) == [
        "src/core/cache/mod.rs:6: unsafe in the core"
    ]


def test_a_tree_with_pyo3_is_not_python_free() -> None:
    assert not check_layers.python_free("ferrogate v0.1.0\n└── pyo3 v0.30.1\n")
    assert not check_layers.python_free("└── pyo3-ffi v0.30.1\n")
    assert check_layers.python_free("ferrogate v0.1.0\n└── blake3 v1.8.7\n")
