//! The native half of `ferrogate.health.HealthMonitor`: samples and alerts.

mod shape;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::PathBuf;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use self::shape::{AlertShape, SampleShape};
use crate::core::clock::{Clock, Nanos, secs_from_nanos, unix_seconds};
use crate::core::health::{
    Alert, AlertBook, AlertLimits, AlertThreshold, Readings, SampledWindow, Sampler, Severity,
    Signal, State, SysinfoHost, SystemSample, Totals,
};
use crate::core::sync::Mutex;
use crate::py::convert;
use crate::py::edge::edge;

/// Samples the system and keeps the alerts; one per `HealthMonitor`.
///
/// Both locks are only taken while attached and for moments: the slow part of
/// a sample runs detached on a sampler taken out of its slot, so that a `fork`
/// (which holds the GIL) never copies a locked mutex into the child.
#[pyclass(frozen, name = "HealthCore", module = "ferrogate._core")]
pub(crate) struct PyHealthCore {
    clock: Clock,
    root: PathBuf,
    disk: PathBuf,
    thresholds: AlertThreshold,
    /// The same moment on both clocks, to date what happens on a manual one.
    origin: (Nanos, f64),
    slot: Mutex<Slot>,
    alerts: Mutex<Alerts>,
}

struct Slot {
    pid: u32,
    /// `None` while a sample is being taken.
    sampler: Option<Box<Sampler>>,
    /// With its time since the Unix epoch.
    last: Option<(SystemSample, f64)>,
}

struct Alerts {
    book: AlertBook,
    generations: SampledWindow,
    lookups: SampledWindow,
}

impl PyHealthCore {
    /// This moment, for people.
    fn dated(&self, now: Nanos) -> f64 {
        if self.clock.is_manual() {
            self.origin.1 + secs_from_nanos(now.saturating_sub(self.origin.0))
        } else {
            unix_seconds()
        }
    }

    fn sampler(&self) -> Box<Sampler> {
        let host = Box::<SysinfoHost>::default();
        Box::new(Sampler::new(self.clock.clone(), self.root.clone(), self.disk.clone(), host))
    }

    /// A sample of now, or the last one while another thread takes one.
    fn take_sample(&self, py: Python<'_>) -> (SystemSample, f64) {
        let pid = std::process::id();
        let mut slot = self.slot.lock();
        if slot.pid != pid {
            // A forked child: the parent's figures and open files are not ours,
            // and a thread that had the sampler out does not exist here.
            *slot = Slot { pid, sampler: Some(self.sampler()), last: None };
        }
        let mut sampler = match (slot.sampler.take(), slot.last) {
            (Some(sampler), _) => sampler,
            (None, Some(last)) => return last,
            // The very first sample is still being taken: one more beside it.
            (None, None) => self.sampler(),
        };
        drop(slot);
        // The sampler goes back to its slot also when sampling panics.
        let taken = py.detach(|| catch_unwind(AssertUnwindSafe(|| sampler.sample())));
        let last = taken.as_ref().ok().map(|sample| (*sample, self.dated(sample.at)));
        let mut slot = self.slot.lock();
        slot.sampler = Some(sampler);
        slot.last = last.or(slot.last);
        drop(slot);
        match taken {
            Ok(sample) => (sample, self.dated(sample.at)),
            Err(panic) => resume_unwind(panic),
        }
    }
}

#[pymethods]
impl PyHealthCore {
    /// `thresholds` in the order of `AlertThreshold`, `window` and
    /// `flap_window` as durations, `bounds` the most active and remembered
    /// alerts, `paths` the disk and the root of the system files.
    #[new]
    #[pyo3(signature = (thresholds, window, flap_window, bounds, paths, clock = None))]
    fn new(
        thresholds: (f64, f64, f64, f64, f64),
        window: &Bound<'_, PyAny>,
        flap_window: &Bound<'_, PyAny>,
        bounds: (usize, usize),
        paths: (PathBuf, PathBuf),
        clock: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Self> {
        edge("HealthCore", || {
            let (errors, seconds, hits, memory, disk) = thresholds;
            let thresholds = AlertThreshold {
                error_rate_percent: errors,
                avg_response_time_seconds: seconds,
                cache_hit_rate_percent: hits,
                memory_usage_percent: memory,
                disk_usage_percent: disk,
            };
            thresholds.validate()?;
            let clock = convert::clock(clock)?;
            let span = convert::duration("window", window)?;
            let limits = AlertLimits {
                active: bounds.0,
                history: bounds.1,
                flap_window: convert::duration_or_zero("flap_window", flap_window)?,
            };
            let now = clock.now();
            let core = Self {
                origin: (now, unix_seconds()),
                root: paths.1,
                disk: paths.0,
                thresholds,
                slot: Mutex::new(Slot { pid: 0, sampler: None, last: None }),
                alerts: Mutex::new(Alerts {
                    book: AlertBook::new(limits),
                    generations: SampledWindow::new(span),
                    lookups: SampledWindow::new(span),
                }),
                clock,
            };
            // The base of the first rates.
            core.take_sample(window.py());
            Ok(core)
        })
    }

    /// Seconds on the monitor's clock.
    fn now(&self) -> PyResult<f64> {
        edge("HealthCore.now", || Ok(secs_from_nanos(self.clock.now())))
    }

    /// This moment in seconds since the Unix epoch.
    fn unix(&self) -> PyResult<f64> {
        edge("HealthCore.unix", || Ok(self.dated(self.clock.now())))
    }

    /// The state of the system, at most a quarter of a second old.
    fn sample(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        edge("HealthCore.sample", || {
            let (sample, unix) = self.take_sample(py);
            let shape = SampleShape::new(&sample, unix, &self.disk.to_string_lossy());
            Ok(shape.into_pyobject(py)?.into_any().unbind())
        })
    }

    /// Judges this moment: running totals of generations (all, failed,
    /// seconds) and lookups (hits, misses), the use of memory and disk, and
    /// conditions that somebody else judged (name, severity or None, message).
    #[pyo3(signature = (*, generations = None, lookups = None, memory_percent = None, disk_percent = None, conditions = Vec::new()))]
    fn evaluate(
        &self,
        generations: Option<(u64, u64, f64)>,
        lookups: Option<(u64, u64)>,
        memory_percent: Option<f64>,
        disk_percent: Option<f64>,
        conditions: Vec<(String, Option<String>, String)>,
    ) -> PyResult<()> {
        edge("HealthCore.evaluate", || {
            let mut judged =
                conditions.into_iter().map(condition).collect::<PyResult<Vec<Signal>>>()?;
            let now = self.clock.now();
            let unix = self.dated(now);
            let mut alerts = self.alerts.lock();
            let generations = generations.map(|(events, marked, sum)| {
                alerts.generations.observe(now, Totals { events, marked, sum })
            });
            let lookups = lookups.map(|(hits, misses)| {
                let totals = Totals { events: hits.saturating_add(misses), marked: hits, sum: 0.0 };
                alerts.lookups.observe(now, totals)
            });
            let mut signals = self.thresholds.judge(&Readings {
                errors: generations.map(|t| (t.marked, t.events)),
                seconds: generations.map(|t| t.sum),
                lookups: lookups.map(|t| (t.marked, t.events)),
                memory_percent,
                disk_percent,
            });
            signals.append(&mut judged);
            alerts.book.apply(now, unix, signals);
            Ok(())
        })
    }

    /// Ends the alert of a condition that nobody judges any more.
    fn resolve(&self, name: &str) -> PyResult<()> {
        edge("HealthCore.resolve", || {
            let now = self.clock.now();
            let unix = self.dated(now);
            self.alerts.lock().book.resolve(name, now, unix);
            Ok(())
        })
    }

    /// The active alerts, the worst first.
    fn alerts(&self, py: Python<'_>) -> PyResult<Vec<Py<PyAny>>> {
        edge("HealthCore.alerts", || {
            let alerts = self.alerts.lock().book.active();
            to_python(py, alerts)
        })
    }

    /// All remembered incidents in the order they began.
    fn alert_history(&self, py: Python<'_>) -> PyResult<Vec<Py<PyAny>>> {
        edge("HealthCore.alert_history", || {
            let history = self.alerts.lock().book.history();
            to_python(py, history)
        })
    }

    /// Incidents raised, resolved, and not raised for want of room.
    fn alert_counts(&self) -> PyResult<(u64, u64, u64)> {
        edge("HealthCore.alert_counts", || Ok(self.alerts.lock().book.counts()))
    }
}

fn condition((name, severity, message): (String, Option<String>, String)) -> PyResult<Signal> {
    let Some(severity) = severity else { return Ok(Signal { name, state: State::Clear }) };
    let severity = Severity::parse(&severity).ok_or_else(|| {
        PyValueError::new_err(format!(
            "severity: expected 'info', 'warning' or 'critical', got {severity:?}"
        ))
    })?;
    let state = State::Firing { severity, value: 1.0, threshold: 0.0, message };
    Ok(Signal { name, state })
}

fn to_python(py: Python<'_>, alerts: Vec<Alert>) -> PyResult<Vec<Py<PyAny>>> {
    alerts
        .into_iter()
        .map(|alert| Ok(AlertShape::from(alert).into_pyobject(py)?.into_any().unbind()))
        .collect()
}

/// Makes what is made on first use.
pub(crate) fn prepare(py: Python<'_>) -> PyResult<()> {
    shape::prepare(py)
}

pub(crate) fn register(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add_class::<PyHealthCore>()
}
