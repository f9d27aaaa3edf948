//! What becomes of a call's attempts where the guard has targets: each is given one, and leaves it.

use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;

use super::attempts::{Attempts, Line, parts_of};
use super::routed::{self, Found, PyTaken};
use super::router::Router;
use super::slot::{Taken, Wish};
use super::target::Target;
use crate::core::breaker::Permit;
use crate::core::clock::{NEVER, Nanos};
use crate::core::outcome::Outcome;
use crate::core::route::Ended;
use crate::py::breaker::CircuitBreaker;
use crate::py::names;
use crate::py::outcome;

impl Attempts {
    /// Calls it, with the target of the attempt if the guard has some.
    #[inline]
    pub(super) fn call<'py>(&self, py: Python<'py>, call: &Target) -> PyResult<Bound<'py, PyAny>> {
        match self.plan.routed() {
            None => call.call(py),
            Some(_) => self.call_at(py, call),
        }
    }

    #[cold]
    fn call_at<'py>(&self, py: Python<'py>, call: &Target) -> PyResult<Bound<'py, PyAny>> {
        let (_, router) = self.router()?;
        // Without an attempt nothing of its code will run.
        call.call_with(names::target(py), router.target(self.at().unwrap_or(0)))
    }

    /// The target that the attempt under way goes to.
    #[inline]
    pub(super) fn at(&self) -> Option<usize> {
        self.routed.as_ref().and_then(|routed| routed.at)
    }

    fn router(&self) -> PyResult<(&Py<super::class::Guard>, &Router)> {
        let found = self.plan.routed().and_then(|(guard, _)| Some((guard, guard.get().router()?)));
        found.ok_or_else(|| PyRuntimeError::new_err("the guard has no targets"))
    }

    /// A target for the next attempt. `Some`: to be awaited, and then asked again.
    #[cold]
    pub(super) fn find<'py>(
        &mut self,
        py: Python<'py>,
        call: &Target,
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        if self.running {
            // What was awaited has come.
            return Ok(None);
        }
        self.note_asked();
        let wish = self.wish(py, call)?;
        let (guard, router) = self.router()?;
        match routed::find(py, guard, router, wish)? {
            Found::Taken(taken) => {
                self.begin_at(taken);
                Ok(None)
            }
            Found::Wait(place) => {
                self.line = Line::Target;
                Ok(Some(place))
            }
        }
    }

    /// [`Attempts::find`], waiting in this thread.
    #[cold]
    pub(super) fn find_blocking(&mut self, py: Python<'_>, call: &Target) -> PyResult<()> {
        self.note_asked();
        let wish = self.wish(py, call)?;
        let (guard, router) = self.router()?;
        let taken = routed::find_blocking(py, guard, router, wish)?;
        self.begin_at(taken);
        Ok(())
    }

    /// What was awaited has come.
    pub(super) fn reached(&mut self, py: Python<'_>, came: Py<PyAny>) -> PyResult<()> {
        let came = came.into_bound(py).cast_into::<PyTaken>()?;
        if let Some(taken) = came.get().take() {
            self.begin_at(taken);
        }
        Ok(())
    }

    /// What the next attempt asks for.
    fn wish(&mut self, py: Python<'_>, call: &Target) -> PyResult<Wish> {
        self.check_time(py)?;
        let known = self.routed.as_ref().and_then(|routed| routed.ask);
        let ask = match known {
            Some(ask) => ask,
            None => self.router()?.1.ask(py, call)?,
        };
        let now = self.parts().clock().now();
        let run = self.run.as_ref().and_then(|run| run.left(now));
        let left = self.left().unwrap_or(NEVER).min(run.unwrap_or(NEVER));
        let deadline = now.saturating_add(left);
        let (mut failed, mut beside) = (Vec::new(), None);
        if let Some(routed) = &mut self.routed {
            routed.ask = Some(ask);
            failed.clone_from(&routed.failed);
            beside = routed.beside;
        }
        Ok(Wish { ask, failed, beside, deadline })
    }

    /// The attempt is let through.
    fn begin_at(&mut self, taken: Taken) {
        let Taken { at, pass, bulkhead, permit } = taken;
        let now = self.parts().clock().now();
        let Some(routed) = &mut self.routed else { return };
        routed.at = Some(at);
        routed.since = now;
        routed.took = None;
        self.pass = pass.map(|(pass, _)| pass);
        self.bulkhead = bulkhead.is_some();
        self.permit = permit;
        let parts = parts_of(&self.plan, self.routed.as_deref());
        self.slot = parts.bulkhead.and_then(|bulkhead| bulkhead.get().begins());
        self.running = true;
        self.note_begun();
    }

    /// The first item of a stream says how fast a target is; its end is the reader's matter, too.
    #[cold]
    pub(super) fn note_first_item(&mut self) {
        let now = self.parts().clock().now();
        let Some(routed) = &mut self.routed else { return };
        if routed.took.is_some() {
            return;
        }
        routed.took = Some(now.saturating_sub(routed.since));
        if let (Some(at), Ok((_, router))) = (routed.at, self.router()) {
            router.hear(at, now);
        }
    }

    /// The attempt has ended at its target, or was `beaten` there by one that went elsewhere.
    #[cold]
    pub(super) fn leave_target(&mut self, py: Python<'_>, outcome: Outcome, beaten: bool) {
        let Some(at) = self.at() else { return };
        let permit: Option<Permit> = self.permit.take();
        if let (Some(permit), Some(breaker)) =
            (permit, parts_of(&self.plan, self.routed.as_deref()).breaker)
        {
            let wasted = self.wasted.take();
            CircuitBreaker::end(breaker.bind(py), permit, outcome, wasted);
        }
        let now = self.parts().clock().now();
        let Some(routed) = &mut self.routed else { return };
        routed.at = None;
        routed.last = Some(at);
        let heard = routed.took.is_some();
        let took = routed.took.unwrap_or(now.saturating_sub(routed.since));
        let ended = match outcome {
            Outcome::Success => Ended::Answered(took),
            // It would have taken longer still.
            Outcome::Neutral if beaten => Ended::Answered(took),
            Outcome::Failure | Outcome::Throttled => Ended::Failed,
            Outcome::Neutral => Ended::Left(took),
        };
        if let Ok((_, router)) = self.router() {
            router.end(py, at, outcome, ended, heard, now);
        }
    }

    /// The target has perhaps asked to be left alone, by anybody.
    #[cold]
    pub(super) fn leave_alone(&self, py: Python<'_>, result: &PyResult<Py<PyAny>>) {
        let wait = match result {
            Ok(value) => outcome::retry_after(value.bind(py)),
            Err(error) => outcome::retry_after(error.value(py).as_any()),
        };
        let last = self.routed.as_ref().and_then(|routed| routed.last);
        if let (Some(wait), Some(at), Ok((_, router))) = (wait, last, self.router()) {
            router.pause(at, self.parts().clock().now().saturating_add(wait));
        }
    }

    /// Whether another target than the last one could take an attempt in time.
    pub(super) fn may_go_elsewhere(&self) -> bool {
        let Some(routed) = &self.routed else { return false };
        let Ok((guard, router)) = self.router() else { return false };
        let left: Nanos = self.left().unwrap_or(NEVER);
        router
            .others(guard.get(), &routed.failed)
            .any(|(at, after)| Some(at) != routed.last && after < left)
    }
}
