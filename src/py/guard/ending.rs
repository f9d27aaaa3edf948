//! What is made of an attempt's end: its outcome, another attempt, or the fallback.

use std::sync::atomic::Ordering;

use pyo3::exceptions::PyException;
use pyo3::prelude::*;

use super::attempts::Attempts;
use super::gate::Pass;
use crate::core::clock::Nanos;
use crate::core::outcome::Outcome;
use crate::core::retry::{Policy, Run, Verdict};
use crate::py::edge::unraisable;
use crate::py::names;
use crate::py::outcome;
use crate::py::retry::note;

impl Attempts {
    /// An attempt has ended: everything it held goes back. `Some`: once more, after so long,
    /// if it `may` be tried again.
    ///
    /// # Errors
    /// What a function of the user's raises that is to say what is retried.
    #[inline]
    pub(super) fn ended(
        &mut self,
        py: Python<'_>,
        result: &PyResult<Py<PyAny>>,
        may: bool,
    ) -> PyResult<Option<Nanos>> {
        // Judged by its own target's breaker, where the attempt is no more.
        let judged = self.judged.take();
        let outcome = judged.unwrap_or_else(|| self.classify(py, result));
        self.learn(py, result, outcome);
        if let Some(pass) = &self.pass {
            self.cost = pass.micro_usd();
        }
        if outcome == Outcome::Failure
            && let Err(error) = result
            && (self.slot.is_some() || matches!(self.pass, Some(Pass::Reservation(_))))
        {
            self.overloaded = outcome::is_overload(error.value(py).as_any());
        }
        self.release_with(py, outcome, result.as_ref().ok());
        if self.routed.is_some() && matches!(outcome, Outcome::Failure | Outcome::Throttled) {
            self.leave_alone(py, result);
        }
        if self.run.is_none() || outcome == Outcome::Success || !may {
            return Ok(None);
        }
        self.again(py, result, outcome)
    }

    /// Whether and when it is tried again.
    #[cold]
    fn again(
        &mut self,
        py: Python<'_>,
        result: &PyResult<Py<PyAny>>,
        outcome: Outcome,
    ) -> PyResult<Option<Nanos>> {
        let elsewhere = self.may_go_elsewhere();
        let parts = self.plan.parts();
        let (Some(policy), Some(run)) = (parts.retry, &mut self.run) else { return Ok(None) };
        let policy = policy.get();
        // One clock for all, or the deadline would be on another than the pauses.
        let now = parts.clock().now();
        let cost = self.cost;
        let decide = |run: &mut Run, policy: &Policy, outcome, wait| {
            if elsewhere {
                return run.after_elsewhere(policy, outcome, wait, cost, now);
            }
            run.after(policy, outcome, wait, cost, now)
        };
        let verdict = match result {
            Err(error) if !error.is_instance_of::<PyException>(py) => return Ok(None),
            Err(error) => {
                let error = error.value(py).as_any();
                let wait = outcome::retry_after(error);
                policy.after_error(run, error, outcome, |run, policy, outcome| {
                    decide(run, policy, outcome, wait)
                })?
            }
            Ok(value) => {
                let wait = outcome::retry_after(value.bind(py));
                decide(run, policy.policy(), outcome, wait)
            }
        };
        match verdict {
            Verdict::Again(pause) => {
                parts.count(|counts| &counts.retries);
                self.before =
                    result.as_ref().err().map(|error| error.value(py).clone().into_any().unbind());
                Ok(Some(self.routed.as_deref_mut().map_or(pause, |routed| {
                    // Others are asked at once.
                    routed.bar(now.saturating_add(pause));
                    0
                })))
            }
            Verdict::GiveUp(reason) => {
                if let Err(error) = result {
                    note(error.value(py).as_any(), run, reason, now);
                }
                Ok(None)
            }
        }
    }

    #[inline]
    pub(super) fn classify(&self, py: Python<'_>, result: &PyResult<Py<PyAny>>) -> Outcome {
        let parts = self.parts();
        if let Some(classify) = parts.classify
            && let Some(outcome) = self.asked(py, classify.bind(py), result)
        {
            return outcome;
        }
        match (parts.breaker, result) {
            (Some(breaker), result) => breaker.get().outcome_of(py, result.as_ref()),
            (None, Ok(_)) => Outcome::Success,
            (None, Err(error)) => outcome::of_error(error.value(py).as_any()),
        }
    }

    /// What the user's classifier says; one that raises is told of once and counted, and the call
    /// ends as if there were none.
    #[cold]
    fn asked(
        &self,
        py: Python<'_>,
        classify: &Bound<'_, PyAny>,
        result: &PyResult<Py<PyAny>>,
    ) -> Option<Outcome> {
        let answer = match result {
            Ok(value) => classify.call1((value, py.None())),
            // Nothing that is no `Exception` is anybody's to judge.
            Err(error) if !error.is_instance_of::<PyException>(py) => return None,
            Err(error) => classify.call1((py.None(), error.value(py))),
        };
        answer.and_then(|answer| outcome::named(&answer)).unwrap_or_else(|error| {
            let told = self.parts().guard.is_some_and(|guard| {
                guard.counts.classify_errors.fetch_add(1, Ordering::Relaxed) > 0
            });
            if !told || !error.is_instance_of::<PyException>(py) {
                unraisable(error, classify);
            }
            None
        })
    }

    /// Nothing more will be tried: the fallback's answer to the error, if it has one.
    #[cold]
    pub(super) fn fall_back<'py>(
        &mut self,
        py: Python<'py>,
        error: PyErr,
    ) -> PyResult<Bound<'py, PyAny>> {
        self.release(py, Outcome::Neutral);
        let parts = self.plan.parts();
        let Some(fallback) = parts.fallback else { return Err(error) };
        if !error.is_instance_of::<PyException>(py) {
            return Err(error);
        }
        let answer = fallback.bind(py).call1((error.value(py),));
        match &answer {
            Ok(_) => parts.count(|counts| &counts.fallbacks),
            Err(later) => shown_in(py, later, &error),
        }
        answer
    }
}

/// As in an `except` block: what a fallback raises shows what it stood in for, at the end of what
/// it shows already, unless it is that very error.
fn shown_in(py: Python<'_>, later: &PyErr, error: &PyErr) {
    let mut last = later.value(py).clone();
    for _ in 0..LONGEST_CHAIN {
        if last.is(error.value(py)) {
            return;
        }
        let context = last.getattr(names::context(py)).ok();
        match context.and_then(|context| context.cast_into().ok()) {
            Some(context) => last = context,
            None => break,
        }
    }
    last.setattr(names::context(py), error.value(py)).ok();
}

/// Errors in one chain of contexts that are looked at.
const LONGEST_CHAIN: usize = 100;
