//! Passes the interpreter's version on as `cfg(Py_3_12)` and the like.

fn main() {
    // Without this cargo runs it again whenever any file of the package changes.
    println!("cargo::rerun-if-changed=build.rs");
    #[cfg(feature = "python")]
    pyo3_build_config::use_pyo3_cfgs();
}
