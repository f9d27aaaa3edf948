//! Time, injected. The only file that reads the machine's clock.
//!
//! Time is a `u64` of nanoseconds since the process first asked. On Linux it
//! is `CLOCK_BOOTTIME`, so that a TTL or a window also elapses while a laptop
//! or a frozen virtual machine is suspended; wall-clock jumps never show.

use std::sync::{
    Arc, LazyLock,
    atomic::{AtomicU64, Ordering},
};
use std::time::Duration;

/// Nanoseconds on a [`Clock`].
pub type Nanos = u64;

/// One second in [`Nanos`].
pub const SECOND: Nanos = 1_000_000_000;

/// A deadline that never comes.
pub const NEVER: Nanos = u64::MAX;

/// A source of monotonic time; cheap to clone.
///
/// An enum rather than a trait object: the hot paths read it on every call and
/// the branch predicts, where an indirect call would not inline.
#[derive(Clone, Debug, Default)]
pub enum Clock {
    /// The machine's clock.
    #[default]
    System,
    /// A clock that only moves when it is told to.
    Manual(ManualClock),
}

impl Clock {
    /// The current time.
    #[inline]
    #[must_use]
    pub fn now(&self) -> Nanos {
        match self {
            Self::System => system_now(),
            Self::Manual(manual) => manual.now(),
        }
    }

    /// Whether time only moves by [`ManualClock::advance`].
    #[must_use]
    pub fn is_manual(&self) -> bool {
        matches!(self, Self::Manual(_))
    }
}

/// A clock for tests and simulations; all clones share one time.
#[derive(Clone, Debug, Default)]
pub struct ManualClock(Arc<AtomicU64>);

impl ManualClock {
    /// A clock that stands at `start`.
    #[must_use]
    pub fn starting_at(start: Nanos) -> Self {
        Self(Arc::new(AtomicU64::new(start)))
    }

    /// The time it stands at.
    #[inline]
    #[must_use]
    pub fn now(&self) -> Nanos {
        self.0.load(Ordering::Acquire)
    }

    /// Moves forward, saturating at the end of time.
    pub fn advance(&self, by: Nanos) {
        self.0
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |t| Some(t.saturating_add(by)))
            .ok();
    }
}

/// Seconds to [`Nanos`], saturating; NaN and anything below zero become zero.
#[must_use]
pub fn nanos_from_secs(seconds: f64) -> Nanos {
    // A float-to-integer cast saturates and maps NaN to 0; the product is
    // rounded so that 0.1 s is 100,000,000 ns and not one less.
    (seconds * SECOND as f64).round() as Nanos
}

/// [`Nanos`] to seconds.
#[must_use]
pub fn secs_from_nanos(nanos: Nanos) -> f64 {
    nanos as f64 / SECOND as f64
}

/// [`Duration`] to [`Nanos`], saturating.
#[must_use]
pub fn nanos_from_duration(duration: Duration) -> Nanos {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(any(target_os = "linux", target_os = "android"))]
fn raw_now() -> Nanos {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    (t.tv_sec as u64).wrapping_mul(SECOND).wrapping_add(t.tv_nsec as u64)
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn raw_now() -> Nanos {
    static START: LazyLock<std::time::Instant> = LazyLock::new(std::time::Instant::now);
    nanos_from_duration(START.elapsed())
}

#[inline]
fn system_now() -> Nanos {
    static ORIGIN: LazyLock<Nanos> = LazyLock::new(raw_now);
    // Read the origin first: on the very first call it must not be later than
    // the time it is subtracted from.
    let origin = *ORIGIN;
    raw_now().saturating_sub(origin)
}

/// Seconds since the Unix epoch, for timestamps that people read; never for deadlines.
#[must_use]
pub fn unix_seconds() -> f64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0.0, |elapsed| elapsed.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_convert_without_surprises() {
        assert_eq!(nanos_from_secs(0.1), 100_000_000);
        assert_eq!(nanos_from_secs(-1.0), 0);
        assert_eq!(nanos_from_secs(f64::NAN), 0);
        assert_eq!(nanos_from_secs(f64::INFINITY), u64::MAX);
        assert_eq!(nanos_from_secs(1e300), u64::MAX);
    }

    #[test]
    fn a_manual_clock_stops_at_the_end_of_time() {
        let clock = ManualClock::starting_at(u64::MAX - 1);
        let shared = Clock::Manual(clock.clone());
        clock.advance(10);
        assert_eq!(shared.now(), u64::MAX);
    }

    #[test]
    fn the_system_clock_does_not_go_back() {
        let clock = Clock::System;
        let mut last = clock.now();
        for _ in 0..10_000 {
            let now = clock.now();
            assert!(now >= last);
            last = now;
        }
    }
}
