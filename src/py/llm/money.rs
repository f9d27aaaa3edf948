//! A limiter's budget: what a call costs is reserved there, too.
//!
//! What is granted at once takes its money last, as that may wait for a disk. Who is going to
//! wait in line has the money before.

use pyo3::prelude::*;

use super::{Argument, Asked, Granted, LLMLimiter, PyReservation};
use crate::core::clock::Nanos;
use crate::core::limiter::llm::Dimension;
use crate::py::awaitable::ready;
use crate::py::budget::{Budget, Hold, Refused};
use crate::py::limiter::gone;
use crate::py::waiting::place;

impl LLMLimiter {
    /// Takes what a call may cost from the budget, if there is one. An estimate is never what
    /// makes a call impossible.
    ///
    /// # Errors
    /// The tenant's key, or whatever tells the budget's own, raised.
    fn money(
        &self,
        py: Python<'_>,
        usd: u64,
        estimated: bool,
        tenant: Argument<'_, '_>,
    ) -> PyResult<Result<Option<Hold>, Refused>> {
        let Some(budget) = self.budget.as_ref().filter(|_| self.core.enabled()) else {
            return Ok(Ok(None));
        };
        let budget = budget.bind(py);
        let usd = if estimated { usd.min(budget.get().most()) } else { usd };
        let tenant = tenant.filter(|_| budget.get().is_keyed());
        Ok(Budget::take(budget, usd, tenant)?.map(Some))
    }

    /// What was granted, and the money for it; without the money nothing is.
    ///
    /// # Errors
    /// See [`LLMLimiter::money`].
    pub(super) fn with_money(
        &self,
        py: Python<'_>,
        granted: Granted,
        ask: &Asked,
        tenant: Argument<'_, '_>,
    ) -> PyResult<Result<(Granted, Option<Hold>), Refused>> {
        let usd = granted.amounts().get(Dimension::Usd);
        let refused = match self.money(py, usd, ask.usd.is_none(), tenant) {
            Ok(Ok(money)) => return Ok(Ok((granted, money))),
            Ok(Err(refused)) => {
                self.core.count_rejection();
                Ok(Err(refused))
            }
            Err(error) => Err(error),
        };
        self.calling(py, |core, out| core.undo(granted, out));
        refused
    }

    /// What a caller that is going to wait asks for, all estimates of money made, and the money
    /// for it. It is reserved before the wait: a budget that is spent out is told at once.
    ///
    /// # Errors
    /// The budget's refusal, or see [`LLMLimiter::money`].
    pub(super) fn money_to_wait(
        &self,
        py: Python<'_>,
        ask: &Asked,
        tenant: Argument<'_, '_>,
    ) -> PyResult<(Asked, Option<Hold>)> {
        let Some(budget) = &self.budget else { return Ok((*ask, None)) };
        let usd = self.core.estimated_usd(ask);
        match self.money(py, usd, ask.usd.is_none(), tenant)? {
            Ok(money) => Ok((Asked { usd: Some(usd), ..*ask }, money)),
            Err(refused) => {
                self.core.count_rejection();
                Err(refused.error(budget.bind(py), "cost_usd"))
            }
        }
    }

    /// A reservation that was granted at once, if there is the money for it.
    pub(super) fn reservation(
        slf: &Bound<'_, Self>,
        granted: Granted,
        ask: &Asked,
        tenant: Argument<'_, '_>,
    ) -> PyResult<PyReservation> {
        let (py, this) = (slf.py(), slf.get());
        match (this.with_money(py, granted, ask, tenant)?, &this.budget) {
            (Ok((granted, money)), _) => {
                Ok(PyReservation::new(slf.clone().unbind(), granted, money))
            }
            (Err(refused), Some(budget)) => Err(refused.error(budget.bind(py), "cost_usd")),
            (Err(_), None) => Err(gone()),
        }
    }

    /// An awaitable that becomes a reservation.
    pub(super) fn reserve_async<'py>(
        slf: &Bound<'py, Self>,
        ask: &Asked,
        tenant: Argument<'_, 'py>,
        deadline: Nanos,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = slf.py();
        let this = slf.get();
        match this.enter(py, ask) {
            Ok(granted) => {
                let reservation = Self::reservation(slf, granted, ask, tenant)?;
                ready(py, Bound::new(py, reservation)?.into_any())
            }
            Err(never) if never.is_never() => {
                this.core.count_rejection();
                Err(this.refusal(py, &never))
            }
            Err(_) => {
                let (ask, money) = this.money_to_wait(py, ask, tenant)?;
                place(py, Self::join(slf, &ask, deadline, money))
            }
        }
    }
}
