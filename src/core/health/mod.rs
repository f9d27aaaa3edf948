//! Health of the host, the container and the process, and the alerts that
//! follow from it.
//!
//! * [`Sampler`]: one [`SystemSample`] at a time out of sysinfo and the cgroup
//!   files; rates come from the sample before. A source that cannot be read is
//!   `None`, never an error.
//! * [`AlertThreshold`] turns [`Readings`] into [`Signal`]s, [`SampledWindow`]
//!   turns running totals into the readings of the last minutes.
//! * [`AlertBook`] turns signals into alerts: raised once, resolved, bounded
//!   history.

mod alerts;
mod cgroup;
mod files;
mod host;
mod pressure;
mod sampler;
mod thresholds;
mod window;

pub use alerts::{Alert, AlertBook, AlertLimits, Severity, Signal, State};
pub use cgroup::{Cgroup, MemoryEvents, Throttling};
pub use host::{Disk, Host, HostSource, Network, Process, SysinfoHost};
pub use pressure::{Pressure, PressureSet, Stall};
pub use sampler::{Container, Effective, Origin, Sampler, SystemSample};
pub use thresholds::{AlertThreshold, MIN_LOOKUPS, Readings};
pub use window::{SampledWindow, Totals};
