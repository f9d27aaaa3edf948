//! How a call ended, said once and heard by every part: breaker, retry, limiter and metrics.

/// How a call ended, as its caller or a classifier says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// It did what it was to do.
    Success,
    /// It failed for a reason that the next call may meet again.
    Failure,
    /// The other side is well and asks for patience (HTTP 429).
    Throttled,
    /// It says nothing about the other side: cancelled, abandoned, refused by ourselves.
    Neutral,
}

impl Outcome {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Success, Self::Failure, Self::Throttled, Self::Neutral];

    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Failure => "failure",
            Self::Throttled => "throttled",
            Self::Neutral => "neutral",
        }
    }

    /// The one of that name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|outcome| outcome.name() == name)
    }
}

#[cfg(test)]
mod tests {
    use super::Outcome;

    #[test]
    fn each_is_found_by_its_name() {
        for outcome in Outcome::ALL {
            assert_eq!(Outcome::named(outcome.name()), Some(outcome));
        }
        assert_eq!(Outcome::named("Success"), None);
    }
}
