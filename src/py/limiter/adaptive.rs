//! `AdaptiveConcurrency`: how a limit on concurrency finds itself, for whoever takes one.

use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::count;
use crate::core::clock::nanos_from_secs;
use crate::core::limiter::adaptive::{Adaptive, AdaptiveStats, ConcurrencySettings, Law, Signal};
use crate::py::convert::optional_duration;
use crate::py::edge::edge;
use crate::py::waiting::seconds;

/// A limit on concurrency that finds itself: as many calls at a time as the other side serves
/// without a queue. Give it to ``LLMLimiter(concurrency=...)`` or ``Guard(bulkhead=...)``; one
/// object may serve many of them, each of which has a limit of its own.
///
/// ``law="gradient"`` goes by the ratio of the signal without a queue to the signal now, and
/// shrinks before anybody is refused (Netflix's concurrency-limits, "Performance Under Load",
/// 2018; the search for the signal without a queue is that of Envoy's adaptive concurrency
/// filter). ``law="aimd"`` rises by 1 for as many successes as it allows, and is cut when the
/// other side refuses (Chiu and Jain, 1989). Both are cut by HTTP 429, 503 and 529 and by answers
/// that did not come in time; of calls that were under way together the first one cuts. A limit
/// that is not made use of does not rise.
///
/// Args:
///     initial: the limit at first; 10, or the nearest to that from ``least`` to ``most``.
///     least: it never falls below.
///     most: it never rises above.
///     law: ``"gradient"`` or ``"aimd"``.
///     signal: what tells how loaded the other side is. ``"ttft"``: the time to the first token,
///         or item of a stream; whole answers have none, and are skipped. ``"tpot"``: the time
///         per output token, from the first token on if there was one, else of the whole call;
///         without the number of tokens a call is skipped. ``"latency"``: the whole call, which
///         for a model mostly tells how long the answer was.
///     tolerance: the gradient lets the signal grow by so many times; at least 1.
///     queue_size: how much the gradient may have queueing at the other side.
///     window: samples that the gradient averages to one.
///     backoff_ratio: what is left of the limit after a refusal, between 0 and 1.
///     slow_after: for ``"aimd"``: a signal of more seconds (or a timedelta) than this, per token
///         with ``"tpot"``, is as good as a refusal. ``None``: only refusals cut, and every
///         success counts.
///
/// Raises:
///     ValueError, TypeError: a wrong argument; the message names it.
#[pyclass(frozen, name = "AdaptiveConcurrency", module = "ferrogate._core")]
pub(crate) struct PyAdaptiveConcurrency(pub(crate) ConcurrencySettings);

#[pymethods]
impl PyAdaptiveConcurrency {
    #[new]
    #[pyo3(
        signature = (
            initial = None, *, least = None, most = None, law = "gradient", signal = "ttft",
            tolerance = 1.5, queue_size = 4.0, window = None, backoff_ratio = 0.7,
            slow_after = None
        ),
        text_signature = "(initial=10, *, least=1, most=1000, law=\"gradient\", signal=\"ttft\", \
                          tolerance=1.5, queue_size=4.0, window=10, backoff_ratio=0.7, \
                          slow_after=None)"
    )]
    #[allow(clippy::too_many_arguments)] // Python's constructor
    fn new(
        initial: Option<&Bound<'_, PyAny>>,
        least: Option<&Bound<'_, PyAny>>,
        most: Option<&Bound<'_, PyAny>>,
        law: &str,
        signal: &str,
        tolerance: f64,
        queue_size: f64,
        window: Option<&Bound<'_, PyAny>>,
        backoff_ratio: f64,
        slow_after: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Self> {
        edge("AdaptiveConcurrency", || {
            let usual = ConcurrencySettings::default();
            let number = |argument, value: Option<&Bound<'_, PyAny>>, usual| {
                value.map_or(Ok(usual), |value| count(argument, value))
            };
            let least = number("least", least, usual.least)?;
            let most = number("most", most, usual.most)?;
            // Of bounds that are given alone, what lies between.
            let between = usual.initial.min(most).max(least);
            let settings = ConcurrencySettings {
                initial: number("initial", initial, between)?,
                least,
                most,
                law: Law::parse(law)?,
                signal: Signal::parse(signal)?,
                tolerance,
                queue_size,
                window: number("window", window, usual.window)?,
                backoff_ratio,
                slow_after: optional_duration("slow_after", slow_after)?,
            };
            Adaptive::new(settings)?;
            Ok(Self(settings))
        })
    }

    #[getter]
    fn initial(&self) -> u32 {
        self.0.initial
    }

    #[getter]
    fn least(&self) -> u32 {
        self.0.least
    }

    #[getter]
    fn most(&self) -> u32 {
        self.0.most
    }

    #[getter]
    fn law(&self) -> &'static str {
        self.0.law.name()
    }

    #[getter]
    fn signal(&self) -> &'static str {
        self.0.signal.name()
    }

    fn __repr__(&self) -> PyResult<String> {
        edge("AdaptiveConcurrency.__repr__", || {
            let ConcurrencySettings { initial, least, most, law, signal, .. } = self.0;
            let (law, signal) = (law.name(), signal.name());
            Ok(format!(
                "AdaptiveConcurrency({initial}, least={least}, most={most}, law={law:?}, \
                 signal={signal:?})"
            ))
        })
    }
}

/// A limit on concurrency that is either.
#[derive(Clone, Copy)]
pub(crate) enum Slots {
    Fixed(u32),
    Adaptive(ConcurrencySettings),
}

impl Slots {
    /// An int, or an [`PyAdaptiveConcurrency`].
    pub(crate) fn from(argument: &'static str, value: &Bound<'_, PyAny>) -> PyResult<Self> {
        if let Ok(adaptive) = value.cast::<PyAdaptiveConcurrency>() {
            return Ok(Self::Adaptive(adaptive.get().0));
        }
        count(argument, value).map(Self::Fixed)
    }

    pub(crate) fn fixed(self) -> Option<u32> {
        if let Self::Fixed(slots) = self { Some(slots) } else { None }
    }

    pub(crate) fn adaptive(self) -> Option<ConcurrencySettings> {
        if let Self::Adaptive(settings) = self { Some(settings) } else { None }
    }
}

/// What a limit has seen, for `get_stats()`.
pub(crate) fn stats(
    py: Python<'_>,
    stats: Option<AdaptiveStats>,
) -> PyResult<Option<Bound<'_, PyDict>>> {
    let Some(stats) = stats else { return Ok(None) };
    let row = PyDict::new(py);
    row.set_item("law", stats.settings.law.name())?;
    row.set_item("signal", stats.settings.signal.name())?;
    row.set_item("limit", stats.limit)?;
    row.set_item("least", stats.settings.least)?;
    row.set_item("most", stats.settings.most)?;
    row.set_item("samples", stats.samples)?;
    row.set_item("skipped", stats.skipped)?;
    row.set_item("cuts", stats.cuts)?;
    row.set_item("usual_seconds", seconds(nanos_from_secs(stats.usual)))?;
    row.set_item("probing", stats.probing)?;
    Ok(Some(row))
}
