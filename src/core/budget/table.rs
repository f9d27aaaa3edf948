//! The bounded table of accounts in memory.
//!
//! An account is forgotten only when nothing that it has spent counts any more. A table that is
//! full of others takes no new one.

use std::hash::Hash;

use foldhash::fast::RandomState;
use hashbrown::HashMap;

use super::{Account, Millis, Terms};

/// The table is full of accounts that have spent something in a period that still runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full {
    /// When the first of them can be forgotten, at the earliest.
    pub until: Millis,
}

/// Accounts by their keys.
#[derive(Debug)]
pub struct Table<K> {
    accounts: HashMap<K, Account, RandomState>,
    max_keys: usize,
    born: u64,
    /// No account can be forgotten before.
    soonest: Millis,
}

impl<K: Eq + Hash + Clone> Table<K> {
    /// One without accounts.
    #[must_use]
    pub fn new(max_keys: usize) -> Self {
        let accounts = HashMap::with_hasher(RandomState::default());
        Self { accounts, max_keys, born: 0, soonest: Millis::MIN }
    }

    /// How many accounts there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.accounts.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.accounts.is_empty()
    }

    /// Does something with the account of `key`, which is made if it is new, and goes if it has
    /// spent nothing afterwards.
    ///
    /// # Errors
    /// It is new, and there is no room.
    pub fn with<T>(
        &mut self,
        key: &K,
        now: Millis,
        act: impl FnOnce(&mut Account) -> T,
    ) -> Result<T, Full> {
        if self.accounts.len() >= self.max_keys && !self.accounts.contains_key(key) {
            self.forget(now)?;
        }
        let born = &mut self.born;
        let account = self.accounts.entry(key.clone()).or_insert_with(|| {
            *born += 1;
            Account::new(*born)
        });
        let done = act(account);
        if account.until() == Millis::MIN {
            self.accounts.remove(key);
        }
        Ok(done)
    }

    /// Forgets all that no longer count. The walk is over all of them, but there is none before
    /// the time that the last one has found.
    fn forget(&mut self, now: Millis) -> Result<(), Full> {
        if now >= self.soonest {
            self.accounts.retain(|_, account| account.until() > now);
            let soonest = self.accounts.values().map(Account::until).min();
            self.soonest = soonest.unwrap_or(Millis::MIN);
        }
        if self.accounts.len() >= self.max_keys {
            return Err(Full { until: self.soonest });
        }
        // Whoever comes next may be due before all others.
        self.soonest = Millis::MIN;
        Ok(())
    }

    /// The account of `key` as it stands now; one that is not there has spent nothing.
    #[must_use]
    pub fn look(&self, key: &K, terms: &Terms) -> Account {
        self.accounts.get(key).copied().unwrap_or_default().seen(terms)
    }

    /// Forgets what `key` has spent; false if it had no account.
    pub fn reset(&mut self, key: &K) -> bool {
        self.accounts.remove(key).is_some()
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.accounts.clear();
        self.soonest = Millis::MIN;
    }
}
