//! Performance of generations (one LLM call and everything around it):
//! exact totals, and percentiles from a bounded histogram.

mod durations;
mod performance;
mod sum;

pub use durations::Durations;
pub use performance::{Generation, PerformanceMetrics, PerformanceSnapshot};
pub use sum::ExactSum;
