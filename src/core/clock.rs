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

    /// Whether `deadline` has come; dearer clocks are only read when it is near.
    ///
    /// It answers as `deadline <= self.now()` would, on a manual clock exactly. On the
    /// machine's clock a deadline more than [`SLACK`] away is known to be in the future for
    /// as long as the kernel's tick (every 1 to 10 ms) has not moved on since `seen` was
    /// last brought up to date; reading the tick costs 5 ns, reading `CLOCK_BOOTTIME` 22 ns.
    /// A suspended machine comes back with a new tick, so its sleep counts. It never says
    /// yes too early; it says yes late only when the kernel's tick itself stands still for
    /// more than [`SLACK`] while this thread runs, by the time that it stands still beyond.
    ///
    /// [`NEVER`] does not come.
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "its calls were 5 of the 50 ns of a hit")]
    #[must_use]
    pub fn has_come(&self, deadline: Nanos, seen: &mut Seen) -> bool {
        if deadline == NEVER {
            return false;
        }
        match self {
            Self::System => has_come_by(deadline, seen, tick(), system_now),
            Self::Manual(manual) => deadline <= manual.now(),
        }
    }

    /// The same for clocks that share one time, and for no others that live.
    #[inline]
    #[must_use]
    pub fn identity(&self) -> usize {
        match self {
            Self::System => 0,
            Self::Manual(manual) => Arc::as_ptr(&manual.0).addr(),
        }
    }

    /// Whether time only moves by [`ManualClock::advance`].
    #[must_use]
    pub fn is_manual(&self) -> bool {
        matches!(self, Self::Manual(_))
    }
}

/// How far a deadline must be away for [`Clock::has_come`] to trust the kernel's tick:
/// two of the longest ticks that Linux is built with.
pub const SLACK: Nanos = 20_000_000;

/// What [`Clock::has_come`] remembers: the tick at which the machine's clock was
/// last read, and a time that it had reached by then.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen {
    tick: Nanos,
    reached: Nanos,
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

/// The rule of [`Clock::has_come`]. `tick` was read before `now` is: what is remembered
/// is then never later than its tick says.
#[inline]
fn has_come_by(deadline: Nanos, seen: &mut Seen, tick: Nanos, now: impl FnOnce() -> Nanos) -> bool {
    if tick == seen.tick && deadline > seen.reached.saturating_add(SLACK) {
        return false;
    }
    let now = now();
    *seen = Seen { tick, reached: now };
    deadline <= now
}

/// The time of the kernel's last tick. Zero (what nobody has [`Seen`] at first) is only
/// shown by a machine that has just begun to count.
#[cfg(any(target_os = "linux", target_os = "android"))]
#[inline]
fn tick() -> Nanos {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::MonotonicCoarse);
    (t.tv_sec as u64).wrapping_mul(SECOND).wrapping_add(t.tv_nsec as u64)
}

/// Without a cheap tick every reading is a precise one.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn tick() -> Nanos {
    raw_now()
}

/// Seconds since the Unix epoch, for timestamps that people read; never for deadlines.
#[must_use]
pub fn unix_seconds() -> f64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0.0, |elapsed| elapsed.as_secs_f64())
}

/// Milliseconds since the Unix epoch, for deadlines that outlive the process and the machine's
/// next start; on a manual clock they are its own.
#[must_use]
pub fn unix_millis(clock: &Clock) -> i64 {
    match clock {
        Clock::System => std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |elapsed| i64::try_from(elapsed.as_millis()).unwrap_or(i64::MAX)),
        Clock::Manual(manual) => i64::try_from(manual.now() / 1_000_000).unwrap_or(i64::MAX),
    }
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
    fn a_deadline_on_a_manual_clock_comes_to_the_nanosecond() {
        let manual = ManualClock::starting_at(7);
        let clock = Clock::Manual(manual.clone());
        let mut seen = Seen::default();
        assert!(clock.has_come(7, &mut seen));
        assert!(!clock.has_come(8, &mut seen));
        manual.advance(1);
        assert!(clock.has_come(8, &mut seen));
        manual.advance(NEVER);
        assert!(!clock.has_come(NEVER, &mut seen));
    }

    #[test]
    fn a_deadline_on_the_system_clock_comes_neither_early_nor_never() {
        let clock = Clock::System;
        let mut seen = Seen::default();
        assert!(clock.has_come(clock.now(), &mut seen));
        assert!(!clock.has_come(clock.now() + 3_600 * SECOND, &mut seen));
        let deadline = clock.now() + SLACK / 4;
        while !clock.has_come(deadline, &mut seen) {
            std::hint::spin_loop();
        }
        assert!(clock.now() >= deadline);
    }

    proptest::proptest! {
        #![proptest_config(crate::core::cases(256, 10_000))]

        /// Ticks that stand still for up to the slack, and sleeps after which the tick is new.
        #[test]
        fn the_tick_changes_no_answer(
            tick_every in 1_u64..=SLACK,
            steps in proptest::collection::vec((0_u64..2 * SLACK, proptest::bool::weighted(0.05)), 1..80),
            deadline in 0_u64..2 * SECOND,
        ) {
            let (mut now, mut awake) = (1_u64, 1_u64);
            let mut seen = Seen::default();
            let mut slept = 0;
            for (step, sleeps) in steps {
                now += step;
                if sleeps {
                    slept += 1;
                } else {
                    awake += step;
                }
                // What a sleep leaves behind: another tick value, whatever its length was.
                let tick = (awake / tick_every + 1) * tick_every + slept;
                proptest::prop_assert_eq!(has_come_by(deadline, &mut seen, tick, || now), deadline <= now);
            }
        }
    }

    #[test]
    fn far_deadlines_do_not_read_the_clock_within_a_tick() {
        let mut seen = Seen::default();
        assert!(!has_come_by(SECOND, &mut seen, 5, || 10));
        assert!(!has_come_by(SECOND, &mut seen, 5, || unreachable!("the tick is the same")));
        assert!(!has_come_by(SECOND, &mut seen, 6, || 2 * SLACK));
        assert!(has_come_by(3 * SLACK, &mut seen, 6, || 3 * SLACK));
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
