//! The core alone: what each hot path costs without Python.

fn main() {}
