//! The life of the process, and what does I/O from Rust.
//!
//! Threads of this floor never attach to the interpreter: they take requests
//! that hold bytes, and put replies that hold bytes into a [`mailbox`] or a
//! [`waiting::Slot`], from where Python fetches them. So nothing here can hold
//! up an exit, deadlock with the GIL or run Python code, and a fork can stop and
//! join all of it while it holds the GIL.

pub mod budget;
pub mod counts;
pub mod entered;
pub mod frame;
pub mod granted;
pub mod lifecycle;
pub mod mailbox;
pub mod near;
pub mod notices;
pub mod outage;
pub mod owed;
pub mod place;
pub mod queue;
pub mod redis;
pub mod service;
pub mod sqlite;
pub mod tier;
pub mod waiting;
pub mod watch;

pub use lifecycle::generation;
