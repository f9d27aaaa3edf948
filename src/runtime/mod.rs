//! The life of the process: shutdown and fork.
