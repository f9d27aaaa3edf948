//! A thread's work in a tier, in place.

use std::sync::Arc;

use super::service::{Answer, Sender, Service};
use super::tier::Request;

/// Keeps a fork waiting while a thread works in the tier; to be dropped as soon as it is done.
#[derive(Debug)]
pub struct Entered(Arc<Service>);

impl Entered {
    /// Of a service whose tier was entered.
    pub(super) fn new(service: Arc<Service>) -> Self {
        Self(service)
    }

    /// Answers a request in the calling thread, which must not be attached.
    #[must_use]
    pub fn ask_here(&self, request: &Request) -> Answer {
        self.0.ask_here(request)
    }

    /// [`Service::send`], and then works on it in the calling thread, which must not be attached;
    /// the answer may still come later. True if only further [`Entered::help`] brings it.
    #[must_use]
    pub fn send_and_help(
        &self,
        request: Request,
        then: impl FnOnce(Answer) + Send + 'static,
    ) -> bool {
        let again = self.0.submit(request, then, &Sender::Helper);
        self.help();
        again
    }

    /// Works on what is under way, for a moment; not attached.
    pub fn help(&self) {
        if let Some(tier) = self.0.tier() {
            tier.help();
        }
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        if let Some(tier) = self.0.tier() {
            tier.leave();
        }
    }
}
