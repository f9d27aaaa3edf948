//! What another process wrote into the SQLite file's table of changes.

use ferrogate::fuzzed;

/// Each change has one form: what was read and is written again is what stood there.
pub(crate) fn read(log: &[u8]) {
    let (again, whole) = fuzzed::changes(log);
    assert!(log.starts_with(&again), "written otherwise than it was read");
    assert_eq!(whole, again.len() == log.len());
}
